"""The file of SPRING's own code: a tensor of shape [n, D]. Needs PyTorch.

SPRING is github.com/DaoD/SPRING. FlashRAG reads the file, too.
"""

import io
import pathlib
import zipfile

import numpy as np

from vtokens.host import errors

FILE = 'virtual_tokens.pt'
# The largest table: 1,024 tokens of 16,384 numbers, and a header.
_MOST_BYTES = (1 << 26) + (1 << 16)
# In earlier versions of PyTorch some files get around weights_only.
_OLDEST = '2.10'


def write(path: pathlib.Path, table: np.ndarray) -> None:
  """Writes a table as `torch.save` does.

  Args:
    path: the file.
    table: array of shape [n, D], float32.
  """
  import torch

  # Copied, since torch.save writes the whole storage of a tensor. Saved to
  # memory first, since torch turns a full disk into a RuntimeError.
  buffer = io.BytesIO()
  torch.save(torch.from_numpy(table.copy()), buffer)
  path.write_bytes(buffer.getvalue())


def read(path: str) -> np.ndarray:
  """Reads a table of shape [n, D] as float32. Runs no code of the file.

  Raises:
    errors.UserError: there is no such file, PyTorch is not installed, or the
      file holds no finite table.
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
  # torch.__version__ compares as a version, not as text.
  if torch.__version__ < _OLDEST:
    raise errors.UserError(
      f'{path}: PyTorch {torch.__version__} may run code that is in the file '
      '(CVE-2025-32434, GHSA-63cw-57p8-fm3p); pip install '
      f"'torch>={_OLDEST}'"
    )
  try:
    _check_size(file)
    found = torch.load(path, map_location='cpu', weights_only=True)
  # A bad file can cause errors of pickle, of zipfile, or a RuntimeError.
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
  """Refuses compressed content, which could be far larger than the file.

  Raises:
    ValueError: a part is compressed; torch.save compresses nothing.
    zipfile.BadZipFile: the file is broken.
  """
  with file.open('rb') as start:
    if start.read(2) != b'PK':
      return  # The format before PyTorch 1.6, which has no compression.
  with zipfile.ZipFile(file) as parts:
    for part in parts.infolist():
      if part.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'{part.filename} in it is compressed')
