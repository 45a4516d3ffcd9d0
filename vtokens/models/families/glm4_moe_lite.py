"""GLM-4.7-Flash."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import expert_fields
from vtokens.models.families.config_json import Fields
from vtokens.models.families.deepseek import DeepseekV3
from vtokens.models.families.family import About

_LAYERS = 'mlp_layer_types'


class Glm4MoeLite(DeepseekV3):
  """DeepSeek V3; its config lists the layers with experts."""

  model_type = 'glm4_moe_lite'
  about = About(
    'GLM-4.7-Flash',
    'as `deepseek_v3`',
    5.8e-06,
    'yes, as `deepseek_v3`',
  )
  architecture = 'Glm4MoeLiteForCausalLM'
  gguf = None  # Files say deepseek2.

  def read_experts(self, f: Fields, kind: LayerKind) -> dict[str, Any]:
    f.normalised('num_mtp_layers', 'num_nextn_predict_layers')
    types = f.per_layer(_LAYERS, ('dense', 'sparse')) or []
    sparse = [one == 'sparse' for one in types]
    if not any(sparse):
      raise f.fail(_LAYERS, 'a layer with experts', types)
    # Older: transformers does not read it.
    first = sparse.index(True)
    f.only('first_k_dense_replace', first if all(sparse[first:]) else None)
    return {
      'interleaved': f.boolean('rope_interleave'),
      'layer_pattern': expert_fields.with_experts(
        f, (kind,), expert_fields.corrected(f), sparse
      ),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    values[_LAYERS] = [
      'dense' if kind.mlp is None else 'sparse' for kind in config.layer_kinds
    ]
    del values['first_k_dense_replace']
