"""Weights of a GGUF file, dequantised, in Hugging Face's order."""

import pathlib
import re
from typing import Any

import gguf
import numpy as np

from vtokens.host import errors
from vtokens.models.files import gguf_config, gguf_header, gguf_metadata
from vtokens.models.files.weight_map import EVERY, spread

# Tensors that belong to the config and are no weights.
_FACTORS = (
  'rope_freqs.weight',
  'rope_factors_short.weight',
  'rope_factors_long.weight',
)
_LAYER = re.compile(r'blk\.(\d+)\.')


class GGUFSource:
  """The tensors of a GGUF file under their Hugging Face names.

  A file may say less than config.json (Mistral's window, Gemma's query scale).
  Then the model is what llama.cpp would run.

  Attributes:
    where: path of the file.
    config: architecture of the model.

  Raises:
    errors.UserError: the file is missing or not GGUF, or its architecture or a
      setting is not supported.
  """

  def __init__(self, path: str | pathlib.Path):
    self.where = str(path)
    gguf_header.check(path)
    try:
      self._reader = gguf.GGUFReader(path)
    except FileNotFoundError:
      raise errors.UserError(f'{path}: not found') from None
    # A damaged file raises any of these.
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as e:
      raise errors.UserError(
        f'{path}: not a readable GGUF file ({e})'
      ) from None
    if self._reader.endianess != gguf.GGUFEndian.LITTLE:
      raise errors.UserError(f'{path}: big-endian GGUF is not supported')
    tensors = {tensor.name: tensor for tensor in self._reader.tensors}
    metadata = gguf_metadata.Metadata(self._reader, self.where)
    kind = metadata.get('general.type', 'model')
    if kind != 'model':
      raise errors.UserError(
        f'{path}: general.type is {kind!r}, expected a model; an adapter has '
        'to be merged into its base first'
      )
    self._metadata = metadata
    self.architecture = metadata.architecture
    self._family = gguf_config.family_of(metadata)
    self.config = gguf_config.read(self._family, metadata, tensors)
    self._tensors = {}
    names = self._hf_names(tensors)
    for name, tensor in tensors.items():
      if name in names:
        self._tensors[names[name]] = tensor
      elif name not in _FACTORS:
        raise errors.UserError(
          f'{path}: tensor {name} is not supported for {self.architecture}'
        )
    # Weights that are no tensors of the file.
    self._numbers = self._family.gguf_numbers(metadata, self.config)
    self._shapes = {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    } | {name: array.shape for name, array in self._numbers.items()}

  def metadata(self, key: str) -> Any:
    """A metadata value of any type; None if it is missing."""
    return self._metadata.contents(key)

  def _hf_names(self, tensors: dict[str, gguf.ReaderTensor]) -> dict[str, str]:
    """GGUF name -> Hugging Face name, by the gguf package's table."""
    layers = {int(m[1]) for m in map(_LAYER.match, tensors) if m}
    # A file has no more layers than tensors, even if its numbers are wrong.
    count = min(max(layers, default=0) + 1, len(tensors))
    arch = gguf.MODEL_ARCH_NAMES
    kind = next(key for key, name in arch.items() if name == self.architecture)
    table = gguf.get_tensor_name_map(kind, count)
    names = {}
    for template in self._family.gguf_form(self.config).names.values():
      for i in range(count):
        name = template.format(i)
        theirs = table.get_name(name, try_suffixes=('.weight', '.bias'))
        if theirs is not None:
          names[theirs] = name
    return names

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `weight_map.TensorSource`."""
    return self._shapes

  def nbytes(self, name: str) -> int:
    """See `weight_map.TensorSource`."""
    if name in self._numbers:
      return self._numbers[name].nbytes
    return int(self._tensors[name].n_bytes)

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """See `weight_map.TensorSource`; always float32."""
    if name in self._numbers:
      array = self._numbers[name]
      return array[rows] if array.ndim else array
    tensor = self._tensors[name]
    data = tensor.data
    if data.ndim > 2:
      data = data.reshape(-1, data.shape[-1])
    order: slice | np.ndarray = rows
    stored = self._family.gguf_rows(self.config, name, int(tensor.shape[-1]))
    if stored is not None:
      order = stored[rows]
    try:
      array = gguf.dequantize(
        data[order] if data.ndim > 1 else data, tensor.tensor_type
      )
    except NotImplementedError as e:
      raise errors.UserError(
        f'{self.where}: tensor {tensor.name} is quantised as '
        f'{tensor.tensor_type.name}, which the gguf package cannot read ({e})'
      ) from None
    array = array[:, columns] if data.ndim > 1 else array[order]
    offset = self._family.gguf_offset(name)
    return array - offset if offset else array

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    if name in self._numbers:
      return self._numbers[name].tobytes()
    return spread(self._tensors[name].data.reshape(-1).view(np.uint8))
