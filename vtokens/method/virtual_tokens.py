"""The table of virtual tokens: initial values and lookup."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.data.mixture import TrainingMixture
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.method import initial_tokens, trainable
from vtokens.method.trainable import Trainable
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.serving import table_file


@dataclasses.dataclass(frozen=True)
class InputEmbeddings(Trainable):
  """A table of input embeddings, an array of shape [P, D], float32.

  Row i is the input of virtual token i, whose id is `vocab_size + i`.

  Attributes:
    num_frozen: number of first rows that keep their initial values.
  """

  num_frozen: int = 0

  def shapes(
    self, settings: config.VirtualTokens, base: DecoderConfig
  ) -> jax.ShapeDtypeStruct:
    """Returns the shape of the table; see `Trainable`."""
    return jax.ShapeDtypeStruct(
      (settings.num_virtual_tokens, base.embed_dim), jnp.float32
    )

  def axes(self) -> tuple[str, str]:
    """Returns the logical axes of the table; see `Trainable`."""
    return ('vtoken', 'vtoken_embed')

  def check(self, settings: config.VirtualTokens, base: DecoderConfig) -> None:
    """Checks a saved initial table; see `Trainable`."""
    if settings.init == 'table':
      self._saved_table(settings, base.embed_dim)

  def init(
    self,
    settings: config.VirtualTokens,
    decoder: Decoder,
    tokenizer: Tokenizer,
    seed: int,
    mixture: TrainingMixture | None = None,
  ) -> Float[np.ndarray, 'P D']:
    """Makes the table before the first step.

    Args:
      settings: how to make it; see `config.VirtualTokens`.
      decoder: the base, whose embeddings may be copied.
      tokenizer: of the base.
      seed: of all draws.
      mixture: training data, for `passages` and `answers`.

    Returns:
      Array of shape [P, D], float32.

    Raises:
      errors.UserError: a saved table has another shape, or cannot be read; or
        the training data have no passages.
    """
    shape = self.shapes(settings, decoder.config).shape
    rng = np.random.default_rng([seed, 0x7AB1E])
    if settings.init == 'normal':
      drawn: np.ndarray = rng.normal(0.0, settings.init_std, shape)
      return drawn.astype(np.float32)
    if settings.init == 'table':
      return self._saved_table(settings, shape[1])
    return initial_tokens.embeddings(settings, decoder, tokenizer, rng, mixture)

  def embed(
    self,
    decoder: Decoder,
    values: Float[Array, 'P D'],
    ids: Int[Array, 'B T'],
  ) -> Float[Array, 'B T D']:
    """Embeds ids: with the base below `vocab_size`, else with the table.

    Args:
      decoder: the base.
      values: the table.
      ids: of tokens, int32.

    Returns:
      Embeddings in the base's dtype.
    """
    values = trainable.freeze(values, self.num_frozen)
    vocab_size = decoder.config.vocab_size
    virtual = ids >= vocab_size
    ordinary = decoder.embed(jnp.where(virtual, 0, ids))
    # The table is small enough for every device to hold all of it.
    table = partitioning.constrain(values, decoder.mesh, (None, None))
    rows = table[jnp.clip(ids - vocab_size, 0, table.shape[0] - 1)]
    return jnp.where(virtual[..., None], rows.astype(ordinary.dtype), ordinary)

  def count(self, values: Float[np.ndarray, 'P D']) -> int:
    """Returns the number of rows."""
    return len(values)

  def first(
    self, values: Float[np.ndarray, 'P D'], k: int
  ) -> Float[np.ndarray, 'k D']:
    """Returns the first k rows."""
    return values[:k]

  def _saved_table(
    self, settings: config.VirtualTokens, width: int
  ) -> np.ndarray:
    shape = (settings.num_virtual_tokens, width)
    table, _ = table_file.load(settings.init_path)
    if table.shape != shape:
      raise errors.UserError(
        f'config.virtual_tokens.init_path: {settings.init_path} holds a '
        f'table of shape {list(table.shape)}, expected {list(shape)}'
      )
    return table


TABLE = InputEmbeddings()
