"""The file that SPRING's authors' code writes and reads: a tensor `[n, D]`.

github.com/DaoD/SPRING; FlashRAG reads it too. Needs PyTorch.
"""

import io
import pathlib
import zipfile

import numpy as np

from vtokens.host import errors

FILE = 'virtual_tokens.pt'
# No table is larger: 1,024 tokens of 16,384 numbers, and a header.
_MOST_BYTES = (1 << 26) + (1 << 16)
# Before it, files were found that get around weights_only.
_OLDEST = '2.10'


def write(path: pathlib.Path, table: np.ndarray) -> None:
  """Writes a table as `torch.save` does.

  Args:
    path: the file.
    table: `n D` f32.
  """
  import torch

  # A tensor with storage of its own: all of a storage is written. Into memory,
  # since torch makes a RuntimeError of a full disk.
  buffer = io.BytesIO()
  torch.save(torch.from_numpy(table.copy()), buffer)
  path.write_bytes(buffer.getvalue())


def read(path: str) -> np.ndarray:
  """Reads a table, `n D`, as f32. No code in the file is run.

  Raises:
    errors.UserError: there is no such file, PyTorch is not installed, or the
      file is no finite table.
  """
  try:
    import torch
  except ImportError:
    raise errors.UserError(
      f'{path}: PyTorch is needed to read it; pip install torch'
    ) from None
  file = pathlib.Path(path)
  if not file.is_file():
    raise errors.UserError(f'{path}: not found')
  if file.stat().st_size > _MOST_BYTES:
    raise errors.UserError(
      f'{path}: {file.stat().st_size:,} bytes, more than any table has '
      f'({_MOST_BYTES:,})'
    )
  # It compares versions, not texts.
  if torch.__version__ < _OLDEST:
    raise errors.UserError(
      f'{path}: PyTorch {torch.__version__} may run code that is in the file '
      '(CVE-2025-32434, GHSA-63cw-57p8-fm3p); pip install '
      f"'torch>={_OLDEST}'"
    )
  try:
    _check_size(file)
    found = torch.load(path, map_location='cpu', weights_only=True)
  # Of pickle, of zipfile, or a RuntimeError: whatever the file makes fail.
  except Exception as e:
    raise errors.UserError(
      f'{path}: not a tensor as torch.save writes it, or one with code that '
      f'would have to be run ({str(e).partition(chr(10))[0]})'
    ) from None
  if not isinstance(found, torch.Tensor) or found.ndim != 2:
    what = (
      f'a tensor of shape {list(found.shape)}'
      if isinstance(found, torch.Tensor)
      else f'a {type(found).__name__}'
    )
    raise errors.UserError(f'{path}: expected a tensor [n, D], got {what}')
  if not found.is_floating_point() or 0 in found.shape:
    raise errors.UserError(
      f'{path}: expected floating-point numbers, got {list(found.shape)} of '
      f'{found.dtype}'
    )
  if (
    found.layout != torch.strided
    or found.device.type != 'cpu'
    or 4 * found.numel() > _MOST_BYTES
  ):
    raise errors.UserError(
      f'{path}: expected a plain tensor of at most {_MOST_BYTES:,} bytes, got '
      f'{list(found.shape)}, {found.layout} on {found.device}'
    )
  table = found.detach().to(torch.float32).numpy()
  if not np.isfinite(table).all():
    raise errors.UserError(f'{path}: the table holds NaN or infinity')
  return np.ascontiguousarray(table)


def _check_size(file: pathlib.Path) -> None:
  """Raises if the file holds more than its size tells.

  Raises:
    ValueError: it does: torch.save compresses nothing.
    zipfile.BadZipFile: it is broken.
  """
  with file.open('rb') as start:
    if start.read(2) != b'PK':
      return  # In the form of before PyTorch 1.6, which is not compressed.
  with zipfile.ZipFile(file) as parts:
    for part in parts.infolist():
      if part.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'{part.filename} in it is compressed')
