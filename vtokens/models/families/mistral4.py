"""Mistral Small 4, also inside Mistral Small's wrapper."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import (
  expert_fields,
  latent_fields,
  query_growth,
  rope_json,
  tensor_names,
)
from vtokens.models.families.config_json import Fields
from vtokens.models.families.deepseek import Deepseek
from vtokens.models.families.family import About

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Mistral4(Deepseek):
  """Queries are scaled by their position; experts are chosen by softmax."""

  model_type = 'mistral4'
  about = About(
    'Mistral Small 4',
    'latent attention, YaRN, queries scaled by their position; experts beside '
    'an MLP for all tokens',
    7.1e-06,
  )
  architecture = 'Mistral4ForCausalLM'
  gguf = 'mistral4'

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    split, joined = super().forms(config)
    return joined, split

  def check_width(self, f: Fields) -> None:
    latent_fields.check_width(f, 'qk_nope_head_dim', 'qk_rope_head_dim')

  def read_rope(self, f: Fields) -> Rope:
    rope = rope_json.read(f, also=query_growth.ALSO)
    if rope.type != 'yarn':
      raise f.fail('rope_type', "'yarn' (others: not supported)", rope.type)
    return rope

  def read_experts(self, f: Fields, kind: LayerKind) -> dict[str, Any]:
    experts = expert_fields.grouped(
      f, normalised=f.boolean('norm_topk_prob'), floor=1e-20
    )
    return {
      'query_growth': query_growth.read(f),
      'interleaved': f.boolean('rope_interleave'),
      'layer_pattern': expert_fields.with_experts(
        f, (kind,), experts, expert_fields.first_dense(f)
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    values['rope_interleave'] = config.interleaved
    values['rope_parameters'] = {
      **values.pop('rope_scaling'),
      'rope_theta': values.pop('rope_theta'),
      **query_growth.written(config),
    }

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    expert_fields.check_gguf_scores(
      metadata, expert_fields.SOFTMAX, default=expert_fields.SOFTMAX
    )
    query_growth.read_gguf(metadata, values, length=...)
