"""Fields of config.json that families with experts share."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families.config_json import Fields, shortest_pattern
from vtokens.models.mlps.experts import Experts
from vtokens.models.mlps.routing import Routing

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

# Number that bounds lists of experts, which are made before the shapes of the
# weights confirm it.
_MOST = 1 << 16
# Values of `expert_gating_func` in GGUF files.
SOFTMAX, SIGMOID = 1, 2
# Fields that concern training alone.
_TRAINING = (
  'output_router_logits',
  'router_aux_loss_coef',
  'router_jitter_noise',
  'input_jitter_noise',
)


def count(f: Fields, field: str) -> int:
  """A number of experts, or of experts for each token."""
  found: int = f.number(field)
  if found > _MOST:
    raise f.fail(field, f'at most {_MOST:,}')
  return found


def routing(f: Fields, experts: int, active: int, **more: Any) -> Routing:
  """How tokens choose experts.

  Args:
    f: the fields.
    experts: number of experts.
    active: experts that each token uses.
    more: further fields of `Routing`.

  Raises:
    errors.UserError: the numbers do not fit together.
  """
  try:
    return Routing(experts, active, **more)
  except ValueError as e:
    raise errors.UserError(f'{f.where}: {e}') from None


def skip_training(f: Fields) -> None:
  """Marks fields that concern training alone, which are without effect."""
  f.normalised(*_TRAINING)


def with_experts(
  f: Fields,
  pattern: Sequence[LayerKind],
  experts: Experts,
  sparse: Sequence[bool] | None = None,
) -> tuple[LayerKind, ...]:
  """Pattern of layers with experts in some.

  Args:
    f: the fields.
    pattern: pattern of the layers without experts.
    experts: the experts of a layer.
    sparse: whether each layer has experts; None for all.
  """
  number = f.number('num_hidden_layers')
  sparse = [True] * number if sparse is None else sparse
  return shortest_pattern(
    [
      dataclasses.replace(pattern[i % len(pattern)], mlp=experts)
      if sparse[i]
      else pattern[i % len(pattern)]
      for i in range(number)
    ]
  )


def sparse_layers(f: Fields) -> list[bool]:
  """Whether each layer has experts: `decoder_sparse_step`, `mlp_only_layers`.

  Raises:
    errors.UserError: a field is wrong.
  """
  number = f.number('num_hidden_layers')
  step = f.number('decoder_sparse_step')
  dense = f.get('mlp_only_layers') or []
  if not isinstance(dense, list) or not all(
    type(i) is int and 0 <= i < number for i in dense
  ):
    raise f.fail('mlp_only_layers', f'a list of layers below {number}', dense)
  sparse = [(i + 1) % step == 0 and i not in dense for i in range(number)]
  if not any(sparse):
    raise f.fail(
      'decoder_sparse_step',
      'a step and mlp_only_layers that leave a layer with experts',
      step,
    )
  return sparse


def write_sparse_layers(config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets `decoder_sparse_step` and `mlp_only_layers`."""
  values['decoder_sparse_step'] = 1
  values['mlp_only_layers'] = [
    i for i, kind in enumerate(config.layer_kinds) if kind.mlp is None
  ]


def grouped(f: Fields, **rule: Any) -> Experts:
  """Experts in groups, beside an MLP for all tokens: DeepSeek's fields.

  Args:
    f: the fields.
    rule: fields of `Routing` that differ between families.

  Raises:
    errors.UserError: a field is wrong.
  """
  width = f.number('moe_intermediate_size')
  for name, field in (('groups', 'n_group'), ('active_groups', 'topk_group')):
    if name not in rule:
      rule[name] = f.number(field)
  return Experts(
    routing(
      f,
      count(f, 'n_routed_experts'),
      count(f, 'num_experts_per_tok'),
      scale=f.number('routed_scaling_factor', float),
      **rule,
    ),
    width,
    shared=width * f.number('n_shared_experts'),
  )


def corrected(f: Fields) -> Experts:
  """Experts in groups that are chosen by corrected sigmoids.

  Args:
    f: the fields.

  Raises:
    errors.UserError: a field is wrong.
  """
  return grouped(
    f,
    scores='sigmoid',
    normalised=f.boolean('norm_topk_prob'),
    floor=1e-20,
    correction=True,
  )


def write_grouped(config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets the fields of `grouped` and `first_dense`.

  Args:
    config: the architecture.
    values: the fields, to be changed in place.
  """
  experts = of(config)
  rule = experts.routing
  kinds = config.layer_kinds
  values |= {
    'n_routed_experts': rule.experts,
    'num_experts_per_tok': rule.active,
    'norm_topk_prob': rule.normalised,
    'routed_scaling_factor': rule.scale,
    'n_group': rule.groups,
    'topk_group': rule.active_groups,
    'moe_intermediate_size': experts.width,
    'n_shared_experts': experts.shared // experts.width,
    'first_k_dense_replace': sum(kind.mlp is None for kind in kinds),
  }


def first_dense(f: Fields) -> list[bool]:
  """Whether each layer has experts: `first_k_dense_replace`.

  Raises:
    errors.UserError: the field is wrong, or no layer has experts.
  """
  dense = f.get('first_k_dense_replace')
  number = f.number('num_hidden_layers')
  if type(dense) is not int or not 0 <= dense < number:
    raise f.fail('first_k_dense_replace', f'a number below {number}', dense)
  return [i >= dense for i in range(number)]


def of(config: DecoderConfig) -> Experts:
  """The experts of a decoder."""
  return next(
    kind.mlp for kind in config.layer_kinds if isinstance(kind.mlp, Experts)
  )


def read_gguf(
  metadata: 'Metadata',
  values: dict[str, Any],
  number: str,
  width: str = 'intermediate_size',
) -> None:
  """Sets the fields of experts from the metadata of a GGUF file.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.
    number: field with the number of experts.
    width: field with the width of an expert.

  Raises:
    errors.UserError: a value is missing or wrong.
  """
  values[number] = metadata.number('{arch}.expert_count')
  values['num_experts_per_tok'] = metadata.number('{arch}.expert_used_count')
  values[width] = metadata.number(
    '{arch}.expert_feed_forward_length', default=values['intermediate_size']
  )


def read_gguf_scores(metadata: 'Metadata', values: dict[str, Any]) -> None:
  """Sets how DeepSeek's experts are weighted and grouped.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.

  Raises:
    errors.UserError: a value is wrong.
  """
  groups = metadata.optional('{arch}.expert_group_count', int) or 1
  values |= {
    'norm_topk_prob': bool(metadata.get('{arch}.expert_weights_norm', False)),
    # llama.cpp takes 0 for missing.
    'routed_scaling_factor': (
      metadata.optional('{arch}.expert_weights_scale', float) or 1.0
    ),
    'n_group': groups,
    'topk_group': metadata.number(
      '{arch}.expert_group_used_count', default=groups
    ),
    'n_shared_experts': metadata.number('{arch}.expert_shared_count'),
  }


def check_gguf_scores(
  metadata: 'Metadata', expected: int, default: Any = ...
) -> None:
  """Raises if a GGUF file has other scores of experts.

  Args:
    metadata: metadata of the file.
    expected: `SOFTMAX` or `SIGMOID`.
    default: what llama.cpp takes if the file does not say it; `...` raises.

  Raises:
    errors.UserError: it has.
  """
  key = '{arch}.expert_gating_func'
  found = metadata.number(key, default=default)
  if found != expected:
    raise metadata.unexpected(key, found, str(expected))
