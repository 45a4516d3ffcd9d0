"""The table of virtual tokens: initial values and lookup."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.devices import distributed, partitioning
from vtokens.host import errors
from vtokens.models.decoder import Decoder
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.serving import table_file


def embed(
  decoder: Decoder, table: Float[Array, 'P D'], ids: Int[Array, 'B T']
) -> Float[Array, 'B T D']:
  """Embeds ids: with the base below `vocab_size`, else with the table.

  Args:
    decoder: the base.
    table: row i belongs to virtual token i, whose id is `vocab_size + i`.
    ids: of tokens, int32.

  Returns:
    Embeddings in the base's dtype.
  """
  vocab_size = decoder.config.vocab_size
  virtual = ids >= vocab_size
  ordinary = decoder.embed(jnp.where(virtual, 0, ids))
  # The table is small enough for every device to hold all of it.
  table = partitioning.constrain(table, decoder.mesh, (None, None))
  rows = table[jnp.clip(ids - vocab_size, 0, table.shape[0] - 1)]
  return jnp.where(virtual[..., None], rows.astype(ordinary.dtype), ordinary)


def check_init(settings: config.VirtualTokens, width: int) -> None:
  """Checks a saved initial table, before the base is loaded.

  Args:
    settings: see `initial_table`.
    width: size of the base's embeddings.

  Raises:
    errors.UserError: it has another shape, or cannot be read.
  """
  if settings.init == 'table':
    _saved_table(settings, width)


def _saved_table(settings: config.VirtualTokens, width: int) -> np.ndarray:
  shape = (settings.num_virtual_tokens, width)
  table, _ = table_file.load(settings.init_path)
  if table.shape != shape:
    raise errors.UserError(
      f'config.virtual_tokens.init_path: {settings.init_path} holds a '
      f'table of shape {list(table.shape)}, expected {list(shape)}'
    )
  return table


def initial_table(
  settings: config.VirtualTokens,
  decoder: Decoder,
  tokenizer: Tokenizer,
  seed: int,
) -> np.ndarray:
  """Makes the table before the first step.

  Args:
    settings: how to make it; see `config.VirtualTokens`.
    decoder: the base; `text` and `vocab` copy its embeddings.
    tokenizer: of the base.
    seed: of the draws of `vocab` and `normal`.

  Returns:
    Array of shape [P, D], float32.

  Raises:
    errors.UserError: a saved table has another shape, or cannot be read.
  """
  shape = (settings.num_virtual_tokens, decoder.config.embed_dim)
  rng = np.random.default_rng([seed, 0x7AB1E])
  if settings.init == 'normal':
    table = rng.normal(0.0, settings.init_std, shape)
    return table.astype(np.float32)
  if settings.init == 'table':
    return _saved_table(settings, shape[1])
  if settings.init == 'text':
    # Without bos, which belongs before the passages.
    sentence = tokenizer.encode(settings.init_text)
    ids = np.resize(np.asarray(sentence, np.int32), shape[0])
  else:
    ids = rng.choice(np.asarray(tokenizer.ordinary_ids, np.int32), shape[0])
  rows = decoder.embed(jnp.asarray(ids))
  return np.asarray(distributed.fetch(rows), np.float32)
