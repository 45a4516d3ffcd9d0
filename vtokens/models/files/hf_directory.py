"""Config and tensors of a Hugging Face directory."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors

from vtokens.host import errors, json_files, paths
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry, wrappers
from vtokens.models.files.weight_map import EVERY, spread
from vtokens.models.files.weights import INDEX_FILE, SINGLE_FILE

# Bytes of a value, by the name of its type in safetensors.
_FLOATS = {'F16': 2, 'BF16': 2, 'F32': 4}
# Tensors up to this many values, such as norms, enter the fingerprint whole.
_SMALL = 1 << 16
# If this file exists, transformers adds an adapter to the weights.
_ADAPTER = 'adapter_config.json'
# Files that are read besides the weights.
_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  INDEX_FILE,
  _ADAPTER,
)
# Largest size of each of these files, in bytes.
_LARGEST = 1 << 30
_AGAIN = 'download or copy it again'


class SafetensorsSource:
  """The safetensors files of a directory.

  Of a multimodal model it has the tensors of the text part, under the names
  that they have outside the wrapper; see `wrappers`. It reads no others.

  A file is opened for each read, because pages of an open file count as memory
  of the process.

  Raises:
    errors.UserError: there are no weights or only pickled weights; a file in
      the index is missing, in another directory, or unreadable; a tensor is
      quantised; there is an adapter next to the weights; config.json is not
      readable.
  """

  def __init__(self, directory: str | pathlib.Path):
    self.where = str(directory)
    self._wrapper = read_wrapper(directory)
    self._unused = _unused_names(directory)
    # Under the names outside a wrapper: path and name in the file.
    self._place: dict[str, tuple[pathlib.Path, str]] = {}
    self._shapes: dict[str, tuple[int, ...]] = {}
    self._nbytes: dict[str, int] = {}
    for path in _weight_files(pathlib.Path(directory), self._text_name):
      try:
        with safetensors.safe_open(path, framework='numpy') as file:
          for stored in file.keys():  # noqa: SIM118 (not a mapping)
            name = self._text_name(stored)
            if name is not None:
              self._add(path, name, stored, file.get_slice(stored))
      except (OSError, safetensors.SafetensorError) as e:
        raise errors.UserError(
          f'{path}: not a readable safetensors file ({errors.shorten(e)}); '
          f'{_AGAIN}'
        ) from e

  def _text_name(self, stored: str) -> str | None:
    """See `wrappers.Wrapper.text_name`; also None for an unused tensor."""
    if stored.endswith(self._unused):
      return None
    return self._wrapper.text_name(stored) if self._wrapper else stored

  def _add(self, path: pathlib.Path, name: str, stored: str, part: Any) -> None:
    kind = part.get_dtype()
    if kind not in _FLOATS:
      raise errors.UserError(
        f'{path}: tensor {stored} is {kind}, expected one of '
        f'{", ".join(_FLOATS)} (quantised safetensors are not supported)'
      )
    before = self._place.get(name, (path, stored))
    if before[1] != stored:
      raise errors.UserError(
        f'{path}: tensors {before[1]} and {stored} are the same weight of the '
        'text part; remove one of them'
      )
    self._place[name] = path, stored
    self._shapes[name] = tuple(part.get_shape())
    self._nbytes[name] = math.prod(part.get_shape()) * _FLOATS[kind]

  def stored_name(self, name: str) -> str:
    """Name in the files of a tensor that they have."""
    return self._place[name][1]

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
    path, stored = self._place[name]
    with safetensors.safe_open(path, framework='numpy') as file:
      block: np.ndarray = file.get_slice(stored)[index]
    return block

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    shape = self._shapes[name]
    path, stored = self._place[name]
    with safetensors.safe_open(path, framework='numpy') as file:
      part = file.get_slice(stored)
      if math.prod(shape) <= _SMALL:
        whole: np.ndarray = part[:]
        return whole.tobytes()
      picks = sorted({int(i) for i in np.linspace(0, shape[0] - 1, 4)})
      rows = [np.ascontiguousarray(part[i : i + 1]) for i in picks]
    return b''.join(spread(row.view(np.uint8).reshape(-1)) for row in rows)


def _weight_files(
  directory: pathlib.Path, text_name: Callable[[str], str | None]
) -> list[pathlib.Path]:
  """The files that have a tensor of the text part."""
  index = directory / INDEX_FILE
  has_single = (directory / SINGLE_FILE).exists()
  _check_adapter(directory, has_single or index.exists())
  if index.exists():
    files = json_files.read(index, {'weight_map': {str: str}}, _AGAIN)
    names = sorted(
      {
        file
        for name, file in files['weight_map'].items()
        if text_name(name) is not None
      }
    )
    for name in names:
      if (
        pathlib.PurePath(name).name != name
        or name in ('.', '..')
        or '\0' in name
        or not name.endswith('.safetensors')
      ):
        raise errors.UserError(
          f'{index}: weight_map names {errors.shorten(repr(name))}, expected a '
          'plain name of a .safetensors file inside the directory'
        )
    if not names:
      raise errors.UserError(f'{index}: weight_map is empty; {_AGAIN}')
    if has_single and SINGLE_FILE not in names:
      raise errors.UserError(
        f'{directory}: holds {SINGLE_FILE} and {INDEX_FILE}, which names other '
        'files: transformers would read the first, others the second; move '
        'one of them away'
      )
    paths = [directory / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise errors.UserError(
        f'{directory}: {len(missing)} of {len(paths)} weight files are '
        f'missing: {errors.several(missing)}; finish the download'
      )
    return paths
  if has_single:
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


def check_files(directory: str | pathlib.Path) -> None:
  """Raises if a file of a model cannot be read.

  Raises:
    errors.UserError: a file is a directory, a pipe, a device, or too large.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.UserError(
      f'{directory}: expected a Hugging Face model directory or a .gguf file'
    )
  for path in sorted(directory.iterdir()):
    named = path.suffix == '.safetensors' or path.name in _FILES
    if named and path.exists() and not path.is_file():
      what = 'a directory' if path.is_dir() else 'no regular file'
      raise errors.UserError(f'{path}: is {what}, expected a file; {_AGAIN}')
    if path.name in _FILES:
      paths.check_file(path, _LARGEST)


def _check_adapter(directory: pathlib.Path, has_weights: bool) -> None:
  """Raises if transformers would add an adapter to the weights.

  Only the owner knows whether the adapter is intended: PEFT leaves such files
  next to merged weights, too.
  """
  path = directory / _ADAPTER
  if not path.exists():
    return
  values = json_files.read(path)
  kind = errors.shorten(values.get('peft_type') or 'PEFT', 40)
  if has_weights:
    raise errors.UserError(
      f'{path}: a {kind} adapter beside the weights, which transformers puts '
      'on them and vtokens does not. If it belongs to the model, merge it '
      '(PeftModel.merge_and_unload, then save_pretrained into a new '
      'directory) and name that directory; if the weights are meant as they '
      f'are, e.g. merged already, move {_ADAPTER} out of the directory'
    )
  base = values.get('base_model_name_or_path') or 'its base'
  raise errors.UserError(
    f'{directory}: holds a {kind} adapter alone, no model; merge it into '
    f'{errors.shorten(base)} (PeftModel.merge_and_unload, then save_pretrained '
    'into a new directory, the tokenizer too) and name that directory'
  )


def read_config(directory: str | pathlib.Path) -> DecoderConfig:
  """The `DecoderConfig` of a Hugging Face directory.

  Raises:
    errors.UserError: config.json is missing, not JSON, or not supported.
  """
  path = pathlib.Path(directory) / 'config.json'
  if not path.exists():
    raise errors.UserError(
      f'{path}: not found; expected a Hugging Face model directory'
    )
  return registry.from_hf(read_fields(path), str(path))


def read_fields(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object of a config.json.

  Raises:
    errors.UserError: it is not JSON.
  """
  values: dict[str, Any] = json_files.read(path, dict, _AGAIN)
  return values


def read_wrapper(directory: str | pathlib.Path) -> wrappers.Wrapper | None:
  """The wrapper of a directory's model; None for a plain decoder."""
  path = pathlib.Path(directory) / 'config.json'
  return wrappers.wrapper_of(read_fields(path)) if path.exists() else None


def _unused_names(directory: str | pathlib.Path) -> tuple[str, ...]:
  """See `family.Family.unused`."""
  path = pathlib.Path(directory) / 'config.json'
  found = read_fields(path).get('model_type') if path.exists() else None
  family = registry.families().get(found) if isinstance(found, str) else None
  return family.unused if family else ()
