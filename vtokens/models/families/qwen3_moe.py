"""Qwen 3 with experts."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import (
  expert_fields,
  mistral,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Qwen3Moe(Family):
  """Qwen 3 whose layers, or some of them, have experts."""

  model_type = 'qwen3_moe'
  about = About(
    'Qwen3-30B-A3B, 235B-A22B, Coder',
    'experts, in some layers or all; norms of q and k',
    6.5e-06,
  )
  architecture = 'Qwen3MoeForCausalLM'
  gguf = 'qwen3moe'
  names = tensor_names.with_experts(tensor_names.PRE_NORM, 'mlp.')

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    # Qwen3-VL's files have the transposed matrices.
    turned = tensor_names.Form(JOINED.names, input_rows=True)
    return (*super().forms(config), JOINED, turned)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    expert_fields.skip_training(f)
    f.normalised('use_sliding_window')
    if f.values['model_type'] != self.model_type:
      f.only('norm_topk_prob', True)  # transformers does not look at it.
    return {
      **f.biases(),
      'qk_norm': 'head',
      'layer_pattern': expert_fields.with_experts(
        f,
        (mistral.one_kind(f, rope_json.read(f)),),
        read_experts(f),
        expert_fields.sparse_layers(f),
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    write_experts(config, values)
    window = config.layer_pattern[0].window
    values['sliding_window'] = window
    values['use_sliding_window'] = window is not None

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(tensor_names.with_gguf_experts(self.names))

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    expert_fields.read_gguf(
      metadata, values, 'num_experts', 'moe_intermediate_size'
    )
    # llama.cpp has experts in every layer, and such weights.
    values |= {'norm_topk_prob': True, 'mlp_only_layers': []}
    values['decoder_sparse_step'] = 1


JOINED = tensor_names.Form(
  tensor_names.with_joined_experts(tensor_names.PRE_NORM, 'mlp.')
)


def read_experts(
  f: Fields, normalised: bool | None = None, **more: Any
) -> Experts:
  """The experts of Qwen's families.

  Args:
    f: the fields.
    normalised: see `Routing`; None to read it.
    more: further fields of `Experts`.
  """
  routing = expert_fields.routing(
    f,
    expert_fields.count(f, 'num_experts'),
    expert_fields.count(f, 'num_experts_per_tok'),
    normalised=(
      f.boolean('norm_topk_prob') if normalised is None else normalised
    ),
  )
  return Experts(routing, f.number('moe_intermediate_size'), **more)


def write_experts(config: DecoderConfig, values: dict[str, Any]) -> None:
  """The inverse of `read_experts`, and of the layers that have experts."""
  experts = expert_fields.of(config)
  expert_fields.write_sparse_layers(config, values)
  values['num_experts'] = experts.routing.experts
  values['num_experts_per_tok'] = experts.routing.active
  values['norm_topk_prob'] = experts.routing.normalised
  values['moe_intermediate_size'] = experts.width
