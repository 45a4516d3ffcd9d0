"""The frozen language model: one decoder in Flax NNX for all families."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vtokens.devices import partitioning
from vtokens.models import layer_runs, layers, quantize, rope
from vtokens.models.block import Block
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kv_cache import KVCache
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.layer_runs import Run

# Logical axes of the residual stream.
_RESIDUAL_AXES = ('batch', None, None)
_STATIONARY_AXES = ('batch_over_data', None, 'embed_over_fsdp')

# Of one layer, or of all with a leading axis; see `KVCache`.
_KeysValues = tuple[Float[Array, '*L B K H S'], Float[Array, '*L B K S H']]
# See `rope.angles`.
_Angles = tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']]


class Decoder(nnx.Module):
  """Decoder-only transformer with equal layers stacked under one scan.

  Attributes:
    config: the architecture.
    embedding: matrix of shape [V, D].
    layers: a `Block` whose weights have a leading axis of L layers; if layers
      have weights of other shapes, a list with a block for each stack of
      `layer_runs.stacks`.
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

    def stack(numbers: range) -> Block:
      part = config.layer_kinds[numbers[0]].mlp
      made: Block = nnx.vmap(
        lambda rngs: Block(config, dtype, rngs, part), in_axes=0, out_axes=0
      )(rngs.fork(split=len(numbers)))
      return made

    stacks = [stack(numbers) for numbers in layer_runs.stacks(config)]
    self.layers = stacks[0] if len(stacks) == 1 else nnx.List(stacks)
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
    caches: Sequence[KVCache] = (),
    *,
    trained_caches: Sequence[KVCache] = (),
    segments: Int[Array, 'B T'] | None = None,
    parents: Int[Array, 'B T'] | None = None,
    remat: bool = False,
    stationary: bool = False,
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    """Runs T new tokens per row after the tokens in the caches.

    `encode` makes the cache of the passages. The virtual tokens and the
    question run after it; when generating, single tokens run after both.

    Args:
      x: embeddings of the new tokens, as `embed` returns them.
      positions: positions in the sequence, int32; -1 marks padding.
      caches: keys and values of earlier tokens, in any number of parts, so that
        a part that never changes is not copied. They get no gradient.
      trained_caches: caches that get a gradient: the cache part of a
        `method.trainable.Trainable`. Their segments, if any, are numbered as
        those of the new tokens, whatever the parents are.
      segments: number of the packed sequence that each token belongs to, int32.
        A token sees its own segment and all of a cache without segments. None
        if a row is one sequence.
      parents: segment of the caches that each token continues, int32; None if
        it is the segment of its own number.
      remat: recompute each layer in the backward pass instead of keeping its
        activations.
      stationary: keep weights that are sharded over fsdp in place and move
        activations instead, which moves less when tokens are few.

    Returns:
      The hidden states after the final norm, for `logits`; and the keys and
      values of the new tokens alone. The caller drops these, keeps them as a
      cache, or writes them into one with `KVCache.write`.
    """
    with self.exact_products():
      return self._run(
        x,
        positions,
        caches,
        trained_caches,
        segments,
        parents,
        remat,
        stationary,
      )

  def exact_products(self) -> contextlib.AbstractContextManager[object]:
    """The context in which this decoder's products are traced.

    The methods enter it. Who differentiates them enters it as well, for the
    products of the backward pass; see `layers.exact_products`.
    """
    return layers.exact_products(self.embedding[...].dtype)

  def _run(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    caches: Sequence[KVCache],
    trained_caches: Sequence[KVCache],
    segments: Int[Array, 'B T'] | None,
    parents: Int[Array, 'B T'] | None,
    remat: bool,
    stationary: bool,
  ) -> tuple[Float[Array, 'B T D'], KVCache]:
    """See `__call__`."""
    x = self._scale(x)
    select, kinds = _layer_kinds(self.config, positions)
    axes = _STATIONARY_AXES if stationary else _RESIDUAL_AXES
    all_caches = [*caches, *trained_caches]
    # The kernels give caches no gradient, so other attention must not either.
    all_kv = jax.lax.stop_gradient([(cache.k, cache.v) for cache in caches])
    all_kv += [(cache.k, cache.v) for cache in trained_caches]

    def layer(
      block: nnx.GraphDef[Block],
      x: Float[Array, 'B T D'],
      own: tuple[
        nnx.State[str, Any],
        Int[Array, '2'] | None,
        Sequence[_KeysValues] | Int[Array, ''],
      ],
    ) -> tuple[Float[Array, 'B T D'], _KeysValues]:
      weights, kind, kv = own
      if isinstance(kv, jax.Array):
        # Indexed here: a slice for each run would copy the caches.
        kv = jax.tree.map(functools.partial(_layer_of, i=kv), all_kv)
      if not stationary:
        weights = partitioning.gather(weights, self.mesh)
      parts = [
        KVCache(k, v, cache.positions, cache.segments)
        for (k, v), cache in zip(kv, all_caches, strict=True)
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
      )
      x, new = nnx.merge(block, weights)(x, tokens)
      return partitioning.constrain(x, self.mesh, axes), (new.k, new.v)

    x = partitioning.constrain(x, self.mesh, axes)
    policy = None if remat else partitioning.keep_products
    new = []
    for run, blocks in self._runs():
      # One pass of the loop runs the layers of one period.
      bodies = [
        jax.checkpoint(
          functools.partial(layer, nnx.graphdef(block)),
          prevent_cse=False,
          policy=policy,
        )
        for block in blocks
      ]

      def period(
        x: Float[Array, 'B T D'], own: Sequence[Any], bodies: Any = bodies
      ) -> tuple[Float[Array, 'B T D'], list[_KeysValues]]:
        made = []
        for body, one in zip(bodies, own, strict=True):
          x, new = body(x, one)
          made.append(new)
        return x, made

      own: list[Any] = []
      if run.repeats == self.config.num_layers:
        own = [(nnx.state(blocks[0]), kinds, all_kv)]
      else:
        for at, block in enumerate(blocks):
          numbers = jnp.arange(run.first + at, run.stop, run.period)
          kind = None if kinds is None else kinds[numbers]
          own.append((nnx.state(block), kind, numbers))
      x, made = jax.lax.scan(period, x, own)
      new.append(jax.tree.map(_interleaved, *made))
    k, v = new[0] if len(new) == 1 else jax.tree.map(_joined, *new)
    return self.norm(x), KVCache(k, v, positions, segments)

  def _runs(self) -> list[tuple[Run, list[Block]]]:
    """The runs of layers, each with its stacks."""
    found = layer_runs.runs(self.config)
    blocks = iter(
      [self.layers] if isinstance(self.layers, Block) else self.layers
    )
    return [(run, [next(blocks) for _ in range(run.period)]) for run in found]

  def encode(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
  ) -> KVCache:
    """The cache that `__call__` returns for tokens without earlier caches.

    Forward only. It stops after the keys and values of the last layer.

    Args:
      x: embeddings of the tokens; see `__call__`.
      positions: positions of the tokens, int32; -1 marks padding.
      segments: segments of the tokens; see `__call__`.
    """
    with self.exact_products():
      return self._encode(x, positions, segments)

  def _encode(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    segments: Int[Array, 'B T'] | None,
  ) -> KVCache:
    """See `encode`."""
    x = self._scale(x)
    select, kinds = _layer_kinds(self.config, positions)
    last = self.config.num_layers - 1

    def layer(
      run: Run, block: Block, at: int, i: int | Int[Array, '']
    ) -> tuple[Block, LayerInputs]:
      """A layer's block and inputs.

      Args:
        run: the run of the layer.
        block: the stack of the layer.
        at: number of the stack in the run.
        i: number of the layer in the stack.
      """
      graph, weights = nnx.split(block)
      own = jax.tree.map(functools.partial(_layer_of, i=i), weights)
      kind = None
      if kinds is not None:
        kind = _layer_of(kinds, run.first + at + i * run.period)
      own = partitioning.gather(own, self.mesh)
      angles, window = select(kind)
      tokens = LayerInputs(
        positions, segments, None, angles, window, (), self.mesh
      )
      return nnx.merge(graph, own), tokens

    def note(
      kv: _KeysValues, new: KVCache, number: int | Int[Array, '']
    ) -> _KeysValues:
      return kv[0].at[number].set(new.k), kv[1].at[number].set(new.v)

    def whole(
      run: Run,
      block: Block,
      at: int,
      i: int | Int[Array, ''],
      carry: tuple[Float[Array, 'B T D'], _KeysValues],
    ) -> tuple[Float[Array, 'B T D'], _KeysValues]:
      """One layer, whose keys and values are noted."""
      x, kv = carry
      own, tokens = layer(run, block, at, i)
      x, new = own(x, tokens)
      x = partitioning.constrain(x, self.mesh, _RESIDUAL_AXES)
      return x, note(kv, new, run.first + at + i * run.period)

    def keys_values(x: Float[Array, 'B T D']) -> KVCache:
      """Of the last layer."""
      run, blocks = self._runs()[-1]
      own, tokens = layer(run, blocks[-1], run.period - 1, run.repeats - 1)
      return own.keys_values(x, tokens)

    def empty(part: jax.ShapeDtypeStruct) -> Shaped[Array, 'L *B']:
      return partitioning.constrain(
        jnp.zeros((self.config.num_layers, *part.shape), part.dtype),
        self.mesh,
        (None, 'batch', 'kv_heads', None, None),
      )

    shapes = jax.eval_shape(keys_values, x)
    x = partitioning.constrain(x, self.mesh, _RESIDUAL_AXES)
    carry = x, (empty(shapes.k), empty(shapes.v))
    for run, blocks in self._runs():
      # The loop indexes the weights and carries the cache. A scan over all but
      # the last layer would copy both.
      def period(
        i: Int[Array, ''], carry: Any, run: Run = run, blocks: Any = blocks
      ) -> Any:
        for at, block in enumerate(blocks):
          carry = whole(run, block, at, i, carry)
        return carry

      ends = run.stop > last
      carry = jax.lax.fori_loop(0, run.repeats - ends, period, carry)
      if ends:
        for at, block in enumerate(blocks[:-1]):
          carry = whole(run, block, at, run.repeats - 1, carry)
    x, kv = carry
    k, v = note(kv, keys_values(x), last)
    return KVCache(k, v, positions, segments)

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
    select, kinds = _layer_kinds(self.config, positions)

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


def _interleaved(
  *stacks: Float[Array, 'R *B'],
) -> Float[Array, 'L *B']:
  """Arrays of all layers of a run, from one array for each stack."""
  if len(stacks) == 1:
    return stacks[0]
  both = jnp.stack(stacks, axis=1)
  return both.reshape(-1, *both.shape[2:])


def _joined(*parts: Float[Array, 'R *B']) -> Float[Array, 'L *B']:
  return jnp.concatenate(parts)


def _layer_kinds(
  config: DecoderConfig, positions: Int[Array, 'B T']
) -> tuple[
  Callable[[Any], tuple[_Angles, Int[Array, ''] | int | None]],
  Int[Array, 'L 2'] | None,
]:
  """The differences between the layers, in a form that a scan can carry.

  Returns:
    A function from a layer's entry to its angles (see `rope.angles`) and
    window; and the entries, one for each layer. Entries are traced only if
    layers differ, since XLA optimises constants better.
  """
  dim = config.rotary_dim or config.head_dim
  length = config.context_length or config.longest_sequence
  kinds = config.layer_kinds
  ropes = list(dict.fromkeys(kind.rope for kind in kinds))
  angles = [rope.angles(positions, r, dim, length) for r in ropes]
  if config.turn_back:
    angles = [(cos, -sin) for cos, sin in angles]
  windows = [kind.window for kind in kinds]
  if len({(kind.rope, kind.window) for kind in kinds}) == 1:
    return lambda _: (angles[0], windows[0]), None
  table = jax.tree.map(lambda *parts: jnp.stack(parts), *angles)
  # Longer than any sequence.
  unlimited = np.iinfo(np.int32).max // 2
  entries = np.array(
    [(ropes.index(kind.rope), kind.window or unlimited) for kind in kinds],
    np.int32,
  )
  windowed = any(windows)

  def select(
    entry: Int[Array, '2'],
  ) -> tuple[_Angles, Int[Array, ''] | None]:
    return (
      jax.tree.map(lambda x: x[entry[0]], table),
      entry[1] if windowed else None,
    )

  return select, jnp.asarray(entries)
