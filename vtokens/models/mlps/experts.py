"""An MLP of experts, of which each token uses a few."""

import dataclasses
import functools
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from vtokens.devices import partitioning
from vtokens.models import layers
from vtokens.models.decoder_config import DecoderConfig, Settings
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mlps import grouped, routing
from vtokens.models.mlps.plain_mlp import UngatedMLP
from vtokens.models.mlps.routing import Routing


@dataclasses.dataclass(frozen=True, repr=False)
class Experts(Settings):
  """Makes an MLP of experts; see `decoder_config.BlockPart`.

  Attributes:
    routing: how tokens choose experts.
    width: width of an expert (F).
    shared: width of an MLP that all tokens use besides; 0 for none.
    shared_gate: whether a gate scales the output of that MLP.
    biases: whether the experts' matrices have biases.
    clamp: bound of both inputs of `gpt_oss`'s gated unit; None for the usual
      unit with the config's activation.
    gain: factor in that unit's sigmoid.
    gated: whether experts, and the MLP that all tokens use, have a gate.
  """

  routing: Routing
  width: int
  shared: int = 0
  shared_gate: bool = False
  biases: bool = False
  clamp: float | None = None
  gain: float = 1.702
  gated: bool = True

  def __call__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> nnx.Module:
    """The MLP of one layer."""
    return ExpertMLP(self, config, dtype, rngs)


class _Matrices(nnx.Module):
  """The weights of all experts."""

  def __init__(
    self,
    settings: Experts,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    count, width, dim = (
      settings.routing.experts,
      settings.width,
      config.embed_dim,
    )
    active = settings.routing.active / count

    def matrix(
      shape: tuple[int, ...], axes: tuple[str, ...]
    ) -> nnx.Param[Array]:
      return layers.param(
        rngs,
        (count, *shape),
        ('expert', *axes),
        dtype,
        inputs=1,
        outer=1,
        active=active,
      )

    if settings.gated:
      self.gate = matrix((dim, width), ('embed', 'expert_mlp'))
    self.up = matrix((dim, width), ('embed', 'expert_mlp'))
    self.down = matrix((width, dim), ('expert_mlp', 'embed'))
    if settings.biases:

      def bias(size: int, axis: str) -> nnx.Param[Array]:
        zeros = jax.nn.initializers.zeros
        return layers.param(
          rngs,
          (count, size),
          ('expert', axis),
          dtype,
          zeros,
          outer=1,
          active=active,
        )

      if settings.gated:
        self.gate_bias = bias(width, 'expert_mlp')
      self.up_bias = bias(width, 'expert_mlp')
      self.down_bias = bias(dim, 'embed')


class ExpertMLP(nnx.Module):
  """See `Experts`.

  Each device along the axis of `expert` has some of the experts. It multiplies
  the tokens that chose these, and the devices sum their outputs. There is no
  capacity: no token is dropped. Padding is routed to no expert.
  """

  def __init__(
    self,
    settings: Experts,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.settings = settings
    self.activation = config.activation
    rule, dim = settings.routing, config.embed_dim
    zeros = jax.nn.initializers.zeros

    def exact(shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
      return layers.param(rngs, shape, axes, dtype, inputs=1, exact=True)

    self.router = exact((dim, rule.experts), ('embed', 'choice'))
    if rule.bias:
      self.router_bias = layers.param(
        rngs, (rule.experts,), ('choice',), dtype, zeros
      )
    if rule.correction:
      # In float32 whatever the dtype: it decides between close scores. In
      # transformers it is no parameter.
      self.correction = layers.param(
        rngs,
        (rule.experts,),
        ('choice',),
        jnp.dtype(jnp.float32),
        zeros,
        constant=True,
      )
    if rule.factors:
      self.router_factors = layers.param(
        rngs, (rule.experts,), ('choice',), dtype, jax.nn.initializers.ones
      )
    self.experts = _Matrices(settings, config, dtype, rngs)
    if settings.shared:
      width = settings.shared
      self.shared = (
        layers.GatedMLP(config, dtype, rngs, width)
        if settings.gated
        else UngatedMLP(config, dtype, rngs, bias=False, width=width)
      )
      if settings.shared_gate:
        self.shared_gate = exact((dim, 1), ('embed', 'one'))

  def __call__(
    self, x: Float[Array, 'B T D'], tokens: LayerInputs
  ) -> Float[Array, 'B T D']:
    y = self.routed(x, tokens)
    if not self.settings.shared:
      return y
    shared = self.shared(x, tokens)
    if self.settings.shared_gate:
      gate = jnp.einsum(
        'btd,do->bto',
        x,
        self.shared_gate[...],
        preferred_element_type=jnp.float32,
      )
      shared = (shared * jax.nn.sigmoid(gate)).astype(x.dtype)
    return y + shared

  def routed(
    self,
    x: Float[Array, 'B T D'],
    tokens: LayerInputs,
    compared: Float[Array, 'B T D'] | None = None,
  ) -> Float[Array, 'B T D']:
    """The experts' part, on each device for its own tokens and experts.

    Args:
      x: inputs of the experts.
      tokens: see `LayerInputs`.
      compared: inputs of the router; None if they are x.
    """
    router = {
      name: getattr(self, name)
      for name in ('router', 'router_bias', 'correction', 'router_factors')
      if hasattr(self, name)
    }
    graph, params = nnx.split((nnx.Dict(router), self.experts))
    inputs = (x,) if compared is None else (x, compared)
    real, mesh = tokens.positions >= 0, tokens.mesh
    run = functools.partial(_route, graph, self.settings, self.activation)
    if mesh is None or mesh.size == 1:
      platform = partitioning.platform(mesh)
      alone: Array = run(inputs, real, params, platform=platform, first=0)
      return alone
    moved = tokens.stationary
    specs = _weight_specs(params, stationary=moved)
    rows = 'batch_over_data' if moved else 'batch'
    batch = (
      partitioning.LOGICAL_AXIS_RULES[rows]
      if partitioning.is_divisible(mesh, rows, len(x))
      else None
    )
    expert = partitioning.LOGICAL_AXIS_RULES['expert']
    own = self.settings.routing.experts // mesh.shape[expert]
    width = 'fsdp' if moved else None

    def on_device(
      inputs: tuple[Array, ...], real: Bool[Array, 'B T'], params: Any
    ) -> Float[Array, 'B T D']:
      y = run(
        inputs,
        real,
        params,
        platform=partitioning.platform(mesh),
        first=jax.lax.axis_index(expert) * own,
        reduce=width,
      )
      total: Array = jax.lax.psum(y, expert)
      return total

    spread = PartitionSpec(batch, None, width)
    mapped = jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(spread, PartitionSpec(batch, None), specs),
      out_specs=spread,
      check_vma=False,
    )
    y: Array = mapped(inputs, real, params)
    return y


def _weight_specs(params: Any, *, stationary: bool) -> Any:
  """How devices hold the weights while they multiply.

  Args:
    params: the weights, with logical axes.
    stationary: whether they stay sharded over fsdp.
  """

  def spec(param: Any) -> Any:
    rules = [
      partitioning.LOGICAL_AXIS_RULES.get(axis)
      for axis in param.get_metadata('axes')
    ]
    return param.replace(
      PartitionSpec(
        *(None if rule == 'fsdp' and not stationary else rule for rule in rules)
      )
    )

  return jax.tree.map(
    spec, params, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )


def _route(
  graph: Any,
  settings: Experts,
  activation: str,
  inputs: tuple[Float[Array, 'B T D'], ...],
  real: Bool[Array, 'B T'],
  params: Any,
  *,
  platform: str,
  first: Any,
  reduce: str | None = None,
) -> Float[Array, 'B T D']:
  """Outputs of some of the experts.

  Args:
    graph: structure of the weights.
    settings: see `Experts`.
    activation: see `layers.ACTIVATIONS`.
    inputs: inputs of the experts, and of the router if it has others; or a part
      of their width.
    real: False for padding.
    params: weights of the router and of the experts.
    platform: cpu, gpu or tpu.
    first: number of the first of these experts.
    reduce: mesh axis over which the width of the tokens is sharded.
  """
  router, matrices = nnx.merge(graph, params)
  rule = settings.routing
  x, compared = inputs[0], inputs[-1]
  rows = x.reshape(-1, x.shape[-1])

  def whole(y: Array) -> Array:
    return y if reduce is None else jax.lax.psum(y, reduce)

  logits = whole(
    jnp.dot(
      compared.reshape(rows.shape),
      router['router'][...],
      preferred_element_type=jnp.float32,
    )
  )
  if rule.bias:
    logits = logits + router['router_bias'][...].astype(jnp.float32)
  correction = router['correction'][...] if rule.correction else None
  chosen, weights = routing.choose(rule, logits, correction)
  if rule.factors:
    weights = weights * router['router_factors'][...][chosen]
  chosen = jnp.where(real.reshape(-1, 1), chosen - first, -1)
  count = _count(matrices)
  order = grouped.sort(chosen.reshape(-1), count)
  product = functools.partial(grouped.product, order=order, platform=platform)

  def biased(y: Array, name: str) -> Array:
    if not settings.biases:
      return y
    bias: Array = getattr(matrices, name)[...]
    return y + bias[jnp.minimum(order.groups, count - 1)]

  sorted_rows = grouped.dispatch(rows, order, rule.active)
  gate = None
  if settings.gated:
    gate = biased(whole(product(sorted_rows, matrices.gate)), 'gate_bias')
  up = biased(whole(product(sorted_rows, matrices.up)), 'up_bias')
  inner = _unit(settings, activation, gate, up)
  share = grouped.dispatch(weights.reshape(-1, 1), order, 1).astype(x.dtype)
  # The down product is linear: weighted before it, its result need not be kept
  # for the gradient of the weights.
  y = product(inner * share, matrices.down)
  if settings.biases:
    inside = (order.groups < count)[:, None]
    down_bias = matrices.down_bias[...][jnp.minimum(order.groups, count - 1)]
    y = y + jnp.where(inside, down_bias * share, 0)
  summed: Array = grouped.combine(y, order, rule.active)
  return jnp.reshape(summed, x.shape)


def _count(matrices: _Matrices) -> int:
  """Number of experts whose weights are here."""
  up: Any = matrices.up
  values = up[...] if isinstance(up, nnx.Variable) else up.values[...]
  return len(values)


def _unit(
  settings: Experts, activation: str, gate: Array | None, up: Array
) -> Float[Array, 'M F']:
  """The values between the matrices of an expert."""
  if gate is None:
    return layers.ACTIVATIONS[activation](up)
  if settings.clamp is None:
    return layers.ACTIVATIONS[activation](gate) * up
  gate = jnp.minimum(gate, settings.clamp)
  up = jnp.clip(up, -settings.clamp, settings.clamp)
  return (up + 1) * gate * jax.nn.sigmoid(gate * settings.gain)
