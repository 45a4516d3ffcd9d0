"""OLMo 1, 2 and 3."""

import math
from typing import TYPE_CHECKING, Any

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import FULL, SLIDING, Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_OLMO3_THETA = 500_000.0
_OLMO_EPS = 1e-5  # In no field.


class Olmo(Family):
  """LayerNorm without a scale, bounds of q, k and v."""

  model_type = 'olmo'
  about = About(
    'OLMo 1B, 7B',
    'LayerNorm without a scale, bounds of q, k and v',
    2.8e-06,
  )
  architecture = 'OlmoForCausalLM'
  norm_eps = 'layer_norm_eps'
  gguf = 'olmo'
  gguf_interleaved = True

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    heads = f.number('num_attention_heads')
    return {
      'num_kv_heads': f.number('num_key_value_heads', default=heads),
      'mlp_dim': f.size('intermediate_size'),
      'norm_eps': _OLMO_EPS,
      'max_positions': f.size('max_position_embeddings'),
    }

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {
      **f.biases(),
      'norm': 'layer',
      'norm_scale': False,
      'clip_qkv': f.optional('clip_qkv', float),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['clip_qkv'] = config.clip_qkv
    del values[self.norm_eps]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    eps = values[self.norm_eps]
    if not math.isclose(eps, _OLMO_EPS, rel_tol=1e-6):
      raise metadata.unexpected(
        '{arch}.attention.layer_norm_epsilon', eps, repr(_OLMO_EPS)
      )
    if metadata.has_tensor('blk.0.attn_q.bias'):
      raise errors.UserError(
        f'{metadata.where}: tensor blk.0.attn_q.bias is not supported for '
        f"{metadata.architecture}: llama.cpp's converter leaves biases in "
        'another order than weights'
      )
    values['clip_qkv'] = metadata.optional('{arch}.attention.clamp_kqv', float)


class Olmo2(Family):
  """Norms after attention and MLP, and over all heads of queries and keys."""

  model_type = 'olmo2'
  about = About(
    'OLMo 2',
    'norms after, norms of whole q and k',
    4.8e-06,
  )
  architecture = 'Olmo2ForCausalLM'
  names = tensor_names.POST_NORM
  gguf: str | None = 'olmo2'

  def read(self, f: Fields) -> dict[str, Any]:
    f.no_window()
    kind = LayerKind(rope_json.read(f))
    return {**self.read_common(f), 'layer_pattern': (kind,)}

  def read_common(self, f: Fields) -> dict[str, Any]:
    """Fields that OLMo 2 and 3 share."""
    f.only('hidden_act', 'silu')
    f.only('clip_qkv', None)
    return {
      **f.biases(),
      'qk_norm': 'projection',
      'pre_norm': False,
      'post_norm': True,
    }


class Olmo3(Olmo2):
  """Three layers of four have a window; their positions are not stretched."""

  model_type = 'olmo3'
  about = About(
    'OLMo 3',
    'also windows, YaRN in the others',
    7.2e-06,
    'yes',
  )
  architecture = 'Olmo3ForCausalLM'
  gguf = None  # Files say olmo2.

  def read(self, f: Fields) -> dict[str, Any]:
    full = rope_json.read_of_type(f, FULL, _OLMO3_THETA)
    sliding = rope_json.read_of_type(f, SLIDING, _OLMO3_THETA)
    nested = SLIDING in (f.values.get('rope_parameters') or {})
    given = f.number('rope_theta', float, _OLMO3_THETA, inside=f.values)
    if not nested and given != _OLMO3_THETA:
      raise f.fail(
        'rope_theta',
        f'{_OLMO3_THETA:.0f}, or rope_parameters with a rope_theta for each '
        'type of layer: transformers 4 and 5 read another one differently',
      )
    return {**self.read_common(f), 'layer_pattern': f.pattern(full, sliding)}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_layer_types(config, values)
    ropes = {bool(k.window): k.rope for k in config.layer_pattern if k.rope}
    local = ropes.get(True)
    if local is None:
      return
    # Given rope_theta alone, transformers 5 uses another theta in layers with a
    # window. It would add rope_scaling to rope_parameters.
    values['rope_parameters'] = {
      FULL: rope_json.write_parameters(ropes.get(False, local)),
      SLIDING: rope_json.write_parameters(local),
    }
    del values['rope_scaling']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.layer_types(values, period=4)
    metadata.same_theta(values)
    theta = values.pop('rope_theta')
    scaling = values.pop('rope_scaling') or {'rope_type': 'default'}
    values['rope_parameters'] = {
      FULL: {**scaling, 'rope_theta': theta},
      SLIDING: {'rope_type': 'default', 'rope_theta': theta},
    }
