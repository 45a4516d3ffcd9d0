"""LFM2."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import gguf_stored, rope_json, tensor_names
from vtokens.models.families.config_json import (
  FULL,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.mixers.short_conv import ShortConv

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_CONV = 'conv'
_LAYER = 'model.layers.{}.'
_MIXER = _LAYER + 'conv.'
_NAMES = {
  **tensor_names.PRE_NORM,
  'norm.scale': 'model.embedding_norm.weight',
  'layers.attention_norm.scale': _LAYER + 'operator_norm.weight',
  'layers.mlp_norm.scale': _LAYER + 'ffn_norm.weight',
  'layers.attention.o': _LAYER + 'self_attn.out_proj.weight',
  'layers.attention.q_norm.scale': _LAYER + 'self_attn.q_layernorm.weight',
  'layers.attention.k_norm.scale': _LAYER + 'self_attn.k_layernorm.weight',
  'layers.mlp.gate': _LAYER + 'feed_forward.w1.weight',
  'layers.mlp.up': _LAYER + 'feed_forward.w3.weight',
  'layers.mlp.down': _LAYER + 'feed_forward.w2.weight',
  **{
    f'layers.attention.{path}{bias}': f'{_MIXER}in_proj.{kind}'
    for bias, kind in (('', 'weight'), ('_bias', 'bias'))
    for path in ('in_gate', 'out_gate', 'inner')
  },
  'layers.attention.kernel': _MIXER + 'conv.weight',
  'layers.attention.kernel_bias': _MIXER + 'conv.bias',
  'layers.attention.out': _MIXER + 'out_proj.weight',
  'layers.attention.out_bias': _MIXER + 'out_proj.bias',
}


class Lfm2(Family):
  """Short convolutions in most layers, attention in the others."""

  model_type = 'lfm2'
  about = About(
    'LFM2 350M, 700M, 1.2B, 2.6B',
    'short convolutions; norms of q and k',
    6.1e-06,
  )
  architecture = 'Lfm2ForCausalLM'
  names = _NAMES
  norm_eps = 'norm_eps'
  gguf = 'lfm2'
  gguf_epsilon = 'layer_norm_rms_epsilon'
  gguf_by_layer = ('attention.head_count_kv',)
  aliases: Mapping[str, str] = {
    'block_ff_dim': 'intermediate_size',
    'tie_embedding': 'tie_word_embeddings',
  }

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    return {**super().read_sizes(f), 'mlp_dim': _mlp_dim(f)}

  def read(self, f: Fields) -> dict[str, Any]:
    # transformers makes `layer_types` of it.
    f.normalised('full_attn_idxs')
    mixer = ShortConv(f.number('conv_L_cache'), f.boolean('conv_bias'))
    attention = LayerKind(rope_json.read(f))
    kinds = {FULL: attention, _CONV: LayerKind(None, mixer=mixer)}
    types = f.per_layer('layer_types', tuple(kinds)) or []
    return {
      'qk_norm': 'head',
      'layer_pattern': shortest_pattern([kinds[kind] for kind in types]),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    kinds = config.layer_kinds
    mixers = [k.mixer for k in kinds if isinstance(k.mixer, ShortConv)]
    mixer = mixers[0] if mixers else ShortConv(3)
    values |= {
      'block_auto_adjust_ff_dim': False,
      'conv_L_cache': mixer.taps,
      'conv_bias': mixer.bias,
      'layer_types': [_CONV if k.mixer else FULL for k in kinds],
    }

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    values |= {
      'block_auto_adjust_ff_dim': False,
      'conv_L_cache': metadata.number('{arch}.shortconv.l_cache'),
      'conv_bias': False,
      'layer_types': [
        FULL if one else _CONV for one in metadata.heads_of_layers(values)
      ],
    }

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return gguf_stored.recurrent(name, shape) or super().gguf_stored(
      config, name, shape
    )


def _mlp_dim(f: Fields) -> int:
  """Width of the MLP, which transformers computes of the given width."""
  width: int = f.number('intermediate_size')
  f.normalised('block_multiple_of', 'block_ffn_dim_multiplier')
  if not f.boolean('block_auto_adjust_ff_dim', True):
    return width
  multiple: int = f.number('block_multiple_of')
  width = int(2 * width / 3)
  width = int(f.number('block_ffn_dim_multiplier', float) * width)
  return multiple * -(-width // multiple)
