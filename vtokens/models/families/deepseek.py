"""DeepSeek V2 and V3, and models of the same formulas."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import expert_fields, latent_fields, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.latent_family import LatentFamily

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_SHARED = latent_fields.names(
  tensor_names.with_shared_expert(tensor_names.PRE_NORM)
)


class Deepseek(LatentFamily):
  """Latent attention; after the first layers experts.

  Attributes:
    implied: field that the config class in transformers lacks -> the value that
      its model implements.
  """

  names = tensor_names.with_experts(_SHARED, 'mlp.')
  implied: Mapping[str, Any] = {}

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    joined = tensor_names.with_joined_experts(_SHARED, 'mlp.')
    names = latent_fields.names_of(config, joined)
    return (*super().forms(config), tensor_names.Form(names))

  def read(self, f: Fields) -> dict[str, Any]:
    for field, value in self.implied.items():
      f.only(field, value)
    expert_fields.skip_training(f)
    found = super().read(f)
    (kind,) = found['layer_pattern']
    return {**found, **self.read_experts(f, kind)}

  @abc.abstractmethod
  def read_experts(self, f: Fields, kind: LayerKind) -> dict[str, Any]:
    """Reads experts and the order of the rotated values.

    Args:
      f: the fields.
      kind: a layer without experts.
    """

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    expert_fields.write_grouped(config, values)

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    names = tensor_names.with_gguf_experts(self.names_of(config))
    return tensor_names.Form(names)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    latent_fields.check_gguf_scaling(metadata, values)
    expert_fields.read_gguf(
      metadata, values, 'n_routed_experts', 'moe_intermediate_size'
    )
    expert_fields.read_gguf_scores(metadata, values)
    # The family of the file depends on it; see `gguf_config`.
    metadata.get('{arch}.expert_gating_func')
    values['first_k_dense_replace'] = metadata.per_layer(
      '{arch}.leading_dense_block_count', 1, 0
    )[0]


class DeepseekV2(Deepseek):
  """Experts are chosen by softmax, in groups or not."""

  model_type = 'deepseek_v2'
  about = About(
    'DeepSeek-V2, V2.5, V2-Lite, Coder-V2',
    'latent attention; experts after the first layers, also an MLP for all '
    'tokens',
    5.6e-06,
    'yes, as `deepseek_v3`',
  )
  architecture = 'DeepseekV2ForCausalLM'
  implied: Mapping[str, Any] = {'scoring_func': 'softmax', 'moe_layer_freq': 1}

  def read_experts(self, f: Fields, kind: LayerKind) -> dict[str, Any]:
    # transformers ignores it, the models' own code does not.
    f.only('norm_topk_prob', False, None)
    f.only('mlp_bias', False)
    f.only('topk_method', 'greedy', 'group_limited_greedy')
    if f.get('topk_method') == 'greedy':
      f.normalised('n_group', 'topk_group')
      experts = expert_fields.grouped(f, groups=1, active_groups=1)
    else:
      experts = expert_fields.grouped(f, group_best=1)
    return {
      'interleaved': True,
      'layer_pattern': expert_fields.with_experts(
        f, (kind,), experts, expert_fields.first_dense(f)
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    grouped = expert_fields.of(config).routing.groups > 1
    values['topk_method'] = 'group_limited_greedy' if grouped else 'greedy'

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    super().read_gguf(metadata, values)
    if values['n_group'] > 1:
      raise metadata.unexpected(
        '{arch}.expert_group_count',
        values['n_group'],
        '1: llama.cpp chooses groups in another way than DeepSeek-V2',
      )
    if values['norm_topk_prob']:
      raise metadata.unexpected(
        '{arch}.expert_weights_norm',
        True,
        'false: weights of experts that are chosen by softmax add up to less '
        'than 1 in DeepSeek-V2',
      )
    values['topk_method'] = 'greedy'
    del values['rope_interleave']


class DeepseekV3(Deepseek):
  """Experts are chosen by corrected sigmoids, in groups."""

  model_type = 'deepseek_v3'
  about = About(
    'DeepSeek-V3, V3.1, R1, Kimi K2, Moonlight',
    'latent attention; experts after the first layers, chosen by corrected '
    'sigmoids in groups, and an MLP for all tokens',
    1.3e-05,
  )
  architecture = 'DeepseekV3ForCausalLM'
  gguf: str | None = 'deepseek2'
  extra_layers = True
  implied: Mapping[str, Any] = {
    'scoring_func': 'sigmoid',
    'topk_method': 'noaux_tc',
    'moe_layer_freq': 1,
  }

  def read_experts(self, f: Fields, kind: LayerKind) -> dict[str, Any]:
    # Layers that predict further tokens are not read.
    f.normalised('num_mtp_layers', 'num_nextn_predict_layers')
    return {
      'interleaved': f.boolean('rope_interleave'),
      'layer_pattern': expert_fields.with_experts(
        f,
        (kind,),
        expert_fields.corrected(f),
        expert_fields.first_dense(f),
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    values['rope_interleave'] = config.interleaved
    values['num_nextn_predict_layers'] = 0


class SarvamMLA(DeepseekV3):
  """DeepSeek V3 with other sizes; first files have older names."""

  model_type = 'sarvam_mla'
  gguf = None
  about = About(
    'Sarvam 105B',
    'as `deepseek_v3`',
    6.5e-06,
  )
  aliases: Mapping[str, str] = {
    'num_experts': 'n_routed_experts',
    'num_shared_experts': 'n_shared_experts',
  }
