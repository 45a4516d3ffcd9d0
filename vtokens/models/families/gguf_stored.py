"""What llama.cpp's converter does to tensors, for readers to undo."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vtokens.models.decoder_config import DecoderConfig

# Ends of names of vectors that the converter gives a second axis.
_VECTORS = tuple(
  f'{mixer}.{name}'
  for mixer in ('mamba', 'mixer')
  for name in ('D', 'norm.weight')
)


@dataclasses.dataclass(frozen=True)
class Stored:
  """How a GGUF file differs from Hugging Face's files in one tensor.

  Attributes:
    rows: for each row in Hugging Face's order, its row in the file; None if
      the order is the same.
    columns: the same for columns.
    shape: shape in Hugging Face's files; None if it is the same.
    offset: number that the converter added.
    decay: whether the converter replaced each value by minus its exponential.
  """

  rows: np.ndarray | None = None
  columns: np.ndarray | None = None
  shape: tuple[int, ...] | None = None
  offset: float = 0.0
  decay: bool = False

  def values(self, array: np.ndarray) -> np.ndarray:
    """Undoes what the converter did to values.

    Args:
      array: values of the file, float32.
    """
    if self.decay:
      array = np.log(-array)
    return array - self.offset if self.offset else array


@dataclasses.dataclass(frozen=True)
class Part:
  """One of several tensors of the file that together are one tensor.

  The tensor's rows are in blocks. A part has some rows of each block.

  Attributes:
    name: name of the part, which the gguf package knows.
    turned: whether the file has each block's rows as columns.
  """

  name: str
  turned: bool = False


def interleaved_rows(rows: int, num_heads: int) -> np.ndarray:
  """Order in which llama.cpp stores the rows of q and k.

  For some architectures llama.cpp rotates neighbouring pairs, so its converter
  interleaves the two halves of each head (rows 0, H/2, 1, H/2 + 1, ...).
  Hugging Face rotates row i with row i + H/2. See `LlamaModel.permute` in
  llama.cpp's conversion/llama.py.

  Args:
    rows: rows of the matrix, `num_heads * H`.
    num_heads: heads of the matrix.

  Returns:
    For each row in Hugging Face's order, its row in the file.
  """
  pairs = np.arange(rows).reshape(num_heads, rows // num_heads // 2, 2)
  return pairs.swapaxes(1, 2).reshape(rows)


def grouped_rows(config: DecoderConfig) -> np.ndarray:
  """Order in which llama.cpp stores the rows of q, k and v in one tensor.

  llama.cpp has the rows of all queries, then of all keys, then of all values.
  Hugging Face has, for each head of keys, its queries, the keys and the values.

  Args:
    config: the architecture.

  Returns:
    For each row in Hugging Face's order, its row in the file.
  """
  groups, width = config.num_kv_heads, config.head_dim
  queries = config.num_heads * width
  count = groups * width
  q = np.arange(queries).reshape(groups, -1)
  k = queries + np.arange(count).reshape(groups, -1)
  return np.concatenate([q, k, k + count], axis=1).reshape(-1)


def tiled_rows(
  groups: int, heads: int, width: int, before: int = 0
) -> np.ndarray:
  """Order in which llama.cpp stores heads that share groups in turn.

  Head i of the file belongs to group `i % groups`; Hugging Face has the heads
  of a group one after the other.

  Args:
    groups: number of groups.
    heads: number of heads, a multiple of `groups`.
    width: rows of a head.
    before: rows before the first head, whose order is the same.

  Returns:
    For each row in Hugging Face's order, its row in the file.
  """
  place = np.arange(heads * width).reshape(heads // groups, groups, width)
  rows = before + place.swapaxes(0, 1).reshape(-1)
  return np.concatenate([np.arange(before), rows])


def recurrent(name: str, shape: Sequence[int]) -> Stored | None:
  """Tensors of recurrent layers whose shape or values differ.

  Args:
    name: Hugging Face's name of the tensor.
    shape: its shape in the file.

  Returns:
    How the tensor is stored; None if the name is another.
  """
  if name.endswith(('conv1d.weight', 'conv.conv.weight')):
    channels, taps = shape
    return Stored(shape=(channels, 1, taps))
  vector = (int(np.prod(shape)),)
  if name.endswith('.A_log'):
    return Stored(shape=vector, decay=True)
  if name.endswith(_VECTORS):
    return Stored(shape=vector)
  return None
