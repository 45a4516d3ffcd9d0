"""torchao: int8, int4 and float8 weights, as it writes them to safetensors.

The metadata of a file says what each weight is. Other classes of weights in 4
bits have layouts of GPU kernels, and are refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vtokens.host import errors
from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Grid, Matrix, Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

# Class -> type of its codes.
_KINDS = {
  'Int8Tensor': 'I8',
  'IntxUnpackedToInt8Tensor': 'I8',
  'Int4Tensor': 'I8',
  'Float8Tensor': 'F8_E4M3',
}


class TorchAO:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  cache = ''
  endings = packed.endings(
    ('weight', '_weight_qdata', '_weight_scale', '_weight_zero_point')
  )

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    self._metadata = metadata
    kind = settings.take('quant_type', {})
    self.skipped = settings.texts('modules_to_not_convert')
    settings.ignore(
      'include_input_output_embeddings',
      'untie_embedding_weights',
      'quant_type_kwargs',
    )
    settings.finish()
    name = kind
    if isinstance(kind, Mapping):
      default = kind.get('default')
      name = default.get('_type') if isinstance(default, Mapping) else default
    self.label = f'torchao, {name}'
    # Also in the config of a module.
    dynamic = 'Dynamic' in str(kind)
    self.activations = 'as the name says, dynamic scales' if dynamic else ''

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    codes = packed.need(parts, '_weight_qdata')
    stored = f'{codes.name.rpartition(".")[0]}.weight'
    kind, block = self._facts(codes, stored)
    if codes.kind != _KINDS[kind] or len(codes.shape) != 2:
      raise codes.fail(f'expected a matrix of {_KINDS[kind]}')
    if len(block) != 2 or block[0] < 1 or block[1] < 1:
      raise codes.fail(f'but its block_size in the metadata is {block}')
    if kind == 'Int4Tensor':
      return _int4(codes, parts, block)
    size = block[0], block[1]
    scale = packed.need(parts, '_weight_scale')
    used = [codes, scale]
    scales = packed.grid_of(scale, codes.shape, size)
    zeros = None
    zero = parts.get('_weight_zero_point')
    if zero is not None:
      used.append(zero)
      zeros = packed.grid_of(zero, codes.shape, size, ('I8',))
    table = packed.E4M3.astype(np.float32)
    if codes.kind == 'I8':
      table = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    return Matrix(
      codes.shape,
      tuple(used),
      f'torchao {kind} {size[0]}x{size[1]}',
      packed.table_codes(codes, table),
      scales,
      zeros,
    )

  def _facts(self, codes: Stored, name: str) -> tuple[str, list[int]]:
    """Class and block of a weight, by the file's metadata."""
    try:
      values: dict[str, Any] = json.loads(self._metadata[name])
      kind = values['_type']
      block = [int(size) for size in values['_data']['block_size']]
    except (KeyError, TypeError, ValueError):
      raise codes.fail(
        f'but the metadata of the file does not say what {name} is'
      ) from None
    if kind not in _KINDS:
      raise errors.UserError(
        f'{codes.path}: {name} is a {kind} of torchao, not supported; '
        f'supported: {", ".join(_KINDS)}'
      )
    return kind, block


@dataclasses.dataclass(frozen=True)
class _Int4:
  """A matrix `codes * scales + lows`; see `packed.Packed`.

  Attributes:
    shape: see `packed.Packed`.
    parts: see `packed.Packed`.
    about: see `packed.Packed`.
    codes: reads codes from 0 to 15.
    scales: the factors of groups.
    lows: the values of code 0.
  """

  shape: tuple[int, ...]
  parts: tuple[Stored, ...]
  about: str
  codes: packed.Reader
  scales: Grid
  lows: Grid

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """See `packed.Packed`."""
    rows = slice(*rows.indices(self.shape[0]))
    columns = slice(*columns.indices(self.shape[1]))
    values = self.codes(rows, columns)
    self.scales.apply(np.multiply, values, rows, columns)
    self.lows.apply(np.add, values, rows, columns)
    return values


def _int4(
  codes: Stored, parts: Mapping[str, Stored], block: list[int]
) -> Packed:
  """The class Int4Tensor: two codes to a byte, groups of a row's columns.

  Codes are signed. The zero point is the value in the middle, that of code 0
  here is 8 scales less. Scales and zero points lie in the files with a row for
  each group.
  """
  shape = codes.shape[0], codes.shape[1] * 2
  if block[0] != 1 or shape[1] % block[1]:
    raise codes.fail(f'but its block_size in the metadata is {block}')
  scale = packed.need(parts, '_weight_scale')
  zero = packed.need(parts, '_weight_zero_point')
  for one in (scale, zero):
    one.check(packed.FLOATS, (shape[1] // block[1], shape[0]))

  def scales(rows: slice, columns: slice) -> np.ndarray:
    return packed.as_float(scale.read(columns, rows)).T

  def lows(rows: slice, columns: slice) -> np.ndarray:
    zeros = packed.as_float(zero.read(columns, rows)).T
    values: np.ndarray = zeros - scales(rows, columns) * 8
    return values

  return _Int4(
    shape,
    (codes, scale, zero),
    f'torchao Int4Tensor {block[1]}',
    packed.packed_codes(codes, 4, np.roll(packed.numbers(4), 8)),
    Grid(scales, 1, block[1]),
    Grid(lows, 1, block[1]),
  )
