"""Config and tensors of a Hugging Face directory."""

import json
import math
import pathlib

import numpy as np
import safetensors

from vtokens import errors
from vtokens.models import families
from vtokens.models.config import DecoderConfig
from vtokens.models.weight_map import EVERY, spread
from vtokens.models.weights import INDEX_FILE, SINGLE_FILE

# Bytes of a value by the name of its type in safetensors.
_FLOATS = {'F16': 2, 'BF16': 2, 'F32': 4}
# Tensors of at most so many values go into the fingerprint whole: all norms.
_SMALL = 1 << 16


class SafetensorsSource:
  """The safetensors files of a directory.

  A file is opened for each read: what was read of one that stays open counts
  to the memory of the process.

  Raises:
    errors.UserError: there are none, only pickled ones, or a file that the
      index names is missing, lies elsewhere, or cannot be read; a tensor is
      quantised.
  """

  def __init__(self, directory: str | pathlib.Path):
    self.where = str(directory)
    self._path_of: dict[str, pathlib.Path] = {}
    self._shapes: dict[str, tuple[int, ...]] = {}
    self._nbytes: dict[str, int] = {}
    for path in _weight_files(pathlib.Path(directory)):
      try:
        with safetensors.safe_open(path, framework='numpy') as file:
          for name in file.keys():  # noqa: SIM118 (not a mapping)
            self._add(path, name, file.get_slice(name))
      except (OSError, safetensors.SafetensorError) as e:
        raise errors.UserError(
          f'{path}: not a readable safetensors file ({e}); download or copy '
          'it again'
        ) from e

  def _add(self, path: pathlib.Path, name: str, part) -> None:
    kind = part.get_dtype()
    if kind not in _FLOATS:
      raise errors.UserError(
        f'{path}: tensor {name} is {kind}, expected one of '
        f'{", ".join(_FLOATS)} (quantised safetensors are not supported)'
      )
    self._path_of[name] = path
    self._shapes[name] = tuple(part.get_shape())
    self._nbytes[name] = math.prod(part.get_shape()) * _FLOATS[kind]

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `weight_map.TensorSource`."""
    return self._shapes

  def nbytes(self, name: str) -> int:
    """See `weight_map.TensorSource`."""
    return self._nbytes[name]

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """See `weight_map.TensorSource`."""
    index = (rows, columns)[: len(self._shapes[name])]
    with safetensors.safe_open(self._path_of[name], framework='numpy') as file:
      return file.get_slice(name)[index]

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    shape = self._shapes[name]
    with safetensors.safe_open(self._path_of[name], framework='numpy') as file:
      part = file.get_slice(name)
      if math.prod(shape) <= _SMALL:
        return part[:].tobytes()
      picks = sorted({int(i) for i in np.linspace(0, shape[0] - 1, 4)})
      rows = [np.ascontiguousarray(part[i : i + 1]) for i in picks]
    return b''.join(spread(row.view(np.uint8).reshape(-1)) for row in rows)


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  index = directory / INDEX_FILE
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise errors.UserError(
        f'{index}: not a readable index of weight files ({e!r}); download or '
        'copy it again'
      ) from None
    for name in names:
      if pathlib.PurePath(name).name != name or name in ('.', '..'):
        raise errors.UserError(
          f'{index}: weight_map names {name!r}, expected a plain file name '
          'inside the directory'
        )
    paths = [directory / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise errors.UserError(
        f'{directory}: {len(missing)} of {len(paths)} weight files are '
        f'missing: {errors.several(missing)}; finish the download'
      )
    return paths
  if (directory / SINGLE_FILE).is_file():
    return [directory / SINGLE_FILE]
  pickled = [*directory.glob('*.bin'), *directory.glob('*.pt')]
  if pickled:
    raise errors.UserError(
      f'{directory}: only pickled weights ({pickled[0].name}), which can run '
      'code when read; convert them to safetensors with '
      'save_pretrained(..., safe_serialization=True)'
    )
  raise errors.UserError(
    f'{directory}: found neither {SINGLE_FILE} nor {INDEX_FILE}'
  )


def read_config(directory: str | pathlib.Path) -> DecoderConfig:
  """The `DecoderConfig` of a Hugging Face directory.

  Raises:
    errors.UserError: config.json is missing, not JSON, or not supported.
  """
  path = pathlib.Path(directory) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError:
    raise errors.UserError(
      f'{path}: not found; expected a Hugging Face model directory'
    ) from None
  except ValueError as e:
    raise errors.UserError(f'{path}: not JSON ({e})') from None
  if not isinstance(raw, dict):
    raise errors.UserError(
      f'{path}: holds a JSON {type(raw).__name__}, expected an object'
    )
  return families.from_hf(raw, str(path))
