"""nanochat."""

from typing import Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP


class NanoChat(Family):
  """Norms without a scale, of embeddings too; rotation by negative angles."""

  model_type = 'nanochat'
  about = About(
    'nanochat',
    'norms without a scale, of embeddings and of rotated q and k, too; '
    'negative angles, MLP without a gate, squared ReLU, capped logits',
    2.0e-06,
  )
  architecture = 'NanoChatForCausalLM'
  names = tensor_names.NANOCHAT

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'relu2')
    f.no_window()
    return {
      **f.biases(),
      'norm_scale': False,
      'embedding_norm': True,
      'qk_norm': 'head',
      'qk_norm_last': True,
      'turn_back': True,
      'activation': 'relu2',
      'mlp': PlainMLP(),
      'logit_softcap': f.optional('final_logit_softcapping', float),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = 'relu2'
    values['final_logit_softcapping'] = config.logit_softcap
