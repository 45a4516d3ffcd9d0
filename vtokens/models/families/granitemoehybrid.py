"""Granite 4, with Mamba 2 or with attention alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import (
  expert_fields,
  gguf_stored,
  mamba_fields,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import (
  FULL,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.families.granite import Granite
from vtokens.models.families.granitemoe import GraniteMoe
from vtokens.models.mlps.experts import Experts

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_LAYER = 'model.layers.{}.'
_SHARED = _LAYER + 'shared_mlp.'
_MAMBA = mamba_fields.names(_LAYER + 'mamba.')
_DENSE = {
  **tensor_names.PRE_NORM,
  **_MAMBA,
  'layers.mlp.gate': _SHARED + 'input_linear.weight',
  'layers.mlp.up': _SHARED + 'input_linear.weight',
  'layers.mlp.down': _SHARED + 'output_linear.weight',
}


def _sparse(names: Mapping[str, str]) -> Mapping[str, str]:
  """Names with experts beside the shared MLP."""
  return {
    **names,
    **_MAMBA,
    'layers.mlp.shared.gate': _SHARED + 'input_linear.weight',
    'layers.mlp.shared.up': _SHARED + 'input_linear.weight',
    'layers.mlp.shared.down': _SHARED + 'output_linear.weight',
  }


class GraniteMoeHybrid(Granite):
  """Granite with Mamba 2 in most layers or in none, with experts or without."""

  model_type = 'granitemoehybrid'
  about = About(
    'Granite 4 H (micro, tiny, small), dense Granite 4 (micro)',
    'Mamba 2; experts; multipliers of embeddings, scores, residuals and logits',
    5.1e-06,
  )
  architecture = 'GraniteMoeHybridForCausalLM'
  gguf = 'granitehybrid'
  names = _DENSE

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    return self.forms(config)[0].names

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    if config.layer_kinds[0].mlp is None:
      return (tensor_names.Form(_DENSE),)
    return tuple(
      dataclasses.replace(form, names=_sparse(form.names))
      for form in GraniteMoe().forms(config)
    )

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    # Without experts only the shared MLP is there.
    width = f.number('shared_intermediate_size')
    return {**super().read_sizes(f), 'mlp_dim': width}

  def read(self, f: Fields) -> dict[str, Any]:
    expert_fields.skip_training(f)
    f.only('position_embedding_type', None, 'rope', 'nope')
    # It is not read without positions.
    rope: Rope | None = rope_json.read(f)
    if f.get('position_embedding_type') != 'rope':
      rope = None
    types = f.per_layer('layer_types', (FULL, mamba_fields.RECURRENT)) or []
    kinds = {FULL: LayerKind(rope)}
    if mamba_fields.RECURRENT in types:
      mixer = mamba_fields.read(f)
      kinds[mamba_fields.RECURRENT] = LayerKind(None, mixer=mixer)
    else:
      f.only('hidden_act', 'silu')
      f.normalised(*(field for field in f.values if 'mamba_' in field))
      f.normalised('time_step_limit')
    pattern = shortest_pattern([kinds[kind] for kind in types])
    if f.get('num_local_experts'):
      routing = expert_fields.routing(
        f,
        expert_fields.count(f, 'num_local_experts'),
        expert_fields.count(f, 'num_experts_per_tok'),
        scores='chosen',
      )
      experts = Experts(
        routing,
        f.size('intermediate_size'),
        shared=f.number('shared_intermediate_size'),
      )
      pattern = expert_fields.with_experts(f, pattern, experts)
    else:
      f.normalised('num_experts_per_tok', 'intermediate_size')
    return {**super().read_multipliers(f), 'layer_pattern': pattern}

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    kinds = config.layer_kinds
    values['layer_types'] = mamba_fields.layer_types(config)
    values['shared_intermediate_size'] = config.mlp_dim
    positions = any(kind.rope for kind in kinds)
    values['position_embedding_type'] = 'rope' if positions else None
    mixer = mamba_fields.of(config)
    if mixer is None:
      # transformers wants a divisor of a width, also without such layers.
      values['mamba_n_heads'] = 1
    else:
      mamba_fields.write(mixer, config, values)
    values['num_local_experts'] = 0
    if kinds[0].mlp is not None:
      experts = expert_fields.of(config)
      values['num_local_experts'] = experts.routing.experts
      values['num_experts_per_tok'] = experts.routing.active
      values['intermediate_size'] = experts.width

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    if config.layer_kinds[0].mlp is None:
      return tensor_names.Form({**tensor_names.PRE_NORM, **_MAMBA})
    names = tensor_names.with_gguf_experts(self.names_of(config))
    shared = tensor_names.with_shared_expert(names)
    # These routers have no correction.
    return tensor_names.Form(
      tensor_names.without(shared, 'layers.mlp.correction')
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_multipliers(metadata, values)
    attention = metadata.heads_of_layers(values)
    if all(attention):
      raise metadata.unexpected(
        '{arch}.attention.head_count_kv', 'of all layers', 'a layer of Mamba 2'
      )
    mamba_fields.read_gguf(metadata, values, attention.index(False))
    rotated = metadata.get('{arch}.rope.scaling.finetuned', True)
    values |= {
      'layer_types': [
        FULL if one else mamba_fields.RECURRENT for one in attention
      ],
      'position_embedding_type': 'rope' if rotated else 'nope',
      'num_local_experts': 0,
    }
    shared = metadata.get('{arch}.expert_shared_feed_forward_length')
    if metadata.get('{arch}.expert_count'):
      expert_fields.read_gguf(metadata, values, 'num_local_experts')
    else:
      # llama.cpp gives the MLP this width.
      shared = values['intermediate_size']
    values['shared_intermediate_size'] = shared

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return gguf_stored.recurrent(name, shape) or super().gguf_stored(
      config, name, shape
    )
