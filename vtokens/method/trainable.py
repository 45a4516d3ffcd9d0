"""The interface of what is trained, whatever its arrays are."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.data.batch import Spans
from vtokens.data.mixture import TrainingMixture
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.tokenizers.tokenizer import Tokenizer

# A pytree of float32 arrays: one array for the table, a dict for others.
Values = Any


def freeze(
  rows: Float[Array, 'P *rest'], number: int
) -> Float[Array, 'P *rest']:
  """Stops the gradient of the first rows."""
  if not number:
    return rows
  return jnp.concatenate([jax.lax.stop_gradient(rows[:number]), rows[number:]])


class Trainable(abc.ABC):
  """What stands between the passages and the question, and is trained.

  An implementation holds no arrays: jitted functions take it as a static
  argument, so it must be hashable. Its arrays, the *values*, are what optax
  updates and checkpoints keep. The first k of its n virtual tokens must be
  usable for any k.

  Attributes:
    in_suffix: whether virtual tokens are tokens of the suffix, with ids that
      `embed` knows. Otherwise they only take up positions, and `caches` makes
      their keys and values.
  """

  in_suffix: ClassVar[bool] = True

  @abc.abstractmethod
  def shapes(
    self, settings: config.VirtualTokens, base: DecoderConfig
  ) -> Values:
    """Returns the values as `jax.ShapeDtypeStruct`, all float32."""

  @abc.abstractmethod
  def axes(self) -> Any:
    """Returns the logical axes of each array, in a pytree like the values.

    Each leaf is a tuple of names, one an axis. An axis whose name is not in
    `partitioning.LOGICAL_AXIS_RULES` is not sharded.
    """

  @abc.abstractmethod
  def check(self, settings: config.VirtualTokens, base: DecoderConfig) -> None:
    """Checks the settings before the base's weights are loaded.

    Raises:
      errors.UserError: a file to start from does not fit the base, or cannot
        be read.
    """

  @abc.abstractmethod
  def init(
    self,
    settings: config.VirtualTokens,
    decoder: Decoder,
    tokenizer: Tokenizer,
    seed: int,
    mixture: TrainingMixture | None = None,
  ) -> Values:
    """Makes the values before the first step, as numpy arrays.

    Args:
      settings: how to make them.
      decoder: the base.
      tokenizer: of the base.
      seed: of all random draws.
      mixture: training data, whose texts they may start as.
    """

  @abc.abstractmethod
  def embed(
    self, decoder: Decoder, values: Values, ids: Int[Array, 'B T']
  ) -> Float[Array, 'B T D']:
    """Embeds the ids of a suffix.

    Args:
      decoder: the base.
      values: the trained arrays.
      ids: int32; virtual token i has the id `vocab_size + i`.

    Returns:
      Embeddings in the base's dtype.
    """

  def caches(
    self, decoder: Decoder, values: Values, spans: Spans | None
  ) -> Sequence[Cache]:
    """Makes the keys and values that suffixes attend to beside the prefix's.

    Gradients flow into them. None by default.

    Args:
      decoder: the base.
      values: the trained arrays.
      spans: where the virtual tokens stand; None if `in_suffix`.

    Returns:
      Caches. One without segments is seen by all suffixes of its row; a slot
      with a segment is seen by the suffix of that number.
    """
    del decoder, values, spans
    return ()

  @abc.abstractmethod
  def count(self, values: Values) -> int:
    """Returns the number of virtual tokens of the values."""

  @abc.abstractmethod
  def first(self, values: Values, k: int) -> Values:
    """Returns the values of the first k virtual tokens."""
