"""Qwen 3.5, 3.6 and 3-Next: gated delta nets and gated attention."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import (
  delta_fields,
  expert_fields,
  qwen2_moe,
  qwen3_moe,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Qwen35(Family):
  """Three layers with a gated delta net before each with gated attention."""

  model_type = 'qwen3_5_text'
  about = About(
    'Qwen3.5, 3.6 (dense)',
    'gated delta nets; gated attention in every fourth layer, with norms of q '
    'and k and rotation of a part; norms with 1 + w',
    7.2e-05,
  )
  architecture = 'Qwen3_5ForCausalLM'
  gguf = 'qwen35'
  names = delta_fields.names(tensor_names.PRE_NORM, joined=False)
  unused_parts = ('mtp.',)

  def read(self, f: Fields) -> dict[str, Any]:
    return delta_fields.read(f)

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    delta_fields.write(config, values)

  def row_groups(self, config: DecoderConfig, path: str) -> int:
    return delta_fields.row_groups(config, path, joined=False)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    delta_fields.read_gguf(metadata, values)

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return delta_fields.stored(config, name, shape, tiled=True)


class _WithExperts(Family):
  """Experts, and an MLP with a gate for all tokens.

  Attributes:
    joined: see `delta_fields.names`.
  """

  joined: bool
  unused_parts = ('mtp.',)

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    del config
    return tensor_names.with_experts(self._common(), 'mlp.')

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    together = tensor_names.with_joined_experts(self._common(), 'mlp.')
    return (*super().forms(config), tensor_names.Form(together))

  def _common(self) -> Mapping[str, str]:
    return delta_fields.names(qwen2_moe.SHARED, joined=self.joined)

  def row_groups(self, config: DecoderConfig, path: str) -> int:
    return delta_fields.row_groups(config, path, joined=self.joined)

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    return tensor_names.Form(
      tensor_names.with_gguf_experts(self.names_of(config))
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    delta_fields.read_gguf(metadata, values)
    expert_fields.read_gguf(
      metadata, values, 'num_experts', 'moe_intermediate_size'
    )
    values['shared_expert_intermediate_size'] = metadata.number(
      '{arch}.expert_shared_feed_forward_length'
    )

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return delta_fields.stored(config, name, shape, tiled=not self.joined)


class Qwen35Moe(_WithExperts):
  """Qwen 3.5 with experts in all layers."""

  model_type = 'qwen3_5_moe_text'
  about = About(
    'Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B, Qwen3.6-35B-A3B',
    'as `qwen3_5_text`, with experts and a gated MLP for all tokens',
    2.2e-05,
  )
  architecture = 'Qwen3_5MoeForCausalLM'
  gguf = 'qwen35moe'
  joined = False

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    return {
      'num_kv_heads': f.number('num_key_value_heads'),
      # All layers have experts instead.
      'mlp_dim': f.size('moe_intermediate_size'),
      'norm_eps': f.size('rms_norm_eps', float),
      'max_positions': f.size('max_position_embeddings'),
    }

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('mlp_only_layers', [], None)
    f.only('norm_topk_prob', True)  # transformers does not look at it.
    found = delta_fields.read(f)
    experts = qwen3_moe.read_experts(
      f,
      normalised=True,
      shared=f.number('shared_expert_intermediate_size'),
      shared_gate=True,
    )
    expert_fields.skip_training(f)
    pattern = expert_fields.with_experts(f, found['layer_pattern'], experts)
    return {**found, 'layer_pattern': pattern}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    delta_fields.write(config, values)
    qwen3_moe.write_experts(config, values)
    shared = expert_fields.of(config).shared
    values['shared_expert_intermediate_size'] = shared
    for field in (
      *('intermediate_size', 'decoder_sparse_step', 'mlp_only_layers'),
      'norm_topk_prob',
    ):
      del values[field]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    del values['intermediate_size']


class Qwen3Next(_WithExperts):
  """Experts in some layers or all; projections joined by head."""

  model_type = 'qwen3_next'
  about = About(
    'Qwen3-Next-80B-A3B, Qwen3-Coder-Next',
    'as `qwen3_5_moe_text`, with experts in some layers or all',
    3.3e-05,
  )
  architecture = 'Qwen3NextForCausalLM'
  gguf = 'qwen3next'
  joined = True

  def read(self, f: Fields) -> dict[str, Any]:
    found = delta_fields.read(f)
    experts = qwen3_moe.read_experts(
      f, shared=f.number('shared_expert_intermediate_size'), shared_gate=True
    )
    expert_fields.skip_training(f)
    pattern = expert_fields.with_experts(
      f, found['layer_pattern'], experts, expert_fields.sparse_layers(f)
    )
    return {**found, 'layer_pattern': pattern}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    delta_fields.write(config, values)
    qwen3_moe.write_experts(config, values)
    shared = expert_fields.of(config).shared
    values['shared_expert_intermediate_size'] = shared

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    # Queries, keys and values are rows of one tensor, gates of another.
    apart = delta_fields.names(qwen2_moe.SHARED, joined=False)
    form = super().gguf_form(config)
    moved = [f'layers.attention.in_{name}' for name in 'qkvz']
    return dataclasses.replace(
      form,
      names={**form.names, **{path: apart[path] for path in moved}},
      row_groups=dict.fromkeys(moved, 1),
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    # llama.cpp has experts in every layer, and such weights.
    values |= {'norm_topk_prob': True, 'mlp_only_layers': []}
    values['decoder_sparse_step'] = 1
