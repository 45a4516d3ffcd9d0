"""A gated delta net: a recurrent layer in the place of attention."""

import dataclasses
from typing import Any, ClassVar

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from vtokens.models import layers
from vtokens.models.cache import LayerCache
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers import causal_conv, delta_rule, packed_segments


@struct.dataclass
class States(LayerCache):
  """Recurrent states after the last token of each of M segments.

  Attributes:
    state: states of the heads, float32.
    inputs: last inputs of a causal convolution of W taps, oldest first; zeros
      before the first token.
  """

  AXES = {  # noqa: RUF012
    'state': ('batch', 'segment', 'heads', 'state_in', 'state_out'),
    'inputs': ('batch', 'segment', 'tap', 'channel'),
  }

  state: Float[Array, '*L B M N A C']
  inputs: Float[Array, '*L B M W1 D']


@dataclasses.dataclass(frozen=True, repr=False)
class DeltaNet(Settings):
  """Makes a gated delta net; see `decoder_config.BlockPart`.

  Attributes:
    key_heads: heads of queries and keys (R), a divisor of `value_heads`.
    value_heads: heads of values (N). Each has a state.
    key_dim: width of a query and a key (A).
    value_dim: width of a value (C).
    taps: inputs that an output of the convolution depends on (W).
  """

  recurrent: ClassVar[bool] = True

  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  taps: int

  def __post_init__(self) -> None:
    if self.value_heads % self.key_heads:
      raise ValueError(
        f'{self.value_heads} heads of values are not a multiple of '
        f'{self.key_heads} heads of keys'
      )

  @property
  def token_flops(self) -> float:
    """FLOPs of a token: a read and a change of each state, and an output."""
    return 6.0 * self.value_heads * self.key_dim * self.value_dim

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The mixer of one layer."""
    return GatedDeltaNet(self, config, dtype, rngs)


class GatedDeltaNet(nnx.Module):
  """See `DeltaNet`.

  Queries, keys and values go through one convolution. The state of each head
  obeys the gated delta rule (`delta_rule.py`). Its output is normed and gated.
  """

  def __init__(
    self,
    settings: DeltaNet,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.settings = settings
    self.eps = config.norm_eps
    dim = config.embed_dim
    keys = (settings.key_heads, settings.key_dim)
    values = (settings.value_heads, settings.value_dim)

    def matrix(heads: tuple[int, ...], axis: str, **more: Any) -> Any:
      axes = ('embed', axis, 'head')[: 1 + len(heads)]
      return layers.param(rngs, (dim, *heads), axes, dtype, inputs=1, **more)

    self.in_q = matrix(keys, 'kv_heads')
    self.in_k = matrix(keys, 'kv_heads')
    self.in_v = matrix(values, 'heads')
    self.in_z = matrix(values, 'heads')
    self.in_b = matrix(values[:1], 'heads', exact=True)
    self.in_a = matrix(values[:1], 'heads', exact=True)
    channels = 2 * settings.key_heads * settings.key_dim
    channels += settings.value_heads * settings.value_dim
    self.kernel = layers.param(
      rngs, (channels, settings.taps), ('channel', 'tap'), dtype, taps=True
    )
    # In float32 whatever the dtype: their exponential decides how much of a
    # state is left after many tokens.
    exact = jnp.dtype(jnp.float32)
    init = jax.nn.initializers
    self.rates = layers.param(
      rngs, values[:1], ('heads',), exact, init.uniform(2.0)
    )
    self.step_bias = layers.param(
      rngs, values[:1], ('heads',), exact, init.ones
    )
    self.out_scale = layers.param(rngs, values[1:], ('head',), dtype, init.ones)
    self.out = layers.param(
      rngs, (*values, dim), ('heads', 'head', 'embed'), dtype, inputs=2
    )

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], States]:
    y, states = self._run(x, tokens)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    y = self.out_scale[...] * y.astype(x.dtype)
    z = layers.product('btd,dnc->btnc', x, self.in_z)
    y = (y * jax.nn.silu(z.astype(jnp.float32))).astype(x.dtype)
    return layers.product('btnc,ncd->btd', y, self.out), states

  def new_cache(self, x: Float[Array, 'B T D'], tokens: LayerInputs) -> States:
    """The states of `__call__` alone."""
    return self._run(x, tokens)[1]

  def _run(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T N C'], States]:
    """Outputs of the delta rule, float32, and the states after the tokens."""
    settings = self.settings
    # Later caches begin with the states of earlier ones.
    before = tokens.caches[-1] if tokens.caches else None
    order = packed_segments.order_of(
      tokens, None if before is None else before.state.shape[1]
    )
    rows, length, _ = x.shape
    mixed = jnp.concatenate(
      [
        layers.product('btd,dnh->btnh', x, matrix).reshape(rows, length, -1)
        for matrix in (self.in_q, self.in_k, self.in_v)
      ],
      axis=-1,
    )
    mixed, inputs = causal_conv.convolve(
      mixed,
      self.kernel[...],
      order,
      initial=None if before is None else before.inputs,
    )
    mixed = jax.nn.silu(mixed)
    width = settings.key_heads * settings.key_dim
    q, k, v = jnp.split(mixed, (width, 2 * width), axis=-1)
    keys = (rows, length, settings.key_heads, settings.key_dim)
    q, k = _unit(q.reshape(keys)), _unit(k.reshape(keys))
    rate = jax.nn.sigmoid(layers.product('btd,dn->btn', x, self.in_b))
    step = layers.product('btd,dn->btn', x, self.in_a).astype(jnp.float32)
    step = jax.nn.softplus(step + self.step_bias[...])
    y, state = delta_rule.scan(
      q * settings.key_dim**-0.5,
      k,
      v.reshape(rows, length, settings.value_heads, settings.value_dim),
      -jnp.exp(self.rates[...]) * step,
      rate,
      order,
      None if before is None else before.state,
    )
    return y, States(state=state, inputs=inputs)


def _unit(x: Float[Array, 'B T R A']) -> Float[Array, 'B T R A']:
  """Vectors of length 1, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)
