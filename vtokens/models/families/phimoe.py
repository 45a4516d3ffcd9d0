"""Phi-3.5-MoE."""

import dataclasses
from typing import Any

from vtokens.models.decoder_config import DecoderConfig, Rope
from vtokens.models.families import (
  expert_fields,
  family,
  mistral,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.experts import Experts

_NAMES = {
  **tensor_names.LAYER_NORM,
  'head_bias': 'lm_head.bias',
}
_SCALES = ('short_mscale', 'long_mscale')


class PhiMoe(Family):
  """Mixtral with another choice of experts, longrope, biases, LayerNorm."""

  model_type = 'phimoe'
  about = About(
    'Phi-3.5-MoE',
    'experts, chosen by SparseMixer; longrope, norms that subtract the mean, '
    'biases',
    4.2e-06,
    'no (llama.cpp has other formulas)',
  )
  architecture = 'PhimoeForCausalLM'
  names = tensor_names.with_experts(
    _NAMES, 'block_sparse_moe.', ('w1', 'w3', 'w2')
  )

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    # The form that transformers 5 has in memory.
    joined = {
      **tensor_names.with_joined_experts(_NAMES, 'mlp.'),
      'layers.mlp.router': 'model.layers.{}.mlp.router.weight',
    }
    return (*super().forms(config), tensor_names.Form(joined))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    # transformers does not look at it.
    f.only('num_experts_per_tok', 2)
    f.normalised('original_max_position_embeddings')
    # Not only for training: it also decides which scores are compared.
    noise = f.get('router_jitter_noise')
    if noise != 0:
      noise = f.number('router_jitter_noise', float)
    routing = expert_fields.routing(
      f,
      expert_fields.count(f, 'num_local_experts'),
      2,
      scores='sparsemixer',
      tolerance=2.0 * noise,
    )
    expert_fields.skip_training(f)
    experts = Experts(routing, f.size('intermediate_size'))
    pattern = (mistral.one_kind(f, _rope(f)),)
    return {
      **f.biases(),
      'norm': 'layer',
      'norm_bias': True,
      'head_bias': f.boolean('lm_head_bias'),
      'layer_pattern': expert_fields.with_experts(f, pattern, experts),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    rule = expert_fields.of(config).routing
    values['num_local_experts'] = rule.experts
    values['num_experts_per_tok'] = rule.active
    values['router_jitter_noise'] = rule.tolerance / 2
    values['lm_head_bias'] = config.head_bias
    scaling = values['rope_scaling']
    if scaling:
      scale = scaling.pop('attention_factor')
      scaling.update(dict.fromkeys(_SCALES, scale))


def _rope(f: Fields) -> Rope:
  """The rotary embedding, with the scales that the family has.

  transformers uses the short factors beyond the original length, too. The model
  was trained with the long ones there, as for Phi-3.

  Raises:
    errors.UserError: a field is wrong or not supported.
  """
  rope = rope_json.read(f, _SCALES)
  found = f.get('rope_parameters') or {}
  if rope.type == 'default':
    return rope
  if rope.type != 'longrope':
    raise f.fail('rope_type', "'default' or 'longrope'", rope.type)
  short, long = (f.number(key, float, inside=found) for key in _SCALES)
  if short != long:
    raise f.fail('long_mscale', f'{short}, the short_mscale', long)
  # transformers does not look at attention_factor.
  return dataclasses.replace(rope, attention_factor=short)
