"""The token mixer Mamba 2 (arXiv 2405.21060)."""

import dataclasses
import functools
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
from vtokens.models.mixers import causal_conv, selective_scan
from vtokens.models.mixers.packed_segments import order_of


@struct.dataclass
class SelectiveStates(LayerCache):
  """What a Mamba 2 layer keeps of each of M segments.

  Attributes:
    state: states of the heads, float32.
    x: last inputs of the convolution of x, oldest first.
    b: the same for B.
    c: the same for C.
  """

  AXES = {  # noqa: RUF012
    'state': ('batch', 'segment', 'heads', 'head', 'state'),
    'x': ('batch', 'segment', 'tap', 'heads'),
    'b': ('batch', 'segment', 'tap', 'state'),
    'c': ('batch', 'segment', 'tap', 'state'),
  }

  state: Float[Array, '*L B M N P S']
  x: Float[Array, '*L B M W NP']
  b: Float[Array, '*L B M W RS']
  c: Float[Array, '*L B M W RS']


@dataclasses.dataclass(frozen=True, repr=False)
class Mamba2(Settings):
  """Makes the mixer; see `decoder_config.BlockPart`.

  Attributes:
    heads: number of heads (N).
    width: inputs of a head (P).
    size: numbers of a state for each input (S).
    groups: groups of heads that share B and C (R).
    taps: inputs of the convolution.
    conv_bias: whether the convolution has a bias.
    bias: whether the projection to the inputs has a bias.
    out_bias: whether the projection of the output has a bias.
    norm_groups: parts of the output that are normed by themselves; 0 for no
      norm.
    norm_first: whether the output is normed before it is gated.
    scale: multiplies the input.
    scales: multiply the gate, x, B, C and the step sizes.
  """

  heads: int
  width: int
  size: int
  groups: int
  taps: int
  conv_bias: bool = True
  bias: bool = False
  out_bias: bool = False
  norm_groups: int = 1
  norm_first: bool = False
  scale: float = 1.0
  scales: tuple[float, ...] = (1.0,) * 5

  recurrent: ClassVar[bool] = True

  def __post_init__(self) -> None:
    # ValueError: the caller that reads the file adds its name.
    if self.heads % self.groups:
      raise ValueError(
        f'{self.heads} heads of Mamba 2 are not a multiple of its '
        f'{self.groups} groups'
      )

  @property
  def token_flops(self) -> float:
    """FLOPs of a token: a change of each state, and an output."""
    return 6.0 * self.heads * self.width * self.size

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The mixer of one layer."""
    return Mamba2Mixer(self, config, dtype, rngs)


class Mamba2Mixer(nnx.Module):
  """See `Mamba2`."""

  def __init__(
    self,
    settings: Mamba2,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.settings, self.eps = settings, config.norm_eps
    dim, heads, width = config.embed_dim, settings.heads, settings.width
    shared = (settings.groups, settings.size)
    zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones

    def matrix(
      shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1
    ) -> Any:
      return layers.param(rngs, shape, axes, dtype, inputs=inputs)

    def vector(
      shape: tuple[int, ...], axes: tuple[str, ...], init: Any = zeros
    ) -> Any:
      return layers.param(rngs, shape, axes, dtype, init)

    inner = ('embed', 'heads', 'head')
    self.in_gate = matrix((dim, heads, width), inner)
    self.in_x = matrix((dim, heads, width), inner)
    self.in_b = matrix((dim, *shared), ('embed', 'group', 'state'))
    self.in_c = matrix((dim, *shared), ('embed', 'group', 'state'))
    # Small, and the states depend on it exponentially.
    self.in_step = layers.param(
      rngs, (dim, heads), ('embed', 'heads'), dtype, inputs=1, exact=True
    )
    if settings.bias:
      self.in_gate_bias = vector((heads, width), inner[1:])
      self.in_x_bias = vector((heads, width), inner[1:])
      self.in_b_bias = vector(shared, ('group', 'state'))
      self.in_c_bias = vector(shared, ('group', 'state'))
      self.in_step_bias = vector((heads,), ('heads',))

    def kernel(channels: int, axis: str) -> Any:
      return layers.param(
        rngs, (channels, settings.taps), (axis, 'tap'), dtype, taps=True
      )

    channels = settings.groups * settings.size
    self.conv_x = kernel(heads * width, 'heads')
    self.conv_b = kernel(channels, 'state')
    self.conv_c = kernel(channels, 'state')
    if settings.conv_bias:
      self.conv_x_bias = vector((heads * width,), ('heads',))
      self.conv_b_bias = vector((channels,), ('state',))
      self.conv_c_bias = vector((channels,), ('state',))
    # In float32 whatever the dtype: their exponential decides how much of a
    # state is left after many tokens.
    exact = jnp.dtype(jnp.float32)
    self.log_decay = layers.param(rngs, (heads,), ('heads',), exact, zeros)
    self.step_bias = layers.param(rngs, (heads,), ('heads',), exact, zeros)
    self.skip = vector((heads,), ('heads',), ones)
    if settings.norm_groups:
      self.gated_norm = vector((heads * width,), ('heads',), ones)
    self.out = matrix((heads, width, dim), ('heads', 'head', 'embed'), 2)
    if settings.out_bias:
      self.out_bias = vector((dim,), ('embed',))

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> tuple[Float[Array, 'B T D'], SelectiveStates]:
    settings = self.settings
    x = layers.scaled(x, settings.scale)
    before = tokens.caches[-1] if tokens.caches else None
    order = order_of(tokens, None if before is None else before.state.shape[1])
    windows = {}

    def convolved(name: str) -> Float[Array, 'B T C']:
      """x, B or C after convolution and activation."""
      inputs = self._input(x, name)
      y, windows[name] = causal_conv.convolve(
        inputs.reshape(*x.shape[:2], -1),
        getattr(self, f'conv_{name}')[...],
        order,
        bias=getattr(self, f'conv_{name}_bias')[...]
        if settings.conv_bias
        else None,
        initial=None if before is None else getattr(before, name),
      )
      return jax.nn.silu(y).reshape(inputs.shape)

    inputs, b, c = convolved('x'), convolved('b'), convolved('c')
    steps = self._input(x, 'step').astype(jnp.float32)
    steps = jax.nn.softplus(steps + self.step_bias[...])
    decay = -jnp.exp(self.log_decay[...])
    initial = None if before is None else before.state

    # Its products are cheap, and large to keep for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def scan(inputs: Array, steps: Array, b: Array, c: Array) -> Any:
      return selective_scan.scan(inputs, steps, decay, b, c, order, initial)

    y, state = scan(inputs, steps, b, c)
    skip = self.skip[...].astype(jnp.float32)[:, None]
    y = self._gated(
      y + inputs.astype(jnp.float32) * skip,
      self._input(x, 'gate').astype(jnp.float32),
    )
    out = layers.product('btnp,npd->btd', y.astype(x.dtype), self.out)
    if settings.out_bias:
      out = out + self.out_bias[...]
    return out, SelectiveStates(state, **windows)

  def new_cache(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> SelectiveStates:
    """The states after the tokens, for later tokens."""
    return self(x, tokens)[1]

  def _input(self, x: Float[Array, 'B T D'], name: str) -> Array:
    """One part of the projection of the residual stream."""
    spec = 'btd,dn->btn' if name == 'step' else 'btd,dnp->btnp'
    y = layers.product(spec, x, getattr(self, f'in_{name}'))
    if self.settings.bias:
      y = y + getattr(self, f'in_{name}_bias')[...]
    names = ('gate', 'x', 'b', 'c', 'step')
    return layers.scaled(y, self.settings.scales[names.index(name)])

  def _gated(
    self, y: Float[Array, 'B T N P'], gate: Float[Array, 'B T N P']
  ) -> Float[Array, 'B T N P']:
    """The output, gated and normed, in float32."""
    settings, gate = self.settings, jax.nn.silu(gate)
    if not settings.norm_groups:
      return y * gate
    if not settings.norm_first:
      y = y * gate
    parts = y.reshape(*y.shape[:2], settings.norm_groups, -1)
    mean = jnp.mean(parts * parts, axis=-1, keepdims=True)
    parts = parts * jax.lax.rsqrt(mean + self.eps)
    scale = self.gated_norm[...].astype(jnp.float32)
    y = parts.reshape(y.shape) * scale.reshape(y.shape[2:])
    return y * gate if settings.norm_first else y
