"""Gemma 3n for text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.altup import AltUp
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import (
  gemma_gguf,
  later_gemma,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import (
  FULL,
  SLIDING,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.families.later_gemma import LaterGemma
from vtokens.models.layers import Gated
from vtokens.models.mixers.shared_heads import Heads

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_LAYER = 'model.layers.{}.'
# What llama.cpp takes for given: the numbers of layers with keys of their own
# and with sparse activations, their share of zeros, its quantile, and widths.
_OWN_LAYERS, _SPARSE_LAYERS = 20, 10
_SHARE, _QUANTILE = 0.95, 1.6448536
_LAUREL_RANK, _INPUT_WIDTH, _SOFTCAP = 64, 256, 30.0
_NAMES: Mapping[str, str] = {
  **later_gemma.NAMES,
  'layers.altup.router': _LAYER + 'altup.modality_router.weight',
  'layers.altup.prediction': _LAYER + 'altup.prediction_coefs.weight',
  'layers.altup.correction': _LAYER + 'altup.correction_coefs.weight',
  'layers.altup.norm.scale': _LAYER + 'altup.router_norm.weight',
  'layers.altup.scale': _LAYER + 'altup.correct_output_scale',
  'layers.laurel.left': _LAYER + 'laurel.linear_left.weight',
  'layers.laurel.right': _LAYER + 'laurel.linear_right.weight',
  'layers.laurel.norm.scale': _LAYER + 'laurel.post_laurel_norm.weight',
}


class Gemma3n(LaterGemma):
  """Several residual streams, sparse activations, inputs of each layer."""

  model_type = 'gemma3n_text'
  about = About(
    'Gemma 3n E2B, E4B',
    'several residual streams (AltUp), LAuReL, sparse activations, inputs of '
    'each layer, keys and values that layers share, values normed',
    1.8e-05,
  )
  architecture = 'Gemma3nForCausalLM'
  gguf = 'gemma3n'
  gguf_by_layer = ('feed_forward_length',)
  names = _NAMES
  usual_shared = 15

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    streams = config.streams
    assert isinstance(streams, AltUp)
    return {
      **self.names,
      **{
        f'streams.{path}.{i}': f'model.altup_{name}.{i}.weight'
        for path, name in (
          ('first', 'projections'),
          ('last', 'unembed_projections'),
        )
        for i in range(streams.count - 1)
      },
    }

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    # Layers may differ in it; each has its own `Gated`.
    widths = self._widths(f)
    return {
      'num_kv_heads': f.number('num_key_value_heads'),
      'mlp_dim': widths[0],
      'norm_eps': f.size('rms_norm_eps', float),
      'max_positions': f.size('max_position_embeddings'),
    }

  def _widths(self, f: Fields) -> list[int]:
    layers = f.number('num_hidden_layers')
    found = f.get('intermediate_size')
    widths = found if isinstance(found, list | tuple) else [found] * layers
    if len(widths) != layers or not all(
      type(width) is int and 0 < width < 1 << 31 for width in widths
    ):
      raise f.fail(
        'intermediate_size', f'a positive int or a list of {layers} of them'
      )
    return list(widths)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('use_bidirectional_attention', False, None)
    # A bound that concerns training alone.
    f.normalised('altup_coef_clip')
    later_gemma.check_padding(f)
    rows = f.number('vocab_size_per_layer_input')
    streams, active = (
      f.number('altup_num_inputs'),
      later_gemma.count(f, 'altup_active_idx'),
    )
    if streams < 2 or active >= streams:
      raise f.fail('altup_num_inputs', 'more than 1 and altup_active_idx')
    return {
      **super().read(f),
      'per_layer_dim': f.number('hidden_size_per_layer_input'),
      'per_layer_rows': 0 if rows == f.number('vocab_size') else rows,
      'streams': AltUp(
        streams,
        active,
        f.boolean('altup_correct_scale', True),
        f.number('laurel_rank'),
      ),
      'layer_pattern': self._pattern(f),
    }

  def _pattern(self, f: Fields) -> tuple[LayerKind, ...]:
    window = f.optional('sliding_window', int)
    types = f.layer_types(window)
    theta = f.number('rope_local_base_freq', float, 1e4, inside=f.values)
    ropes = {
      FULL: rope_json.read_of_type(f, FULL, 1e6),
      SLIDING: rope_json.read_of_type(f, SLIDING, theta),
    }
    shares = f.get('activation_sparsity_pattern')
    if (
      not isinstance(shares, list | tuple)
      or len(shares) != len(types)
      or not all(
        isinstance(share, int | float) and 0 <= share < 1 for share in shares
      )
    ):
      raise f.fail(
        'activation_sparsity_pattern', f'a list of {len(types)} below 1'
      )
    heads = f.head_dim(), f.number('num_key_value_heads')
    return shortest_pattern(
      [
        LayerKind(
          ropes[name],
          window if name == SLIDING else None,
          Gated(width, float(share)),
          Heads(*heads, source=source),
        )
        for name, width, share, source in zip(
          types,
          self._widths(f),
          shares,
          later_gemma.sources(f, types),
          strict=True,
        )
      ]
    )

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    mlps: list[Any] = [kind.mlp for kind in config.layer_kinds]
    streams: Any = config.streams
    values.update(
      intermediate_size=[mlp.width for mlp in mlps],
      activation_sparsity_pattern=[mlp.sparsity for mlp in mlps],
      altup_num_inputs=streams.count,
      altup_active_idx=streams.active,
      altup_correct_scale=streams.scaled,
      laurel_rank=streams.laurel_rank,
    )

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    # The matrices of all streams are in one tensor.
    return tensor_names.Form(
      {
        path: name.replace('projections.' + path[-1] + '.', 'projections.')
        if path.startswith('streams.')
        else name
        for path, name in self.names_of(config).items()
      }
    )

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    if name.endswith('projections.weight') and len(shape) == 3:
      return Stored(shape=(shape[0] * shape[1], shape[2]))
    return Stored()

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    layers = values['num_hidden_layers']
    gemma_gguf.read_layers(metadata, values, min(layers, _OWN_LAYERS))
    key = '{arch}.feed_forward_length'
    widths = metadata.per_layer(key, layers)
    if len(set(widths)) > 1:
      raise metadata.unexpected(key, widths, 'one width, as llama.cpp has')
    given = {
      'altup.num_inputs': 4,
      'altup.active_idx': 0,
      'embedding_length_per_layer_input': _INPUT_WIDTH,
      'final_logit_softcapping': _SOFTCAP,
    }
    for end, expected in given.items():
      found = metadata.get('{arch}.' + end, expected)
      if found != expected:
        raise metadata.unexpected(
          '{arch}.' + end, found, f'{expected}, as llama.cpp has'
        )
    key = '{arch}.activation_sparsity_scale'
    scales = metadata.get(key) or []
    if (
      not isinstance(scales, list)
      or len(scales) < layers
      or any(
        abs(scale - _QUANTILE) > 1e-5 if i < _SPARSE_LAYERS else scale > -1e30
        for i, scale in enumerate(scales[:layers])
      )
    ):
      raise metadata.unexpected(
        key,
        scales,
        f'{_QUANTILE} for {_SPARSE_LAYERS} layers and then -inf, as llama.cpp '
        'has',
      )
    values |= {
      'altup_num_inputs': 4,
      'altup_active_idx': 0,
      'altup_correct_scale': True,
      'laurel_rank': _LAUREL_RANK,
      'vocab_size_per_layer_input': values['vocab_size'],
      'activation_sparsity_pattern': [
        _SHARE if i < _SPARSE_LAYERS else 0.0 for i in range(layers)
      ],
      'final_logit_softcapping': _SOFTCAP,
      'rope_parameters': {
        SLIDING: {
          'rope_type': 'default',
          'rope_theta': metadata.number(
            '{arch}.rope.freq_base_swa', float, 1e4
          ),
        },
        FULL: {
          **(values.pop('rope_scaling') or {'rope_type': 'default'}),
          'rope_theta': values.pop('rope_theta'),
        },
      },
    }
