"""A family with an MLP that vtokens does not have."""

import dataclasses

import flax.nnx as nnx
import jax
import transformers

from vtokens.models import layers
from vtokens.models.decoder_config import LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.family import Family


@dataclasses.dataclass(frozen=True)
class SquaredRelu:
  """An MLP without a gate: `down(relu(up(x))^power)`."""

  power: int = 2

  def __call__(self, config, dtype, rngs):
    return _SquaredRelu(self.power, config, dtype, rngs)


class _SquaredRelu(nnx.Module):
  def __init__(self, power, config, dtype, rngs):
    dim, width = config.embed_dim, config.mlp_dim
    self.power = power
    self.up = layers.param(
      rngs, (dim, width), ('embed', 'mlp'), dtype, inputs=1
    )
    self.down = layers.param(
      rngs, (width, dim), ('mlp', 'embed'), dtype, inputs=1
    )

  def __call__(self, x, tokens):
    y = jax.nn.relu(layers.product('btd,df->btf', x, self.up))
    return layers.product('btf,fd->btd', y**self.power, self.down)


_NAMES = {
  path: name
  for path, name in tensor_names.PRE_NORM.items()
  if path != 'layers.mlp.gate'
}


class OutsideMLPConfig(transformers.ArceeConfig):
  model_type = 'outside_mlp'


class OutsideMLPForCausalLM(transformers.ArceeForCausalLM):
  config_class = OutsideMLPConfig


transformers.AutoConfig.register('outside_mlp', OutsideMLPConfig)
transformers.AutoModelForCausalLM.register(
  OutsideMLPConfig, OutsideMLPForCausalLM
)


class OutsideMLP(Family):
  """Llama but for its MLP."""

  model_type = 'outside_mlp'
  architecture = 'OutsideMLPForCausalLM'
  names = _NAMES

  def read(self, f):
    f.only('hidden_act', 'relu2')
    kind = LayerKind(rope_json.read(f))
    return {**f.biases(), 'mlp': SquaredRelu(), 'layer_pattern': (kind,)}

  def write(self, config, values):
    values['hidden_act'] = 'relu2'
