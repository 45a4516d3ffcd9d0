"""Weights of a GGUF file, dequantised, in Hugging Face's order."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np

from vtokens.host import errors
from vtokens.models.families import registry
from vtokens.models.files import gguf_config, gguf_header, gguf_metadata
from vtokens.models.files.gguf_tensors import Joined, dequantised, shape_of
from vtokens.models.files.weight_map import EVERY, spread

# Tensors that belong to the config and are no weights.
_FACTORS = (
  'rope_freqs.weight',
  'rope_factors_short.weight',
  'rope_factors_long.weight',
)
# Ends of Hugging Face's names -> the gguf package's, where these differ.
_KNOWN = (
  ('.dt_bias', '.dt_proj.bias'),
  ('.e_score_correction_bias', '.e_score_correction.bias'),
)
# Ends of names that the gguf package does not know, or not for every
# architecture -> the file's.
_UNLISTED = (
  ('.router.scale', 'ffn_gate_inp.scale'),
  ('.router.per_expert_scale', 'ffn_down_exps.scale'),
  ('.experts.gate_up_proj', 'ffn_gate_up_exps.weight'),
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
    self._tensors: dict[str, gguf.ReaderTensor] = {}
    names = self._hf_names(tensors)
    # Of layers that predict further tokens; other families refuse the number.
    extra = metadata.get('{arch}.nextn_predict_layers')
    unused = self._family.unused_tensors(registry.to_hf(self.config))
    for name, tensor in tensors.items():
      layer = _LAYER.match(name)
      if extra and layer and int(layer[1]) >= self.config.num_layers:
        continue
      if name in names and names[name].startswith(unused):
        continue
      if name in names:
        self._tensors[names[name]] = tensor
      elif name not in _FACTORS:
        raise errors.UserError(
          f'{path}: tensor {name} is not supported for {self.architecture}'
        )
    self._stored = {
      name: self._family.gguf_stored(self.config, name, shape_of(tensor))
      for name, tensor in self._tensors.items()
    }
    # Weights that are no tensors of the file.
    self._numbers = self._family.gguf_numbers(metadata, self.config)
    self._shapes = {
      name: self._stored[name].shape or shape_of(tensor)
      for name, tensor in self._tensors.items()
    } | {name: array.shape for name, array in self._numbers.items()}
    self._joined = self._join()

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
    templates = {
      name
      for form in self._family.gguf_forms(self.config)
      for name in form.names.values()
    }
    for parts in self._family.gguf_joined(self.config).values():
      templates |= {part.name for part in parts}
    names: dict[str, str] = {}
    for template in templates:
      for i in range(count):
        name = template.format(i)
        theirs = table.get_name(_known(name), ('.weight', '.bias'))
        if theirs is not None:
          # A few of Hugging Face's names have no such ending.
          names |= dict.fromkeys((theirs, theirs + '.weight'), name)
        for end, theirs in _UNLISTED:
          if name.endswith(end):
            names[f'blk.{i}.{theirs}'] = name
    return names

  def _join(self) -> dict[str, Joined]:
    """The tensors that the file has in parts, which it replaces."""
    found = {}
    for template, parts in self._family.gguf_joined(self.config).items():
      for i in range(self.config.num_layers):
        names = [part.name.format(i) for part in parts]
        if not all(name in self._tensors for name in names):
          continue
        tensors = [self._tensors.pop(name) for name in names]
        for name in names:
          del self._shapes[name]
        joined = Joined(tensors, [part.turned for part in parts], self.where)
        name = template.format(i)
        found[name] = joined
        self._shapes[name] = joined.shape
    return found

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `weight_map.TensorSource`."""
    return self._shapes

  def nbytes(self, name: str) -> int:
    """See `weight_map.TensorSource`."""
    if name in self._numbers:
      return self._numbers[name].nbytes
    return sum(int(tensor.n_bytes) for tensor in self._parts(name))

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """See `weight_map.TensorSource`; always float32."""
    if name in self._numbers:
      array = self._numbers[name]
      return array[rows] if array.ndim else array
    if name in self._joined:
      return self._joined[name].read(rows)[:, columns]
    tensor, stored = self._tensors[name], self._stored[name]
    data = tensor.data
    if data.ndim != 2:
      data = data.reshape(-1, data.shape[-1])
    order = rows if stored.rows is None else stored.rows[rows]
    if len(self._shapes[name]) > 1:
      array = dequantised(tensor, data[order], self.where)
      kept = columns if stored.columns is None else stored.columns[columns]
      array = array[:, kept]
    else:
      array = dequantised(tensor, data, self.where).reshape(-1)[order]
    return stored.values(array)

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    if name in self._numbers:
      return self._numbers[name].tobytes()
    return b''.join(
      spread(tensor.data.reshape(-1).view(np.uint8))
      for tensor in self._parts(name)
    )

  def _parts(self, name: str) -> Sequence[gguf.ReaderTensor]:
    """The tensors of the file with the values of one tensor."""
    if name in self._joined:
      return self._joined[name].parts
    return [self._tensors[name]]


def _known(name: str) -> str:
  """A name that the gguf package knows."""
  for end, known in _KNOWN:
    if name.endswith(end):
      return name.removesuffix(end) + known
  return name
