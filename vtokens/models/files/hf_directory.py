"""Config and tensors of a Hugging Face directory."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from vtokens.host import errors, json_files
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry, wrappers
from vtokens.models.files import directory_files
from vtokens.models.files.quantised import formats, stored
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.weight_map import EVERY, spread

# Types of weights that are not quantised.
_FLOATS = ('F16', 'BF16', 'F32')
# Tensors up to this many values, such as norms, enter the fingerprint whole.
_SMALL = 1 << 16
# Rows of one value, as bitsandbytes has, that stand for a row of a matrix.
_FLAT = 1 << 12


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
    for path in directory_files.with_weights(
      pathlib.Path(directory), self._text_name
    ):
      try:
        # It checks the header.
        with safetensors.safe_open(path, framework='numpy'):
          found, more = stored.read_header(path)
      except (OSError, safetensors.SafetensorError) as e:
        raise errors.UserError(
          f'{path}: not a readable safetensors file ({errors.shorten(e)}); '
          f'{directory_files.AGAIN}'
        ) from e
      metadata |= more
      for tensor in found.values():
        self._add(tensor)
    self.format = read_format(directory, metadata)
    if self.format is not None:
      if self.format.cache:
        self._leave_out(formats.CACHE_ENDINGS)
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

  def _leave_out(self, endings: tuple[str, ...]) -> None:
    self._plain = {
      name: one
      for name, one in self._plain.items()
      if not name.endswith(endings)
    }

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
  values: dict[str, Any] = json_files.read(path, dict, directory_files.AGAIN)
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
