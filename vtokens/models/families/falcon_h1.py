"""Falcon-H1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import (
  gguf_stored,
  mamba_fields,
  rope_json,
  tensor_names,
)
from vtokens.models.families.bamba import NAMES
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.mixers.parallel_mixer import ParallelMixer
from vtokens.models.mlps.scaled_mlp import ScaledMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_LAYER = 'model.layers.{}.'
_ATTENTION = 'layers.attention.'
_NAMES = {
  path.replace(_ATTENTION, _ATTENTION + 'attention.'): name
  for path, name in NAMES.items()
  if not path.startswith(_ATTENTION) or path in tensor_names.PRE_NORM
} | mamba_fields.names(_LAYER + 'mamba.', _ATTENTION + 'mamba.')


_MULTIPLIERS = (
  'ssm_in_multiplier',
  'ssm_out_multiplier',
  'key_multiplier',
  'attention_in_multiplier',
  'attention_out_multiplier',
  'embedding_multiplier',
  'lm_head_multiplier',
)


class FalconH1(Family):
  """Attention and Mamba 2 side by side in each layer."""

  model_type = 'falcon_h1'
  about = About(
    'Falcon-H1 0.5B to 34B',
    'Mamba 2 beside attention in each layer; multipliers of most parts',
    7.2e-06,
  )
  architecture = 'FalconH1ForCausalLM'
  gguf = 'falcon-h1'
  names = _NAMES

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('mlp_bias', False)
    f.normalised('num_logits_to_keep')
    key_scale = f.number('key_multiplier', float)
    normed = f.boolean('mamba_rms_norm')
    mamba = mamba_fields.read(
      f,
      out_bias=f.boolean('projectors_bias'),
      norm_groups=f.number('mamba_n_groups') if normed else 0,
      norm_first=f.boolean('mamba_norm_before_gate', True) and normed,
      scale=f.number('ssm_in_multiplier', float),
      scales=_numbers(f, 'ssm_multipliers', 5),
    )
    mixer = ParallelMixer(
      mamba,
      key_scale=key_scale,
      in_scale=f.number('attention_in_multiplier', float),
      out_scale=f.number('attention_out_multiplier', float),
      mamba_scale=f.number('ssm_out_multiplier', float),
    )
    return {
      **f.biases(),
      'attention_scale': f.head_dim() ** -0.5 * key_scale,
      'embedding_scale': f.number('embedding_multiplier', float),
      'logit_scale': f.number('lm_head_multiplier', float),
      'mlp': ScaledMLP(*_numbers(f, 'mlp_multipliers', 2)),
      'layer_pattern': (LayerKind(rope_json.read(f), mixer=mixer),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    mixer, mlp = config.layer_kinds[0].mixer, config.mlp
    assert isinstance(mixer, ParallelMixer)
    assert isinstance(mlp, ScaledMLP)
    mamba_fields.write(mixer.mamba, config, values)
    values |= {
      'mamba_d_ssm': mixer.mamba.heads * mixer.mamba.width,
      'mamba_rms_norm': mixer.mamba.norm_groups > 0,
      'mamba_norm_before_gate': mixer.mamba.norm_first,
      'projectors_bias': mixer.mamba.out_bias,
      'ssm_in_multiplier': mixer.mamba.scale,
      'ssm_multipliers': list(mixer.mamba.scales),
      'ssm_out_multiplier': mixer.mamba_scale,
      'key_multiplier': mixer.key_scale,
      'attention_in_multiplier': mixer.in_scale,
      'attention_out_multiplier': mixer.out_scale,
      'embedding_multiplier': config.embedding_scale,
      'lm_head_multiplier': config.logit_scale,
      'mlp_multipliers': [mlp.gate, mlp.out],
    }
    # It is not read beside `mamba_d_ssm`.
    del values['mamba_expand']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    mamba_fields.read_gguf(metadata, values, 0)
    values |= {
      'mamba_d_ssm': values['mamba_n_heads'] * values['mamba_d_head'],
      'mamba_rms_norm': metadata.has_tensor('blk.0.ssm_norm.weight'),
      'mamba_norm_before_gate': False,
      'projectors_bias': metadata.has_tensor('blk.0.ssm_out.bias'),
    }
    # The converter multiplies the weights by them.
    values |= dict.fromkeys(_MULTIPLIERS, 1.0)
    values |= {'ssm_multipliers': [1.0] * 5, 'mlp_multipliers': [1.0] * 2}

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return gguf_stored.recurrent(name, shape) or super().gguf_stored(
      config, name, shape
    )


def _numbers(f: Fields, field: str, count: int) -> tuple[float, ...]:
  """A list of multipliers."""
  found = f.get(field)
  if (
    not isinstance(found, list | tuple)
    or len(found) != count
    or not all(type(x) in (int, float) for x in found)
  ):
    raise f.fail(field, f'a list of {count} numbers', found)
  return tuple(map(float, found))
