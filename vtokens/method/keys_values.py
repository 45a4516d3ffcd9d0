"""Virtual tokens as trained keys and values of every layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.data.batch import Spans
from vtokens.data.mixture import TrainingMixture
from vtokens.devices import distributed, partitioning
from vtokens.host import errors
from vtokens.method import initial_tokens, trainable
from vtokens.method.trainable import Trainable
from vtokens.models import cache as cache_lib
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.serving import trained_file

# `keys` and `values`, each of shape [L, P, K, H] with its own H, float32.
_Trained = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class KeysValues(Trainable):
  """Keys before rotation, and values: arrays of shape [L, P, K, H], float32.

  Virtual token i has one key and one value in each layer. It stands where a row
  of a table would stand: keys are rotated for their positions in each example,
  and later tokens count them. It has no query and no MLP, so passages and other
  virtual tokens do not change it.

  With latent attention the value is a latent, from which each head makes a key
  and a value, and the key is the one that all heads share.

  Attributes:
    num_frozen: number of first virtual tokens that keep their initial values.
  """

  in_suffix: ClassVar[bool] = False

  num_frozen: int = 0

  def shapes(
    self, settings: config.VirtualTokens, base: DecoderConfig
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of keys and values; see `Trainable`."""
    if any(kind.mixer is not None for kind in base.layer_kinds):
      raise errors.UserError(
        "config.virtual_tokens.kind: 'kv' needs layers with keys and values of "
        f'one shape and no states; layers of {base.model_type} keep states, '
        "share keys and values, or differ in their shape; set it to 'table'"
      )
    number, heads = settings.num_virtual_tokens, base.num_kv_heads
    return {
      name: jax.ShapeDtypeStruct(
        (base.num_layers, number, heads, width), jnp.float32
      )
      for name, width in zip(('keys', 'values'), base.cache_widths, strict=True)
    }

  def axes(self) -> dict[str, tuple[str, ...]]:
    """Returns the logical axes; see `Trainable`."""
    axes = ('layers', 'vtoken', 'kv_heads', 'head')
    return {'keys': axes, 'values': axes}

  def check(self, settings: config.VirtualTokens, base: DecoderConfig) -> None:
    """Checks the base and saved initial values; see `Trainable`."""
    self.shapes(settings, base)
    if settings.init == 'table':
      self._saved(settings, base)

  def init(
    self,
    settings: config.VirtualTokens,
    decoder: Decoder,
    tokenizer: Tokenizer,
    seed: int,
    mixture: TrainingMixture | None = None,
  ) -> dict[str, Float[np.ndarray, 'L P K H']]:
    """Makes keys and values before the first step.

    With `text`, `vocab`, `passages` and `answers` they are the base's own of
    the inputs that `initial_tokens` chooses, after the start that the base
    expects (bos), with the keys rotated back.

    Args:
      settings: how to make them; see `config.VirtualTokens`.
      decoder: the base.
      tokenizer: of the base.
      seed: of all draws.
      mixture: training data, for `passages` and `answers`.

    Raises:
      errors.UserError: saved ones have other shapes, or cannot be read; or the
        training data have no passages.
    """
    rng = np.random.default_rng([seed, 0x7AB1E])
    if settings.init == 'normal':
      return {
        name: rng.normal(0.0, settings.init_std, shape.shape).astype(np.float32)
        for name, shape in self.shapes(settings, decoder.config).items()
      }
    if settings.init == 'table':
      return self._saved(settings, decoder.config)
    rows = initial_tokens.embeddings(settings, decoder, tokenizer, rng, mixture)
    return _of_inputs(decoder, tokenizer.prefix_ids, rows)

  def embed(
    self, decoder: Decoder, values: _Trained, ids: Int[Array, 'B T']
  ) -> Float[Array, 'B T D']:
    """Embeds ids, all of them ordinary; see `Trainable`."""
    del values
    return decoder.embed(ids)

  def caches(
    self, decoder: Decoder, values: _Trained, spans: Spans | None
  ) -> Sequence[Cache]:
    """Makes a cache with the virtual tokens of each suffix; see `Trainable`.

    Args:
      decoder: the base.
      values: keys and values.
      spans: where the virtual tokens stand.

    Returns:
      One cache: the slots of suffix 0, then the slots of suffix 1, and so on.

    Raises:
      ValueError: there are no spans.
    """
    if spans is None:
      raise ValueError('keys and values need the spans of the batch')
    rows, suffixes = spans.starts.shape
    frozen = {
      name: trainable.freeze(x.swapaxes(0, 1), self.num_frozen).swapaxes(0, 1)
      for name, x in values.items()
    }
    number = frozen['keys'].shape[1]
    index = jnp.arange(number, dtype=jnp.int32)
    positions = jnp.where(
      index < spans.counts[..., None], spans.starts[..., None] + index, -1
    ).reshape(rows, suffixes * number)

    def repeat(x: Float[Array, 'L P K H']) -> Float[Array, 'L B S K H']:
      layers, _, *heads = x.shape
      shape = (layers, rows, suffixes, number, *heads)
      return jnp.broadcast_to(x[:, None, None], shape).reshape(
        layers, rows, suffixes * number, *heads
      )

    def placed(
      x: Float[Array, 'L B K *S'],
    ) -> Float[Array, 'L B K *S']:
      x = x.astype(decoder.embedding.dtype)
      axes = (None, 'batch', 'kv_heads', None, None)
      return partitioning.constrain(x, decoder.mesh, axes)

    used = (positions >= 0)[..., None, None]
    # A query gives an empty slot no weight, but 0 times NaN is NaN.
    keys, contents = (
      jnp.where(used, repeat(frozen[name]), 0) for name in ('keys', 'values')
    )
    keys = decoder.turn_keys(keys, positions)
    segments = None
    if suffixes > 1:
      segments = jnp.broadcast_to(
        jnp.repeat(jnp.arange(suffixes, dtype=jnp.int32), number),
        positions.shape,
      )
    return [
      cache_lib.of_keys_values(
        decoder.config,
        placed(keys.transpose(0, 1, 3, 4, 2)),
        placed(contents.transpose(0, 1, 3, 2, 4)),
        positions,
        segments,
      )
    ]

  def count(self, values: _Trained) -> int:
    """Returns the number of keys of a layer."""
    return trained_file.count(values)

  def first(self, values: _Trained, k: int) -> _Trained:
    """Returns the keys and values of the first k virtual tokens."""
    return {name: x[:, :k] for name, x in values.items()}

  def _saved(
    self, settings: config.VirtualTokens, base: DecoderConfig
  ) -> dict[str, Float[np.ndarray, 'L P K H']]:
    found, _ = trained_file.load(settings.init_path, 'kv')
    for name, expected in self.shapes(settings, base).items():
      if found[name].shape != expected.shape:
        raise errors.UserError(
          f'config.virtual_tokens.init_path: {settings.init_path} holds {name} '
          f'of shape {list(found[name].shape)}, expected '
          f'{list(expected.shape)}'
        )
    return dict(found)


def _of_inputs(
  decoder: Decoder, start: Sequence[int], rows: Float[np.ndarray, 'P D']
) -> dict[str, Float[np.ndarray, 'L P K H']]:
  """The base's keys and values of some inputs after the ids of a start."""

  @nnx.jit
  def run(
    decoder: Decoder,
    ids: Int[Array, '1 S'],
    rows: Float[Array, '1 P D'],
    positions: Int[Array, '1 T'],
  ) -> tuple[Float[Array, 'L 1 T K H'], Float[Array, 'L 1 T K H']]:
    before = decoder.embed(ids)
    inputs = jnp.concatenate([before, rows.astype(before.dtype)], axis=1)
    cache = decoder.encode(inputs, positions)
    keys, values = cache_lib.keys_values(decoder.config, cache)
    return (
      decoder.turn_keys(keys.transpose(0, 1, 4, 2, 3), positions, back=True),
      values.transpose(0, 1, 3, 2, 4),
    )

  number = len(start) + len(rows)
  keys, values = run(
    decoder,
    jnp.asarray(start, jnp.int32)[None],
    jnp.asarray(rows)[None],
    jnp.arange(number, dtype=jnp.int32)[None],
  )
  return {
    name: np.asarray(distributed.fetch(x)[:, 0, len(start) :], np.float32)
    for name, x in (('keys', keys), ('values', values))
  }
