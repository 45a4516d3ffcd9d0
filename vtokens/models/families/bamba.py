"""Bamba."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import mamba_fields, rope_json, tensor_names
from vtokens.models.families.config_json import FULL, Fields, shortest_pattern
from vtokens.models.families.family import About, Family

_LAYER = 'model.layers.{}.'
NAMES = {
  **tensor_names.PRE_NORM,
  'norm.scale': 'model.final_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'pre_ff_layernorm.weight',
  'layers.mlp.gate': _LAYER + 'feed_forward.gate_proj.weight',
  'layers.mlp.up': _LAYER + 'feed_forward.up_proj.weight',
  'layers.mlp.down': _LAYER + 'feed_forward.down_proj.weight',
  **mamba_fields.names(_LAYER + 'mamba.'),
}


class Bamba(Family):
  """Llama with Mamba 2 in most layers."""

  model_type = 'bamba'
  about = About(
    'Bamba 9B',
    'Mamba 2; rotation of half of each head',
    4.5e-06,
  )
  architecture = 'BambaForCausalLM'
  names = NAMES

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('mlp_bias', False)
    f.normalised('num_logits_to_keep', 'z_loss_coefficient')
    mixer = mamba_fields.read(f)
    number = f.number('num_hidden_layers')
    attention = f.get('attn_layer_indices') or []
    if not isinstance(attention, list) or not all(
      type(i) is int and 0 <= i < number for i in attention
    ):
      raise f.fail('attn_layer_indices', f'a list of layers below {number}')
    rope = rope_json.read(f)
    kinds = [
      LayerKind(rope) if i in attention else LayerKind(None, mixer=mixer)
      for i in range(number)
    ]
    # transformers sets it, whatever is given.
    f.only('partial_rotary_factor', 0.5)
    if f.rotary_dim() != f.head_dim() // 2:
      raise f.fail('rope_parameters', 'a partial_rotary_factor of 0.5')
    return {
      **f.biases(),
      'rotary_dim': f.rotary_dim(),
      'layer_pattern': shortest_pattern(kinds),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    mixer = mamba_fields.of(config)
    if mixer is not None:
      mamba_fields.write(mixer, config, values)
    types = mamba_fields.layer_types(config)
    values['attn_layer_indices'] = [
      i for i, kind in enumerate(types) if kind == FULL
    ]
