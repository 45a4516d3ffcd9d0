"""The frozen language model: one decoder in Flax NNX for all families."""

import contextlib
from collections.abc import Sequence

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.devices import partitioning
from vtokens.models import layer_runs, layers, per_layer, rope
from vtokens.models.block import Block
from vtokens.models.cache import Cache
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.layer_inputs import NewTokens
from vtokens.models.layer_kinds import LayerKinds
from vtokens.models.layer_loops import LayerLoops

# Logical axes of the residual stream.
_RESIDUAL_AXES = ('batch', None, None)
_STATIONARY_AXES = ('batch_over_data', None, 'embed_over_fsdp')


class Decoder(nnx.Module):
  """Decoder-only language model.

  Layers whose weights have the same shapes are stacked; see `layer_runs`.

  Attributes:
    config: the architecture.
    embedding: matrix of shape [V, D].
    layers: a `Block` whose weights have a leading axis of L layers, or a list
      with a block for each stack if there are several.
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
    tokens = NewTokens(
      positions,
      segments,
      parents,
      self.mesh,
      stationary=stationary,
      num_segments=self._states(segments, num_segments),
    )
    with self.exact_products():
      loops, stream = self._opened(x, ids, tokens)
      stream, made = loops.run(stream, caches, trained_caches, remat=remat)
      if self.config.streams is not None:
        stream = self.streams.close(stream)
      return self.norm(stream), Cache(made, positions, segments)

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

    Forward only. It computes nothing that the cache does not need.

    Args:
      x: embeddings of the tokens; see `__call__`.
      positions: positions of the tokens, int32; -1 marks padding.
      ids: see `__call__`.
      segments: segments of the tokens; see `__call__`.
      num_segments: see `__call__`.
    """
    tokens = NewTokens(
      positions,
      segments,
      None,
      self.mesh,
      num_segments=self._states(segments, num_segments),
    )
    with self.exact_products():
      loops, stream = self._opened(x, ids, tokens)
      return Cache(loops.encode(stream), positions, segments)

  def exact_products(self) -> contextlib.AbstractContextManager[object]:
    """The context in which this decoder's products are traced.

    The methods enter it. Code that differentiates them must enter it, too, for
    the products of the backward pass; see `layers.exact_products`.
    """
    return layers.exact_products(self.embedding[...].dtype)

  def _states(
    self, segments: Int[Array, 'B T'] | None, num_segments: int | None
  ) -> int:
    """Number of segments whose states are kept."""
    if segments is None:
      return 1
    if num_segments is None and self.config.is_recurrent:
      raise ValueError('recurrent layers need the number of segments')
    return num_segments or 1

  def _opened(
    self,
    x: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'] | None,
    tokens: NewTokens,
  ) -> tuple[LayerLoops, Float[Array, '*J B T D']]:
    """The layers for some new tokens, and the residual stream before them.

    Args:
      x: embeddings of the tokens; see `__call__`.
      ids: see `__call__`.
      tokens: the tokens.
    """
    x = self._scale(x)
    own = None
    if self.config.per_layer_dim:
      if ids is None:
        raise ValueError('inputs of each layer need the ids of the tokens')
      own = self.per_layer(x, ids, self.mesh, stationary=tokens.stationary)
    axes: tuple[str | None, ...] = (
      _STATIONARY_AXES if tokens.stationary else _RESIDUAL_AXES
    )
    if self.config.streams is not None:
      x, axes = self.streams.open(x), (None, *axes)
    x = partitioning.constrain(x, self.mesh, axes)
    blocks = [self.layers] if isinstance(self.layers, Block) else self.layers
    return LayerLoops(self.config, blocks, tokens, own, axes), x

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
    if self.config.scale_embeddings:
      x = layers.scaled(x, self.config.embed_dim**0.5)
    x = layers.scaled(x, self.config.embedding_scale)
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
