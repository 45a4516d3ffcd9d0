"""The frozen language model: one decoder in Flax NNX for all families."""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vtokens.devices import partitioning
from vtokens.models import cache as cache_lib
from vtokens.models import layer_runs, layers, per_layer, quantize, rope
from vtokens.models.block import Block
from vtokens.models.cache import Cache, LayerCache, Nothing
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.layer_kinds import LayerKinds, Select

# Logical axes of the residual stream.
_RESIDUAL_AXES = ('batch', None, None)
_STATIONARY_AXES = ('batch_over_data', None, 'embed_over_fsdp')


class Decoder(nnx.Module):
  """Decoder-only language model with equal layers stacked under one scan.

  Attributes:
    config: the architecture.
    embedding: matrix of shape [V, D].
    layers: a `Block` whose weights have a leading axis of L layers; if layers
      have weights of other shapes, a list with a block for each stack of
      `layer_runs.stacks`.
    per_layer: makes inputs of each layer, if the config has them.
    streams: makes several residual streams, if the config has them.
    norm: the final norm.
    head: matrix of shape [D, V]; None if it is the transposed embedding.
    mesh: mesh over which weights and activations are sharded; None for one
      device, or to leave sharding to the compiler.
  """

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self.config = config
    self.mesh = mesh
    self.embedding = layers.param(
      rngs,
      (config.vocab_size, config.embed_dim),
      ('vocab', 'embed'),
      dtype,
      inputs=0,
    )

    block = Block if config.streams is None else config.streams.block

    def stack(numbers: range) -> Block:
      kind = config.layer_kinds[numbers[0]]
      made: Block = nnx.vmap(
        lambda rngs: block(config, dtype, rngs, kind), in_axes=0, out_axes=0
      )(rngs.fork(split=len(numbers)))
      return made

    stacks = [stack(numbers) for numbers in layer_runs.stacks(config)]
    self.layers = stacks[0] if len(stacks) == 1 else nnx.List(stacks)
    if config.per_layer_dim:
      self.per_layer = per_layer.Inputs(config, dtype, rngs)
    if config.streams is not None:
      self.streams = config.streams.ends(config, dtype, rngs)
    self.norm = layers.residual_norm(config, dtype, rngs)
    if config.embedding_norm:
      self.embedding_norm = layers.residual_norm(config, dtype, rngs)
    self.head = nnx.data(
      None
      if config.tie_embeddings
      else layers.param(
        rngs,
        (config.embed_dim, config.vocab_size),
        ('embed', 'vocab'),
        dtype,
        inputs=1,
      )
    )
    if config.head_bias:
      self.head_bias = layers.param(
        rngs,
        (config.vocab_size,),
        ('vocab',),
        dtype,
        jax.nn.initializers.zeros,
      )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    caches: Sequence[Cache] = (),
    *,
    ids: Int[Array, 'B T'] | None = None,
    trained_caches: Sequence[Cache] = (),
    segments: Int[Array, 'B T'] | None = None,
    parents: Int[Array, 'B T'] | None = None,
    num_segments: int | None = None,
    remat: bool = False,
    stationary: bool = False,
  ) -> tuple[Float[Array, 'B T D'], Cache]:
    """Runs T new tokens per row after the tokens in the caches.

    `encode` makes the cache of the passages. The virtual tokens and the
    question run after it; when generating, single tokens run after both.

    Args:
      x: embeddings of the new tokens, as `embed` returns them.
      positions: positions in the sequence, int32; -1 marks padding.
      caches: caches of earlier tokens, in any number of parts, so that a part
        that never changes is not copied. They get no gradient. Recurrent layers
        continue the states of the last one.
      ids: ids of the new tokens, int32. Only models with inputs of each layer
        read them; see `per_layer`.
      trained_caches: caches that get a gradient: the cache part of a
        `method.trainable.Trainable`. Their segments, if any, are numbered as
        those of the new tokens, whatever the parents are.
      segments: number of the packed sequence that each token belongs to, int32.
        A token sees its own segment and all of a cache without segments. None
        if a row is one sequence.
      parents: segment of the caches that each token continues, int32; None if
        it is the segment of its own number.
      num_segments: most segments of a row, whose states recurrent layers keep.
        Only needed with segments, by models with recurrent layers.
      remat: recompute each layer in the backward pass instead of keeping its
        activations.
      stationary: keep weights that are sharded over fsdp in place and move
        activations instead, which moves less when tokens are few.

    Returns:
      The hidden states after the final norm, for `logits`; and the cache of the
      new tokens alone, with the states of recurrent layers after them. The
      caller drops it, keeps it, or writes it into another with `Cache.write`.

    Raises:
      ValueError: there are segments but not their number, and recurrent layers;
        there are trained caches, and recurrent layers, which do not read them;
        or there are no ids, and the model needs them.
    """
    if trained_caches and self.config.is_recurrent:
      raise ValueError('recurrent layers do not read trained caches')
    with self.exact_products():
      return self._run(
        x,
        ids,
        positions,
        caches,
        trained_caches,
        segments,
        parents,
        self._states(segments, num_segments),
        remat,
        stationary,
      )

  def _layer_inputs(
    self,
    x: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'] | None,
    *,
    stationary: bool = False,
  ) -> Float[Array, 'L B T P'] | None:
    """Inputs of each layer, if the model has them; see `per_layer`."""
    if not self.config.per_layer_dim:
      return None
    if ids is None:
      raise ValueError('inputs of each layer need the ids of the tokens')
    return self.per_layer(x, ids, self.mesh, stationary=stationary)

  def _opened(
    self, x: Float[Array, 'B T D'], axes: tuple[str | None, ...]
  ) -> tuple[Float[Array, '*J B T D'], tuple[str | None, ...]]:
    """The residual stream before the first layer, and its logical axes.

    Args:
      x: scaled embeddings.
      axes: logical axes of one stream.
    """
    if self.config.streams is not None:
      x, axes = self.streams.open(x), (None, *axes)
    return partitioning.constrain(x, self.mesh, axes), axes

  def _states(
    self, segments: Int[Array, 'B T'] | None, num_segments: int | None
  ) -> int:
    """Number of segments whose states are kept."""
    if segments is None:
      return 1
    if num_segments is None and self.config.is_recurrent:
      raise ValueError('recurrent layers need the number of segments')
    return num_segments or 1

  def exact_products(self) -> contextlib.AbstractContextManager[object]:
    """The context in which this decoder's products are traced.

    The methods enter it. Who differentiates them enters it as well, for the
    products of the backward pass; see `layers.exact_products`.
    """
    return layers.exact_products(self.embedding[...].dtype)

  def _run(
    self,
    x: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'] | None,
    positions: Int[Array, 'B T'],
    caches: Sequence[Cache],
    trained_caches: Sequence[Cache],
    segments: Int[Array, 'B T'] | None,
    parents: Int[Array, 'B T'] | None,
    num_segments: int,
    remat: bool,
    stationary: bool,
  ) -> tuple[Float[Array, 'B T D'], Cache]:
    """See `__call__`."""
    x = self._scale(x)
    kinds = LayerKinds(self.config, positions)
    axes: tuple[str | None, ...] = (
      _STATIONARY_AXES if stationary else _RESIDUAL_AXES
    )
    all_caches = [*caches, *trained_caches]
    # The kernels give caches no gradient, so other attention must not either.
    stored = jax.lax.stop_gradient([cache.stacks for cache in caches])
    stored += [cache.stacks for cache in trained_caches]
    inputs = self._layer_inputs(x, ids, stationary=stationary)

    def layer(
      block: nnx.GraphDef[Block],
      select: Select,
      shared: tuple[KVCache, Sequence[LayerCache]] | None,
      x: Float[Array, 'B T D'],
      own: tuple[
        nnx.State[str, Any],
        Int[Array, '2'] | None,
        Sequence[LayerCache],
        Float[Array, 'B T P'] | None,
      ],
    ) -> tuple[Float[Array, 'B T D'], LayerCache]:
      weights, kind, kept, given = own
      if shared is not None:
        kept = shared[1]
      if not stationary:
        weights = partitioning.gather(weights, self.mesh)
      parts = [
        part.for_layer(cache.positions, cache.segments)
        for part, cache in zip(kept, all_caches, strict=True)
      ]
      angles, window = select(kind)
      tokens = LayerInputs(
        positions,
        segments,
        parents,
        angles,
        window,
        parts[: len(caches)],
        self.mesh,
        trained_caches=parts[len(caches) :],
        stationary=stationary,
        num_segments=num_segments,
        shared=None if shared is None else shared[0],
        own=given,
      )
      x, new = nnx.merge(block, weights)(x, tokens)
      return partitioning.constrain(x, self.mesh, axes), cache_lib.kept(new)

    x, axes = self._opened(x, axes)
    policy = None if remat else partitioning.keep_products
    made: list[LayerCache] = []
    for stacks in self._runs():
      # One pass of the loop runs the layers of one period.
      bodies, own = [], []
      for stack in stacks:
        select, entries = kinds.of(stack.numbers)
        shared = None
        source = self.config.layer_kinds[stack.numbers[0]].source
        if source is not None:
          index, at = self._place(source)
          one = jax.tree.map(operator.itemgetter(at), made[index])
          shared = (
            one.for_layer(positions, segments),
            [
              jax.tree.map(operator.itemgetter(at), part[index])
              for part in stored
            ],
          )
        bodies.append(
          jax.checkpoint(
            functools.partial(layer, nnx.graphdef(stack.block), select, shared),
            prevent_cse=False,
            policy=policy,
          )
        )
        kept = [part[stack.index] for part in stored]
        given = None
        if inputs is not None:
          given = layer_runs.part(inputs, stack.numbers)
        own.append((nnx.state(stack.block), entries, kept, given))

      def period(
        x: Float[Array, 'B T D'], own: Sequence[Any], bodies: Any = bodies
      ) -> tuple[Float[Array, 'B T D'], list[LayerCache]]:
        made = []
        for body, one in zip(bodies, own, strict=True):
          x, new = body(x, one)
          made.append(new)
        return x, made

      x, new = jax.lax.scan(period, x, own)
      made += new
    if self.config.streams is not None:
      x = self.streams.close(x)
    return self.norm(x), Cache(tuple(made), positions, segments)

  def _runs(self) -> list[list['_Stack']]:
    """The stacks of layers of each run."""
    blocks = [self.layers] if isinstance(self.layers, Block) else self.layers
    stacks = iter(
      _Stack(index, numbers, block)
      for index, (numbers, block) in enumerate(
        zip(layer_runs.stacks(self.config), blocks, strict=True)
      )
    )
    return [
      [next(stacks) for _ in range(run.period)]
      for run in layer_runs.runs(self.config)
    ]

  def _place(self, number: int) -> tuple[int, int]:
    """Number of a layer's stack, and the layer's place in it."""
    for index, numbers in enumerate(layer_runs.stacks(self.config)):
      if number in numbers:
        return index, numbers.index(number)
    raise AssertionError(f'no layer {number}')

  def encode(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    *,
    ids: Int[Array, 'B T'] | None = None,
    segments: Int[Array, 'B T'] | None = None,
    num_segments: int | None = None,
  ) -> Cache:
    """The cache that `__call__` returns for tokens without earlier caches.

    Forward only. It stops after the cache of the last layer that has one.

    Args:
      x: embeddings of the tokens; see `__call__`.
      positions: positions of the tokens, int32; -1 marks padding.
      ids: see `__call__`.
      segments: segments of the tokens; see `__call__`.
      num_segments: see `__call__`.
    """
    with self.exact_products():
      number = self._states(segments, num_segments)
      return self._encode(x, ids, positions, segments, number)

  def _encode(
    self,
    x: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'] | None,
    positions: Int[Array, 'B T'],
    segments: Int[Array, 'B T'] | None,
    num_segments: int,
  ) -> Cache:
    """See `encode`."""
    x = self._scale(x)
    kinds = LayerKinds(self.config, positions)
    chosen = [kinds.of(n) for n in layer_runs.stacks(self.config)]
    inputs = self._layer_inputs(x, ids)

    def layer(
      stack: _Stack, i: int | Int[Array, '']
    ) -> tuple[Block, LayerInputs]:
      """Block and inputs of layer i of a stack."""
      graph, weights = nnx.split(stack.block)
      own = jax.tree.map(functools.partial(_layer_of, i=i), weights)
      select, entries = chosen[stack.index]
      kind = None if entries is None else _layer_of(entries, i)
      own = partitioning.gather(own, self.mesh)
      angles, window = select(kind)
      tokens = LayerInputs(
        positions,
        segments,
        None,
        angles,
        window,
        (),
        self.mesh,
        num_segments=num_segments,
        own=None
        if inputs is None
        else _layer_of(layer_runs.part(inputs, stack.numbers), i),
      )
      return nnx.merge(graph, own), tokens

    def note(made: LayerCache, new: Any, i: int | Int[Array, '']) -> LayerCache:
      noted: LayerCache = jax.tree.map(
        lambda whole, one: whole.at[i].set(one), made, cache_lib.kept(new)
      )
      return noted

    def whole(
      stack: _Stack,
      i: int | Int[Array, ''],
      x: Float[Array, 'B T D'],
      made: LayerCache,
    ) -> tuple[Float[Array, 'B T D'], LayerCache]:
      """Layer i of a stack, whose cache is noted."""
      own, tokens = layer(stack, i)
      x, new = own(x, tokens)
      x = partitioning.constrain(x, self.mesh, axes)
      return x, note(made, new, i)

    def cache_alone(
      stack: _Stack, i: int, x: Float[Array, 'B T D']
    ) -> LayerCache:
      own, tokens = layer(stack, i)
      made: LayerCache = cache_lib.kept(own.keys_values(x, tokens))
      return made

    def empty(stack: _Stack) -> LayerCache:
      one = jax.eval_shape(functools.partial(cache_alone, stack, 0), x)
      zeros: LayerCache = one.mapped(
        lambda axes, part: partitioning.constrain(
          jnp.zeros((len(stack.numbers), *part.shape), part.dtype),
          self.mesh,
          (None, *axes),
        )
      )
      return zeros

    x, axes = self._opened(x, _RESIDUAL_AXES)
    last = max(
      i for i, kind in enumerate(self.config.layer_kinds) if kind.source is None
    )
    all_made: list[LayerCache] = []
    for stacks in self._runs():
      if stacks[0].numbers[0] > last:
        all_made += [Nothing() for _ in stacks]
        continue

      # The loop indexes the weights and carries the cache. A scan over all but
      # the last layer would copy both.
      def period(
        i: int | Int[Array, ''], carry: Any, stacks: Any = stacks
      ) -> Any:
        x, made = carry[0], []
        for stack, before in zip(stacks, carry[1], strict=True):
          x, after = whole(stack, i, x, before)
          made.append(after)
        return x, made

      repeats = len(stacks[0].numbers)
      ends = stacks[-1].numbers[-1] == last
      carry = x, [empty(stack) for stack in stacks]
      x, made = jax.lax.fori_loop(0, repeats - ends, period, carry)
      if ends:
        i = repeats - 1
        for at, stack in enumerate(stacks[:-1]):
          x, made[at] = whole(stack, i, x, made[at])
        made[-1] = note(made[-1], cache_alone(stacks[-1], i, x), i)
      all_made += made
    return Cache(tuple(all_made), positions, segments)

  def turn_keys(
    self,
    keys: Float[Array, 'L B S K H'],
    positions: Int[Array, 'B S'],
    *,
    back: bool = False,
  ) -> Float[Array, 'L B S K H']:
    """Rotates keys of all layers, as attention rotates keys of tokens.

    Args:
      keys: keys of each layer.
      positions: positions of the keys, int32.
      back: undo the rotation instead.
    """
    select, kinds = LayerKinds(self.config, positions).of(
      range(self.config.num_layers)
    )

    def turn(
      keys: Float[Array, 'B S K H'], kind: Int[Array, '2'] | None
    ) -> Float[Array, 'B S K H']:
      (cos, sin), _ = select(kind)
      if back:
        # Some rotary embeddings also scale (YaRN's attention factor).
        square = cos**2 + sin**2
        cos, sin = cos / square, -sin / square
      return rope.rotate(keys, (cos, sin), interleaved=self.config.interleaved)

    in_axes = (0, None if kinds is None else 0)
    turned: Array = jax.vmap(turn, in_axes)(keys, kinds)
    return turned

  def _scale(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Scales embeddings for the first layer."""
    # Rounded to x's dtype first, as in transformers.
    if self.config.scale_embeddings:
      x = x * jnp.asarray(self.config.embed_dim**0.5, x.dtype)
    if self.config.embedding_scale != 1.0:
      x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
    return self.embedding_norm(x) if self.config.embedding_norm else x

  def embed(self, ids: Int[Array, '*B T']) -> Float[Array, '*B T D']:
    """Embeddings of ordinary token ids, each below `vocab_size`."""
    # Each device looks up its part of the width for the ids of all devices
    # along fsdp, so devices exchange ids and rows instead of the embedding
    # matrix.
    rows = (None,) * (ids.ndim - 1)
    ids = partitioning.constrain(ids, self.mesh, ('batch_over_data', *rows))
    x = self.embedding[...][ids]
    x = partitioning.constrain(
      x, self.mesh, ('batch_over_data', *rows, 'embed_over_fsdp')
    )
    return partitioning.constrain(x, self.mesh, ('batch', *rows, None))

  def logits(
    self, hidden: Float[Array, '*B D'], *, stationary: bool = False
  ) -> Float[Array, '*B V']:
    """Next-token logits, float32; virtual tokens have none.

    Args:
      hidden: states after the final norm.
      stationary: see `__call__`.
    """
    if self.head is None:
      product, weight = '...d,vd->...v', self.embedding
    else:
      product, weight = '...d,dv->...v', self.head
    if not stationary:
      weight = partitioning.gather(weight, self.mesh)
    with self.exact_products():
      logits = jnp.einsum(
        product, hidden, weight[...], preferred_element_type=jnp.float32
      )
    if self.config.head_bias:
      logits = logits + self.head_bias[...].astype(jnp.float32)
    if self.config.logit_scale != 1.0:
      logits = logits * self.config.logit_scale
    if self.config.logit_divisor != 1.0:
      logits = logits / self.config.logit_divisor
    return layers.softcap(logits, self.config.logit_softcap)


def abstract_decoder(
  config: DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
  method: str = 'none',
) -> Decoder:
  """The decoder with shapes instead of arrays; nothing is allocated.

  Args:
    config: the architecture.
    dtype: dtype of the weights.
    mesh: see `Decoder`.
    method: how the layers' matrices are quantised; see `config.Base.quantize`.
  """

  def make() -> Decoder:
    model = Decoder(config, dtype, nnx.Rngs(0), mesh)
    if method != 'none':
      quantize.quantise_layers(model.layers, method)
    return model

  return nnx.eval_shape(make)


def num_params(config: DecoderConfig, *, active: bool = False) -> int:
  """Number of weights, a tied head counted once.

  Args:
    config: the architecture.
    active: count those alone that one token uses: of experts a share.
  """
  model = abstract_decoder(config, jnp.dtype(jnp.float32))
  total = 0.0
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    if not variable.get_metadata().get('constant'):
      share = variable.get_metadata('active') if active else 1
      total += math.prod(variable.shape) * share
  return round(total)


def _layer_of(
  stack: Shaped[Array, 'L *B'], i: int | Int[Array, '']
) -> Shaped[Array, '*B']:
  layer: Array = jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)
  return layer


@dataclasses.dataclass(frozen=True)
class _Stack:
  """A stack of layers.

  Attributes:
    index: number of the stack.
    numbers: its layers.
    block: their weights, with a leading axis.
  """

  index: int
  numbers: range
  block: Block
