"""StarCoder 2."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import family, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_GELU = 'gelu_pytorch_tanh'


class StarCoder2(Family):
  """LayerNorm, biases, an MLP without a gate."""

  model_type = 'starcoder2'
  about = About(
    'StarCoder2', 'LayerNorm, biases, MLP without a gate, window', 2.4e-06
  )
  architecture = 'Starcoder2ForCausalLM'
  names = tensor_names.STARCODER2
  norm_eps = 'norm_epsilon'
  gguf = 'starcoder2'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', _GELU)
    f.only('layer_types', None)
    f.normalised('residual_dropout', 'embedding_dropout')  # Of training.
    bias = f.boolean('use_bias')
    kind = LayerKind(rope_json.read(f), f.optional('sliding_window', int))
    return {
      'qkv_bias': bias,
      'out_bias': bias,
      'norm': 'layer',
      'norm_bias': True,
      'activation': 'gelu_tanh',
      'mlp': PlainMLP(bias=bias),
      'layer_pattern': (kind,),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    family.write_window(config, values)
    values['hidden_act'] = _GELU
    values['use_bias'] = config.out_bias
    del values['attention_bias']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    values['use_bias'] = metadata.has_tensor('blk.0.attn_q.bias')
