"""The table of virtual tokens: how it starts, is looked up and is stored."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jaxtyping import Array, Float, Int

from vtokens import config, distributed, errors, partitioning, writers
from vtokens.models.decoder import Decoder
from vtokens.models.tokenizer import Tokenizer

TENSOR = 'virtual_tokens'


def embed(
  decoder: Decoder, table: Float[Array, 'P D'], ids: Int[Array, 'B T']
) -> Float[Array, 'B T D']:
  """Embeddings of ids: from the base below `vocab_size`, else from the table.

  Args:
    decoder: the base.
    table: row i is virtual token i, id `vocab_size + i`.
    ids: int32.

  Returns:
    Embeddings in the base's dtype.
  """
  vocab_size = decoder.config.vocab_size
  virtual = ids >= vocab_size
  ordinary = decoder.embed(jnp.where(virtual, 0, ids))
  # Small enough for every device to have it whole.
  table = partitioning.constrain(table, decoder.mesh, (None, None))
  rows = table[jnp.clip(ids - vocab_size, 0, table.shape[0] - 1)]
  return jnp.where(virtual[..., None], rows.astype(ordinary.dtype), ordinary)


def initial_table(
  settings: config.VirtualTokens,
  decoder: Decoder,
  tokenizer: Tokenizer,
  seed: int,
) -> np.ndarray:
  """The table before the first step.

  Args:
    settings: how to make it; see `config.VirtualTokens`.
    decoder: the base, whose embeddings `text` and `vocab` copy.
    tokenizer: of the base.
    seed: for `vocab` and `normal`.

  Returns:
    `P D` f32.

  Raises:
    errors.UserError: a saved table has another shape, or cannot be read.
  """
  shape = (settings.num_virtual_tokens, decoder.config.embed_dim)
  rng = np.random.default_rng([seed, 0x7AB1E])
  if settings.init == 'normal':
    table = rng.normal(0.0, settings.init_std, shape)
    return table.astype(np.float32)
  if settings.init == 'table':
    table, _ = load_table(settings.init_path)
    if table.shape != shape:
      raise errors.UserError(
        f'config.virtual_tokens.init_path: {settings.init_path} holds a '
        f'table of shape {list(table.shape)}, expected {list(shape)}'
      )
    return table
  if settings.init == 'text':
    # No bos: it belongs before the passages, not between them and the
    # question.
    sentence = tokenizer.encode(settings.init_text)
    ids = np.resize(np.asarray(sentence, np.int32), shape[0])
  else:
    ids = rng.choice(np.asarray(tokenizer.ordinary_ids, np.int32), shape[0])
  rows = decoder.embed(jnp.asarray(ids))
  return np.asarray(distributed.fetch(rows), np.float32)


def save_table(
  path: epath.PathLike, table: np.ndarray, metadata: dict[str, object]
) -> None:
  """Writes the table as safetensors, whole or not at all.

  Args:
    path: the file.
    table: `P D` f32.
    metadata: JSON values, e.g. the base's fingerprint.
  """
  data = safetensors.numpy.save(
    {TENSOR: np.ascontiguousarray(table, np.float32)},
    metadata={key: json.dumps(value) for key, value in metadata.items()},
  )
  writers.write_bytes(path, data)


def load_table(path: epath.PathLike) -> tuple[np.ndarray, dict[str, object]]:
  """Reads what `save_table` wrote.

  Returns:
    The table, `P D` f32, and the metadata.

  Raises:
    errors.UserError: the file is missing, is no safetensors file, or holds
      no finite f32 table.
  """
  try:
    data = epath.Path(path).read_bytes()
    table = safetensors.numpy.load(data)[TENSOR]
    # Only of a file on disk does the library give the metadata, which is an
    # entry of the JSON that follows its length.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    metadata = {
      key: json.loads(value)
      for key, value in header.get('__metadata__', {}).items()
    }
  except FileNotFoundError:
    raise errors.UserError(f'{path}: not found') from None
  except (safetensors.SafetensorError, KeyError, ValueError, OSError) as e:
    raise errors.UserError(
      f'{path}: not a table of virtual tokens ({e})'
    ) from None
  if table.ndim != 2 or table.dtype != np.float32:
    raise errors.UserError(
      f'{path}: expected a f32 table of two dimensions, got {table.dtype} '
      f'{list(table.shape)}'
    )
  if not np.isfinite(table).all():
    raise errors.UserError(f'{path}: the table holds NaN or infinity')
  return table, metadata


def table_sha256(table: np.ndarray) -> str:
  """Hash of a table's values (f32, little-endian, row by row)."""
  data = np.ascontiguousarray(table, np.dtype('<f4')).tobytes()
  return hashlib.sha256(data).hexdigest()
