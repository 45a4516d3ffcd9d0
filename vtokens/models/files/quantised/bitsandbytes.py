"""bitsandbytes: NF4 and FP4 with and without double quantisation, int8.

The codes of a matrix in 4 bits are one flat array, two to a byte, highest bits
first. Each block of them has a scale. Double quantisation keeps the scales in 8
bits.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Grid, Matrix, Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

_STATE = 'weight.quant_state.bitsandbytes__'
# What the library multiplies int8 with, about 1 / 127.
_STEP = np.float32(7.874015718698502e-3)


class BitsAndBytes:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  cache = ''
  endings: tuple[str, ...] = (
    *('.weight', '.SCB', '.weight_format', '.weight.absmax'),
    *('.weight.quant_map', '.weight.nested_absmax', '.weight.nested_quant_map'),
    *(f'.{_STATE}nf4', f'.{_STATE}fp4'),
  )

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    four = [settings.take(n, False) for n in ('load_in_4bit', '_load_in_4bit')]
    eight = [settings.take(n, False) for n in ('load_in_8bit', '_load_in_8bit')]
    kind = settings.one_of('bnb_4bit_quant_type', ('nf4', 'fp4'), 'fp4')
    double = settings.take('bnb_4bit_use_double_quant', False)
    settings.one_of('bnb_4bit_quant_storage', ('uint8',), 'uint8')
    self.skipped = settings.texts('llm_int8_skip_modules')
    threshold = settings.take('llm_int8_threshold', 6.0)
    settings.absent('llm_int8_has_fp16_weight')
    settings.ignore(
      'llm_int8_enable_fp32_cpu_offload', 'bnb_4bit_compute_dtype'
    )
    settings.finish()
    if any(four) == any(eight):
      raise settings.fail(
        'load_in_4bit', four[0], 'expected it or load_in_8bit to be true'
      )
    self.activations = ''
    if any(four):
      self.label = f'bitsandbytes, {kind}' + (
        ', double quantisation' if double else ''
      )
    else:
      self.label = 'bitsandbytes, int8'
      self.activations = f'int8 below {threshold}, dynamic scales'

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    codes = packed.need(parts, 'weight')
    if 'SCB' in parts:
      return _int8(codes, parts)
    state = [parts[n] for n in parts if n.startswith(_STATE)]
    if len(state) != 1:
      raise codes.fail('but has no SCB or quant_state beside it')
    return _four_bits(codes, state[0], parts)


@dataclasses.dataclass(frozen=True)
class _Steps:
  """A matrix whose values are multiplied with `_STEP` as well."""

  inner: Matrix

  @property
  def shape(self) -> tuple[int, ...]:
    return self.inner.shape

  @property
  def parts(self) -> tuple[Stored, ...]:
    return self.inner.parts

  @property
  def about(self) -> str:
    return self.inner.about

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    values = self.inner.read(rows, columns)
    values *= _STEP
    return values


def _int8(codes: Stored, parts: Mapping[str, Stored]) -> Packed:
  if codes.kind != 'I8' or len(codes.shape) != 2:
    raise codes.fail('expected a matrix of I8')
  scales = parts['SCB']
  form = parts.get('weight_format')
  # 0 is one row after the other; the others are layouts of old GPU kernels.
  if form is not None and form.read().any():
    raise form.fail('with a layout other than 0, which is not supported')
  block = 1, codes.shape[1]
  table = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
  return _Steps(
    Matrix(
      codes.shape,
      (codes, scales),
      'bitsandbytes int8',
      packed.table_codes(codes, table),
      packed.grid_of(scales, codes.shape, block),
    )
  )


@dataclasses.dataclass(frozen=True)
class _Flat:
  """A matrix whose codes and blocks run over its rows."""

  shape: tuple[int, ...]
  parts: tuple[Stored, ...]
  about: str
  codes: Stored
  table: np.ndarray
  scales: Grid

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    start, stop, _ = rows.indices(self.shape[0])
    width = self.shape[1]
    flat = slice(start * width, stop * width)
    first = flat.start // 2
    data = self.codes.read(slice(first, -(-flat.stop // 2))).reshape(1, -1)
    # The highest bits are first.
    data = data >> 4 | data << 4
    values = packed.unpack(data, 4, self.table)[:, flat.start - 2 * first :]
    values = np.ascontiguousarray(values[:, : flat.stop - flat.start])
    self.scales.apply(np.multiply, values, slice(0, 1), flat)
    return values.reshape(stop - start, width)[:, columns]


def _four_bits(
  codes: Stored, state: Stored, parts: Mapping[str, Stored]
) -> Packed:
  facts = _facts(state)
  shape = facts['shape']
  size = math.prod(shape)
  codes.check(('U8',), (-(-size // 2), 1))
  table = packed.need(parts, 'weight.quant_map')
  table.check(('F32',), (16,))
  blocks = -(-size // facts['blocksize'])
  absmax = packed.need(parts, 'weight.absmax')
  used = [codes, table, absmax, state]
  if 'nested_blocksize' in facts:
    absmax.check(('U8',), (blocks,))
    outer = packed.need(parts, 'weight.nested_absmax')
    outer.check(('F32',), (-(-blocks // facts['nested_blocksize']),))
    inner = packed.need(parts, 'weight.nested_quant_map')
    inner.check(('F32',), (256,))
    used += [outer, inner]

    def read(rows: slice, columns: slice) -> np.ndarray:
      values: np.ndarray = inner.read()[absmax.read(columns)]
      places = np.arange(columns.start, columns.stop)
      values *= outer.read()[places // facts['nested_blocksize']]
      return (values + np.float32(facts['nested_offset']))[None]

  else:
    absmax.check(('F32',), (blocks,))

    def read(rows: slice, columns: slice) -> np.ndarray:
      values: np.ndarray = absmax.read(columns)[None]
      return values

  return _Flat(
    shape,
    tuple(used),
    'bitsandbytes',
    codes,
    table.read(),
    Grid(read, 1, facts['blocksize']),
  )


def _facts(state: Stored) -> dict[str, Any]:
  """Shape and sizes of blocks, which are stored as the bytes of JSON."""
  try:
    facts = json.loads(state.read().tobytes())
    shape = tuple(map(int, facts['shape']))
    found: dict[str, Any] = {
      'shape': shape,
      'blocksize': int(facts['blocksize']),
    }
    if 'nested_offset' in facts:
      found['nested_blocksize'] = int(facts['nested_blocksize'])
      found['nested_offset'] = float(facts['nested_offset'])
    sizes = [*shape, found['blocksize'], found.get('nested_blocksize', 1)]
    if len(shape) != 2 or min(sizes) < 1:
      raise ValueError(facts)
  except (ValueError, KeyError, TypeError, OverflowError) as e:
    raise state.fail(
      f'expected the JSON of the shape of a matrix and of blocks ({e})'
    ) from None
  return found
