"""Seed-OSS, a family of models that vtokens does not have."""

from vtokens.models.decoder_config import LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.family import Family


class SeedOss(Family):
  """Llama's layout, with biases of q, k and v and another one of o."""

  model_type = 'seed_oss'
  architecture = 'SeedOssForCausalLM'

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
