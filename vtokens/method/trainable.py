"""The interface of what is trained, whatever its arrays are."""

import abc
from collections.abc import Sequence
from typing import Any

from etils import epath
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.kv_cache import KVCache
from vtokens.models.tokenizers.tokenizer import Tokenizer

# A pytree of float32 arrays: one array for the table, a dict for others.
Values = Any


class Trainable(abc.ABC):
  """What stands between the passages and the question, and is trained.

  An implementation holds no arrays: jitted functions take it as a static
  argument, so it must be hashable. Its arrays, the *values*, are what optax
  updates and checkpoints keep. The first k of its n virtual tokens must be
  usable for any k.
  """

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
  ) -> Values:
    """Makes the values before the first step, as numpy arrays.

    Args:
      settings: how to make them.
      decoder: the base.
      tokenizer: of the base.
      seed: of all random draws.
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
    self,
    decoder: Decoder,
    values: Values,
    ids: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segments: Int[Array, 'B T'] | None,
  ) -> Sequence[KVCache]:
    """Makes keys and values that the suffix attends to beside the prefix's.

    Gradients flow into them. None by default. A cache without segments is seen
    by every suffix of its row, a slot with a segment by that suffix alone.

    Args:
      decoder: the base.
      values: the trained arrays.
      ids: of the suffix's tokens, int32, virtual tokens among them.
      positions: of the suffix's tokens, int32; -1 for padding.
      segments: numbers of the suffixes in a row, int32, or None.
    """
    del decoder, values, ids, positions, segments
    return ()

  @abc.abstractmethod
  def save(
    self, path: epath.PathLike, values: Values, metadata: dict[str, object]
  ) -> None:
    """Writes the values to a file, whole or not at all.

    Args:
      path: the file.
      values: numpy arrays.
      metadata: JSON values, e.g. the base's fingerprint.
    """

  @abc.abstractmethod
  def load(self, path: epath.PathLike) -> tuple[Values, dict[str, object]]:
    """Reads what `save` wrote: values and metadata.

    Raises:
      errors.UserError: the file is missing or holds no such values.
    """
