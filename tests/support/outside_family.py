"""A family of models that neither vtokens nor transformers has."""

import transformers

from vtokens.models.decoder_config import LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.family import Family


class OutsideConfig(transformers.SeedOssConfig):
  model_type = 'outside'


class OutsideForCausalLM(transformers.SeedOssForCausalLM):
  config_class = OutsideConfig


transformers.AutoConfig.register('outside', OutsideConfig)
transformers.AutoModelForCausalLM.register(OutsideConfig, OutsideForCausalLM)


class Outside(Family):
  """Llama's layout, with biases of q, k and v and another one of o."""

  model_type = 'outside'
  architecture = 'OutsideForCausalLM'

  def read(self, f):
    f.only('hidden_act', 'silu')
    return {
      'qkv_bias': f.boolean('attention_bias'),
      'out_bias': f.boolean('attention_out_bias'),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config, values):
    values['attention_bias'] = config.qkv_bias
    values['attention_out_bias'] = config.out_bias
