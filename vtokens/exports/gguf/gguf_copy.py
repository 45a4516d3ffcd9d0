"""Copies GGUF files, a tensor at a time."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gguf
import numpy as np

from vtokens.host import errors

ARCHITECTURE = 'general.architecture'


@dataclasses.dataclass(frozen=True)
class Field:
  """A value of the metadata, as `GGUFWriter.add_key_value` takes it."""

  value: Any
  kind: gguf.GGUFValueType
  items: gguf.GGUFValueType | None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor to write; `read()` returns an array of its shape and dtype."""

  name: str
  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def as_it_is(tensor: gguf.ReaderTensor) -> Tensor:
  """A tensor to write unchanged."""
  return Tensor(
    tensor.name,
    tensor.tensor_type,
    tensor.data.shape,
    tensor.data.dtype,
    lambda: tensor.data,
  )


def save(
  target: os.PathLike[str],
  reader: gguf.GGUFReader,
  fields: Mapping[str, Field],
  tensors: Sequence[Tensor],
) -> None:
  """Writes a file.

  Args:
    target: the file.
    reader: reader of a file with the same alignment.
    fields: metadata, in order.
    tensors: tensors, read and written one after the other.
  """
  architecture = fields[ARCHITECTURE].value.decode()
  writer = gguf.GGUFWriter(target, architecture)
  writer.data_alignment = int(reader.alignment)
  for name, field in fields.items():
    if name != ARCHITECTURE:  # The writer has written it.
      writer.add_key_value(name, field.value, field.kind, field.items)
  for tensor in tensors:
    size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    writer.add_tensor_info(
      tensor.name, tensor.shape, tensor.dtype, size, tensor.kind
    )
  try:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
      writer.write_tensor_data(tensor.read())
  finally:
    writer.close()


def read_fields(reader: gguf.GGUFReader, path: str) -> dict[str, Field]:
  """Metadata of a file, with texts as bytes.

  Args:
    reader: reader of the file.
    path: path of the file, for messages.

  Raises:
    errors.UserError: the metadata has an array of arrays.
  """
  kinds = gguf.GGUFValueType
  fields = {}
  for name, field in reader.fields.items():
    if name.startswith('GGUF.'):  # Version and counts of the file.
      continue
    match field.types:
      case [kinds.STRING]:
        found = Field(field.parts[-1].tobytes(), kinds.STRING, None)
      case [kinds.ARRAY]:
        continue  # GGUFWriter cannot write an empty array; none means the same.
      case [kinds.ARRAY, kinds.STRING]:
        texts = [field.parts[at].tobytes() for at in field.data]
        found = Field(texts, kinds.ARRAY, kinds.STRING)
      case [kinds.ARRAY, items] if items != kinds.ARRAY:
        values = [field.parts[at][0].item() for at in field.data]
        found = Field(values, kinds.ARRAY, items)
      case [kind] if kind != kinds.ARRAY:
        found = Field(field.parts[-1][0].item(), kind, None)
      case _:
        # GGUFReader flattens it.
        raise errors.UserError(
          f'{path}: metadata {name} is an array of arrays, which cannot be '
          'copied'
        )
    fields[name] = found
  return fields
