"""Config and tensors of a Hugging Face directory."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from vtokens.host import errors, json_files, paths
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry, wrappers
from vtokens.models.files.quantised import formats, stored
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.weight_map import EVERY, spread
from vtokens.models.files.weights import INDEX_FILE, SINGLE_FILE

# Types of weights that are not quantised.
_FLOATS = ('F16', 'BF16', 'F32')
# Tensors up to this many values, such as norms, enter the fingerprint whole.
_SMALL = 1 << 16
# Rows of one value, as bitsandbytes has, that stand for a row of a matrix.
_FLAT = 1 << 12
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
  *formats.FILES,
)
# Largest size of each of these files, in bytes.
_LARGEST = 1 << 30
_AGAIN = 'download or copy it again'


class _Unused(NamedTuple):
  """Names of tensors that are never read.

  Attributes:
    ends: ends of stored names.
    beginnings: beginnings of stored names.
    of_text: beginnings of names of the text part outside a wrapper.
  """

  ends: tuple[str, ...] = ()
  beginnings: tuple[str, ...] = ()
  of_text: tuple[str, ...] = ()


class SafetensorsSource:
  """The safetensors files of a directory.

  Of a multimodal model it has the tensors of the text part, under the names
  that they have outside the wrapper; see `wrappers`. It reads no others.

  Quantised weights are dequantised when they are read, under the names and with
  the shapes of the model without quantisation.

  A file is opened for each read, because pages of an open file count as memory
  of the process.

  Attributes:
    where: path of the directory, for messages.
    path: path of the directory.
    format: how the weights are quantised; None if they are not.

  Raises:
    errors.UserError: there are no weights or only pickled weights; a file in
      the index is missing, in another directory, or unreadable; a tensor is
      quantised in an unsupported way; there is an adapter next to the weights;
      config.json is not readable.
  """

  def __init__(self, directory: str | pathlib.Path):
    self.where, self.path = str(directory), pathlib.Path(directory)
    self._wrapper = read_wrapper(directory)
    self._unused = _unused_names(directory)
    # Under the names outside a wrapper.
    self._plain: dict[str, stored.Stored] = {}
    self._packed: dict[str, Packed] = {}
    metadata: dict[str, str] = {}
    for path in _weight_files(pathlib.Path(directory), self._text_name):
      try:
        # It checks the header.
        with safetensors.safe_open(path, framework='numpy'):
          found, more = stored.read_header(path)
      except (OSError, safetensors.SafetensorError) as e:
        raise errors.UserError(
          f'{path}: not a readable safetensors file ({errors.shorten(e)}); '
          f'{_AGAIN}'
        ) from e
      metadata |= more
      for tensor in found.values():
        self._add(tensor)
    self.format = read_format(directory, metadata)
    if self.format is not None:
      self._pack(self.format)
    for tensor in self._plain.values():
      _check_float(tensor, self.format)
    self._shapes = {
      **{name: one.shape for name, one in self._plain.items()},
      **{name: one.shape for name, one in self._packed.items()},
    }

  def _text_name(self, stored: str) -> str | None:
    """See `wrappers.Wrapper.text_name`; also None for an unused tensor."""
    unused = self._unused
    if stored.endswith(unused.ends) or stored.startswith(unused.beginnings):
      return None
    name = self._wrapper.text_name(stored) if self._wrapper else stored
    return None if name and name.startswith(unused.of_text) else name

  def _add(self, tensor: stored.Stored) -> None:
    name = self._text_name(tensor.name)
    if name is None:
      return
    before = self._plain.get(name, tensor)
    if before.name != tensor.name:
      raise errors.UserError(
        f'{tensor.path}: tensors {before.name} and {tensor.name} are the same '
        'weight of the text part; remove one of them'
      )
    self._plain[name] = tensor

  def _pack(self, form: formats.Format) -> None:
    """Puts the tensors of each quantised weight together."""
    # Weight -> end of a stored name -> tensor under this name.
    found: dict[str, dict[str, tuple[str, stored.Stored]]] = {}
    for name, tensor in self._plain.items():
      ends = [end for end in form.endings if name.endswith(end)]
      if ends:
        end = max(ends, key=len)
        weight = name.removesuffix(end) + form.weight_ending
        found.setdefault(weight, {})[end[1:]] = name, tensor
    for weight, named in found.items():
      parts = {end: tensor for end, (_, tensor) in named.items()}
      if set(parts) == {'weight'} and parts['weight'].kind in _FLOATS:
        continue
      end, first = next(iter(parts.items()))
      module = weight.removesuffix(form.weight_ending)
      if formats.names(form.skipped, (module, first.name[: -len(end) - 1])):
        raise first.fail(
          f'but {formats.FIELD} leaves {module} as it is (ignore, '
          'ignored_layers or modules_to_not_convert)'
        )
      packed = form.weight(weight, parts)
      for name, _ in named.values():
        del self._plain[name]
      self._packed[weight] = packed

  def stored_name(self, name: str) -> str:
    """Name in the files of a tensor that they have.

    A quantised weight has several names; this is the name that it had before.
    """
    if name in self._packed:
      module = self._packed[name].parts[0].name.rpartition('.')[0]
      return f'{module}.weight'
    return self._plain[name].name

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `weight_map.TensorSource`."""
    return self._shapes

  def nbytes(self, name: str) -> int:
    """See `weight_map.TensorSource`."""
    if name in self._packed:
      return sum(part.nbytes for part in self._packed[name].parts)
    return self._plain[name].nbytes

  def is_quantised(self, name: str) -> bool:
    """Whether a weight is dequantised when it is read."""
    return name in self._packed

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """See `weight_map.TensorSource`."""
    if name in self._packed:
      return self._packed[name].read(rows, columns)
    one = self._plain[name]
    index: tuple[int | slice, ...] = (rows, columns)[: len(one.shape)]
    if one.shape[1:2] == (1,) and len(one.shape) == 3:
      index = rows, 0, columns
    elif len(one.shape) == 3:
      # Rows of one matrix, counted over all matrices.
      start, stop, _ = rows.indices(one.shape[0] * one.shape[1])
      matrix, first = divmod(start, one.shape[1])
      if first + stop - start > one.shape[1]:
        raise ValueError(f'{name}: rows {start} to {stop} of two matrices')
      index = matrix, slice(first, first + stop - start), columns
    with safetensors.safe_open(one.path, framework='numpy') as file:
      block: np.ndarray = file.get_slice(one.name)[index]
    return block

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    if name in self._packed:
      packed = self._packed[name]
      parts = b''.join(
        _sample(part, _FLAT if math.prod(part.shape[1:]) == 1 else 1)
        for part in packed.parts
      )
      return packed.about.encode() + parts
    return _sample(self._plain[name])


def _sample(one: stored.Stored, count: int = 1) -> bytes:
  """A small, fixed part of a tensor's bytes.

  Args:
    one: the tensor.
    count: rows that are read at each of the places in a large tensor.
  """
  if math.prod(one.shape) <= _SMALL:
    return one.read().tobytes()
  picks = sorted({int(i) for i in np.linspace(0, one.shape[0] - count, 4)})
  return b''.join(
    spread(one.read(slice(i, i + count)).view(np.uint8).reshape(-1))
    for i in picks
  )


def _check_float(one: stored.Stored, form: formats.Format | None) -> None:
  """Raises if a tensor is no float of 16 or 32 bits."""
  if one.kind in _FLOATS:
    return
  why = (
    f'{formats.FIELD} says {form.label}, which has no such tensor'
    if form
    else f'config.json has no {formats.FIELD} that says how it is quantised'
  )
  raise errors.UserError(
    f'{one.path}: tensor {one.name} is {one.kind}, expected one of '
    f'{", ".join(_FLOATS)}: {why}'
  )


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
  fields, _ = formats.split(read_fields(path), path)
  # First, so that an unsupported type is reported as such.
  found = registry.from_hf(fields, str(path))
  read_format(directory, {})
  return found


def read_format(
  directory: str | pathlib.Path, metadata: Mapping[str, str]
) -> formats.Format | None:
  """How the weights of a directory are quantised; None if they are not.

  Args:
    directory: the directory.
    metadata: metadata of its safetensors files.

  Raises:
    errors.UserError: config.json is not readable, or the quantisation is not
      supported.
  """
  path = pathlib.Path(directory) / 'config.json'
  if not path.exists():
    return None
  _, settings = formats.split(read_fields(path), path)
  return formats.make(settings, metadata) if settings else None


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


def _unused_names(directory: str | pathlib.Path) -> _Unused:
  """See `family.Family.unused`, `unused_parts` and `unused_tensors`."""
  path = pathlib.Path(directory) / 'config.json'
  if not path.exists():
    return _Unused()
  values = dict(wrappers.with_known_type(read_fields(path)))
  whole = registry.families().get(str(values.get('model_type')))
  if wrappers.wrapper_of(values) is not None:
    values = wrappers.text_fields(values, str(path))
  found = str(values.get('model_type'))
  family = registry.families().get(wrappers.TEXT_TYPES.get(found, found))
  return _Unused(
    whole.unused if whole else (),
    whole.unused_parts if whole else (),
    family.unused_tensors(values) if family else (),
  )
