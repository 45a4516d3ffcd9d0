"""HyperCLOVA X SEED."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.granite import Granite


class HyperCLOVAX(Granite):
  """Granite with norms after; its logits are multiplied."""

  model_type = 'hyperclovax'
  about = About(
    'HyperCLOVA X SEED Think 14B',
    'multipliers of embeddings, scores, residuals and logits; norms after',
    7.4e-06,
  )
  architecture = 'HyperCLOVAXForCausalLM'
  names = tensor_names.HYPERCLOVAX
  gguf = None

  def read(self, f: Fields) -> dict[str, Any]:
    values = super().read(f)
    f.only('mlp_bias', False)
    del values['logit_divisor']
    return {
      **values,
      'logit_scale': f.number('logits_scaling', float),
      'post_norm': f.boolean('use_post_norm'),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    super().write(config, values)
    values['logits_scaling'] = config.logit_scale
    values['use_post_norm'] = config.post_norm
