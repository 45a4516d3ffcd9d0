"""Runs the layers of a decoder on new tokens.

`LayerLoops.run` runs the layers after caches of earlier tokens. `encode` makes
the cache of tokens that come first; it has no gradient. Both run a loop over
each run of `layer_runs`. One pass of a loop runs the layers of one period.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vtokens.devices import partitioning
from vtokens.models import cache as cache_lib
from vtokens.models import layer_runs
from vtokens.models.block import Block
from vtokens.models.cache import Cache, LayerCache, Nothing
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs, NewTokens
from vtokens.models.layer_kinds import LayerKinds, Select

# The residual stream: several streams, if the config has them.
_Stream = Float[Array, '*J B T D']
# The keys and values of another layer that a layer reads: those of the new
# tokens, and its part of each cache.
_Shared = tuple[KVCache, Sequence[LayerCache]]


class LayerLoops:
  """The layers of a decoder and the new tokens that they run on.

  Args:
    config: the architecture.
    blocks: a block for each stack of `layer_runs.stacks`. Its weights have a
      leading axis of the stack's layers.
    tokens: the new tokens.
    own: own inputs of each layer; None if layers have none. See `per_layer`.
    axes: logical axes of the residual stream.
  """

  def __init__(
    self,
    config: DecoderConfig,
    blocks: Sequence[Block],
    tokens: NewTokens,
    own: Float[Array, 'L B T P'] | None,
    axes: tuple[str | None, ...],
  ):
    self._config = config
    self._tokens = tokens
    self._own = own
    self._axes = axes
    self._numbers = layer_runs.stacks(config)
    kinds = LayerKinds(config, tokens.positions)
    stacks = iter(
      _Stack(index, numbers, block, *kinds.of(numbers))
      for index, (numbers, block) in enumerate(
        zip(self._numbers, blocks, strict=True)
      )
    )
    self._runs = [
      [next(stacks) for _ in range(run.period)]
      for run in layer_runs.runs(config)
    ]

  def run(
    self,
    x: _Stream,
    caches: Sequence[Cache],
    trained_caches: Sequence[Cache],
    *,
    remat: bool,
  ) -> tuple[_Stream, tuple[LayerCache, ...]]:
    """Runs all layers.

    Args:
      x: the residual stream before the first layer.
      caches: see `Decoder.__call__`.
      trained_caches: see `Decoder.__call__`.
      remat: see `Decoder.__call__`.

    Returns:
      The residual stream after the last layer, and the cache of the new tokens
      in each stack.
    """
    # The kernels give caches no gradient, so other attention must not either.
    stored = jax.lax.stop_gradient([cache.stacks for cache in caches])
    stored += [cache.stacks for cache in trained_caches]
    layer = functools.partial(
      self._layer, [*caches, *trained_caches], len(caches)
    )
    checkpoint = functools.partial(
      jax.checkpoint,
      # Outside of loops XLA would join what is computed again with what was
      # computed first, and keep it.
      prevent_cse=not self._config.scan_layers,
      policy=None if remat else partitioning.keep_products,
    )
    made: list[LayerCache] = []
    for stacks in self._runs:
      bodies, inputs = [], []
      for stack in stacks:
        body = functools.partial(
          layer,
          nnx.graphdef(stack.block),
          stack.select,
          self._shared(stack, made, stored),
        )
        bodies.append(checkpoint(body))
        parts = [part[stack.index] for part in stored]
        inputs.append(
          (nnx.state(stack.block), stack.entries, parts, self._own_of(stack))
        )

      def period(
        x: _Stream, inputs: Sequence[Any], bodies: Any = bodies
      ) -> tuple[_Stream, list[LayerCache]]:
        made = []
        for body, one in zip(bodies, inputs, strict=True):
          x, new = body(x, one)
          made.append(new)
        return x, made

      x, new = jax.lax.scan(period, x, inputs)
      made += new
    return x, tuple(made)

  def _layer(
    self,
    caches: Sequence[Cache],
    untrained: int,
    block: nnx.GraphDef[Block],
    select: Select,
    shared: _Shared | None,
    x: _Stream,
    inputs: tuple[
      nnx.State[str, Any],
      Int[Array, '2'] | None,
      Sequence[LayerCache],
      Float[Array, 'B T P'] | None,
    ],
  ) -> tuple[_Stream, LayerCache]:
    """One layer of a stack, in a scan.

    Args:
      caches: all caches, for the positions and segments of their slots.
      untrained: how many of the caches, from the first, get no gradient.
      block: structure of the stack's block.
      select: see `LayerKinds.of`.
      shared: what the layer reads of another layer, if anything.
      x: the residual stream before the layer.
      inputs: weights, entry for `select`, part of each cache and own input of
        the layer.
    """
    weights, entry, parts, own = inputs
    if shared is not None:
      parts = shared[1]
    if not self._tokens.stationary:
      weights = partitioning.gather(weights, self._tokens.mesh)
    read = [
      part.for_layer(cache.positions, cache.segments)
      for part, cache in zip(parts, caches, strict=True)
    ]
    angles, window = select(entry)
    tokens = self._tokens.for_layer(
      angles=angles,
      window=window,
      caches=read[:untrained],
      trained_caches=read[untrained:],
      shared=None if shared is None else shared[0],
      own=own,
    )
    x, new = nnx.merge(block, weights)(x, tokens)
    return self._constrained(x), cache_lib.kept(new)

  def _shared(
    self,
    stack: '_Stack',
    made: Sequence[LayerCache],
    stored: Sequence[Sequence[LayerCache]],
  ) -> _Shared | None:
    """What the layers of a stack read of another layer, if anything.

    Args:
      stack: the stack.
      made: cache of the new tokens in each earlier stack.
      stored: the stacks of each cache of earlier tokens.
    """
    source = self._config.layer_kinds[stack.numbers[0]].source
    if source is None:
      return None
    index, numbers = next(
      (i, numbers)
      for i, numbers in enumerate(self._numbers)
      if source in numbers
    )
    at = operator.itemgetter(numbers.index(source))
    one = jax.tree.map(at, made[index])
    return (
      one.for_layer(self._tokens.positions, self._tokens.segments),
      [jax.tree.map(at, part[index]) for part in stored],
    )

  def encode(self, x: _Stream) -> tuple[LayerCache, ...]:
    """The cache of each stack, without earlier caches.

    It runs no layer after the last that has a cache, and of that layer only
    what makes the cache.

    Args:
      x: the residual stream before the first layer.
    """
    kinds = self._config.layer_kinds
    last = max(i for i, kind in enumerate(kinds) if kind.has_cache)
    made: list[LayerCache] = []
    for stacks in self._runs:
      if stacks[0].numbers[0] > last:
        made += [Nothing() for _ in stacks]
        continue

      # The loop indexes the weights and carries the caches. A scan over all
      # but the last pass would copy both.
      def period(
        i: int | Int[Array, ''], carry: Any, stacks: Any = stacks
      ) -> Any:
        x, caches = carry[0], []
        for stack, cache in zip(stacks, carry[1], strict=True):
          block, tokens = self._layer_at(stack, i)
          x, new = block(x, tokens)
          x = self._constrained(x)
          caches.append(_noted(cache, new, i))
        return x, caches

      passes = len(stacks[0].numbers)
      ends = stacks[-1].numbers[-1] >= last
      carry = x, [self._empty(stack, x) for stack in stacks]
      x, caches = jax.lax.fori_loop(0, passes - ends, period, carry)
      if ends:
        i = passes - 1
        before = [stack for stack in stacks if stack.numbers[i] < last]
        at = len(before)
        x, caches[:at] = period(i, (x, caches[:at]), before)
        block, tokens = self._layer_at(stacks[at], i)
        caches[at] = _noted(caches[at], block.new_cache(x, tokens), i)
      made += caches
    return tuple(made)

  def _layer_at(
    self, stack: '_Stack', i: int | Int[Array, '']
  ) -> tuple[Block, LayerInputs]:
    """Layer i of a stack and its inputs, for `encode`."""
    graph, weights = nnx.split(stack.block)
    weights = jax.tree.map(functools.partial(_part_at, i=i), weights)
    weights = partitioning.gather(weights, self._tokens.mesh)
    entries = stack.entries
    angles, window = stack.select(
      None if entries is None else _part_at(entries, i)
    )
    own = self._own_of(stack)
    tokens = self._tokens.for_layer(
      angles=angles,
      window=window,
      own=None if own is None else _part_at(own, i),
    )
    return nnx.merge(graph, weights), tokens

  def _empty(self, stack: '_Stack', x: _Stream) -> LayerCache:
    """The cache of a stack, of zeros, for `encode`."""

    def first(x: _Stream) -> LayerCache:
      block, tokens = self._layer_at(stack, 0)
      return cache_lib.kept(block.new_cache(x, tokens))

    zeros: LayerCache = jax.eval_shape(first, x).mapped(
      lambda axes, part: partitioning.constrain(
        jnp.zeros((len(stack.numbers), *part.shape), part.dtype),
        self._tokens.mesh,
        (None, *axes),
      )
    )
    return zeros

  def _own_of(self, stack: '_Stack') -> Float[Array, 'R B T P'] | None:
    """The own inputs of the layers of a stack."""
    if self._own is None:
      return None
    return layer_runs.part(self._own, stack.numbers)

  def _constrained(self, x: _Stream) -> _Stream:
    return partitioning.constrain(x, self._tokens.mesh, self._axes)


@dataclasses.dataclass(frozen=True)
class _Stack:
  """A stack of layers.

  Attributes:
    index: number of the stack.
    numbers: numbers of its layers.
    block: their weights, with a leading axis.
    select: see `LayerKinds.of`.
    entries: see `LayerKinds.of`.
  """

  index: int
  numbers: range
  block: Block
  select: Select
  entries: Int[Array, 'R 2'] | None


def _part_at(
  x: Shaped[Array, 'R *B'], i: int | Int[Array, '']
) -> Shaped[Array, '*B']:
  part: Array = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
  return part


def _noted(
  cache: LayerCache, new: KVCache | LayerCache, i: int | Int[Array, '']
) -> LayerCache:
  """The cache of a stack, with the cache of its layer i written into it."""
  noted: LayerCache = jax.tree.map(
    lambda whole, one: whole.at[i].set(one), cache, cache_lib.kept(new)
  )
  return noted
