"""compressed-tensors, as llm-compressor writes it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Grid, Matrix, Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

_PACKED = ('pack-quantized', 'nvfp4-pack-quantized', 'mxfp4-pack-quantized')
_FORMATS = (
  *('int-quantized', 'float-quantized', 'naive-quantized'),
  *_PACKED,
)
# Columns of a group where the format fixes them.
_GROUPS = {'nvfp4-pack-quantized': 16, 'mxfp4-pack-quantized': 32}


@dataclasses.dataclass(frozen=True)
class _Scheme:
  """How the weights of a group are quantised.

  Attributes:
    targets: names, `re:` and an expression, or classes of modules.
    form: one of `_FORMATS`.
    kind: int or float.
    bits: bits of a code.
    symmetric: whether there are no zero points.
    strategy: what has a scale of its own: tensor, channel, group, block.
    block: rows and columns that have one scale; -1 for all.
    ordered: whether the files may say which group a column belongs to.
  """

  targets: tuple[str, ...]
  form: str
  kind: str
  bits: int
  symmetric: bool
  strategy: str
  block: tuple[int, int]
  ordered: bool

  def about(self) -> str:
    """For people."""
    size = {
      'group': f'groups of {self.block[1]}',
      'tensor_group': f'groups of {self.block[1]}',
      'block': f'blocks of {self.block[0]} x {self.block[1]}',
    }.get(self.strategy, f'one scale a {self.strategy}')
    return f'{self.form}, {self.kind}{self.bits}, {size}' + (
      '' if self.symmetric else ', zero points'
    )


class CompressedTensors:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  endings = packed.endings(
    (
      *('weight', 'weight_packed', 'weight_scale', 'weight_zero_point'),
      *('weight_shape', 'weight_g_idx', 'weight_global_scale'),
      *('input_scale', 'input_zero_point', 'input_global_scale'),
    )
  )

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    form = settings.one_of('format', (*_FORMATS, 'mixed-precision'), '')
    # Files of 2024 say frozen. Types of the tensors tell what is stored.
    settings.one_of(
      'quantization_status', ('compressed', 'frozen'), 'compressed'
    )
    settings.absent('transform_config', 'moe_sparsity_config')
    cached = settings.take('kv_cache_scheme')
    self.cache = (
      '' if cached is None else _scales(settings, 'kv_cache_scheme', cached)
    )
    _check_dense(settings)
    self.skipped = settings.texts('ignore')
    settings.ignore('global_compression_ratio', 'version', 'run_compressed')
    groups = settings.take('config_groups', {})
    inner = settings.inner('config_groups', groups)
    self._schemes = []
    activations = set()
    for name in list(groups):
      group = inner.inner(name, inner.take(name, {}))
      self._schemes.append(_read_group(group, form))
      inputs = group.take('input_activations')
      if inputs is not None:
        activations.add(_scales(group, 'input_activations', inputs))
      group.finish()
    if not self._schemes:
      raise settings.fail('config_groups', groups, 'expected a group')
    settings.finish()
    self.label = 'compressed-tensors: ' + '; '.join(
      dict.fromkeys(scheme.about() for scheme in self._schemes)
    )
    self.activations = ', '.join(sorted(activations))

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    first = next(iter(parts.values()))
    module = name.removesuffix(self.weight_ending)
    names = {module, first.name.rpartition('.')[0]}
    scheme = _scheme_of(names, self._schemes)
    if scheme is None:
      raise first.fail(
        'but no target in quantization_config.config_groups names it'
      )
    return _weight(scheme, parts)


def _check_dense(settings: Settings) -> None:
  sparsity = settings.take('sparsity_config', {})
  if not sparsity:
    return
  inner = settings.inner('sparsity_config', sparsity)
  inner.one_of('format', ('dense',), 'dense')
  inner.ignore(
    'targets', 'ignore', 'global_sparsity', 'sparsity_structure',
    'registry_requires_subclass',
  )  # fmt: skip
  inner.finish()


def _read_group(group: Settings, form: str) -> _Scheme:
  targets = group.texts('targets')
  allowed = _FORMATS if form == 'mixed-precision' else (form,)
  form = group.one_of('format', allowed, allowed[0])
  group.absent('output_activations')
  w = group.inner('weights', group.take('weights'))
  fixed = _GROUPS.get(form)
  kinds = ('float',) if fixed else ('int', 'float')
  kind = w.one_of('type', ('int',) if form == _PACKED[0] else kinds, 'int')
  bits = w.one_of(
    'num_bits', (4,) if fixed else (8,) if kind == 'float' else (4, 8), 8
  )
  w.absent('dynamic')
  size = w.size('group_size', -1)
  strategy = w.take('strategy', 'group' if size > 0 else 'channel')
  wide = {
    'tensor': (-1, -1),
    'channel': (1, -1),
    'group': (1, size),
    'tensor_group': (1, size),
  }
  structure = w.take('block_structure')
  if strategy == 'block':
    if not _is_block(structure):
      raise w.fail('block_structure', structure, 'expected rows and columns')
    wide['block'] = structure[0], structure[1]
  if strategy not in list(wide) or (fixed and size != fixed):
    raise w.fail(
      'strategy',
      strategy,
      f'supported: {", ".join([*wide, "block"])}'
      + (f'; {form} has groups of {fixed}' if fixed else ''),
    )
  order = w.one_of(
    'actorder', ('weight', 'static', 'group', 'dynamic', False), False
  )
  symmetric = w.one_of('symmetric', (True, False), True)
  w.ignore('observer', 'observer_kwargs', 'scale_dtype', 'zp_dtype')
  w.finish()
  return _Scheme(
    targets,
    form,
    kind,
    bits,
    symmetric,
    strategy,
    wide[strategy],
    order in ('group', 'dynamic'),
  )


def _is_block(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(type(size) is int and size > 0 for size in value)
  )


def _scales(group: Settings, name: str, scheme: Any) -> str:
  """How a server quantises what it computes, in words."""
  values = group.inner(name, scheme)
  bits, kind = values.take('num_bits', 8), values.take('type', 'int')
  how = 'dynamic' if values.take('dynamic', False) else 'static'
  return f'{kind}{bits}, {how} scales'


def _scheme_of(names: set[str], schemes: Sequence[_Scheme]) -> _Scheme | None:
  """The group of a module: by its name, by an expression, or by its class."""

  def by_name(target: str) -> bool:
    return target in names

  def by_expression(target: str) -> bool:
    pattern = target.removeprefix('re:')
    return target != pattern and any(re.match(pattern, name) for name in names)

  def by_class(target: str) -> bool:
    return target in ('Linear', 'LinearBase', 'Embedding', 'ParallelLMHead')

  for matches in (by_name, by_expression, by_class):
    for scheme in schemes:
      if any(map(matches, scheme.targets)):
        return scheme
  return None


def _weight(scheme: _Scheme, parts: Mapping[str, Stored]) -> Packed:
  name = 'weight_packed' if scheme.form in _PACKED else 'weight'
  codes = packed.need(parts, name)
  scale = packed.need(parts, 'weight_scale')
  if len(codes.shape) != 2:
    raise codes.fail('expected a matrix')
  shape, read = _codes(scheme, codes, parts.get('weight_shape'))
  height, width = scheme.block
  block = (
    shape[0] if height == -1 else height,
    shape[1] if width == -1 else width,
  )
  order = parts.get('weight_g_idx')
  if order is not None:
    order.check(('I32', 'I64'), (shape[1],))
    if (order.read() == -1).any():
      order = None  # As written for columns in order.
    elif not scheme.ordered:
      raise order.fail('but actorder in quantization_config is not group')
  used = [codes, scale, *([order] if order else [])]
  if scheme.form == _PACKED[1]:
    scales = _with_global(scale, parts, shape, block)
    used.append(parts['weight_global_scale'])
  else:
    kinds = ('U8', 'F8_E8M0') if scheme.form == _PACKED[2] else packed.FLOATS
    scales = packed.grid_of(scale, shape, block, kinds, order)
  zeros = None
  zero = parts.get('weight_zero_point')
  if zero is not None:
    used.append(zero)
    zeros = _zeros(scheme, zero, shape, block, order)
  elif not scheme.symmetric:
    raise codes.fail(
      'but has no weight_zero_point beside it: symmetric is false in '
      'quantization_config'
    )
  return Matrix(shape, tuple(used), scheme.about(), read, scales, zeros)


def _codes(
  scheme: _Scheme, codes: Stored, size: Stored | None
) -> tuple[tuple[int, int], packed.Reader]:
  """Shape of the weight, and function that reads its codes."""
  rows, columns = codes.shape
  if scheme.form not in _PACKED:
    if scheme.kind == 'float':
      codes.check(('F8_E4M3',), codes.shape)
      table = packed.E4M3.astype(np.float32)
    else:
      codes.check(('I8',), codes.shape)
      table = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    return (rows, columns), packed.table_codes(codes, table)
  if scheme.form != _PACKED[0]:
    codes.check(('U8',), codes.shape)
    return (rows, 2 * columns), packed.packed_codes(codes, 4, packed.E2M1)
  codes.check(('I32',), codes.shape)
  factor = 32 // scheme.bits
  width = columns * factor
  if size is not None:
    size.check(('I64', 'I32'), (2,))
    height, width = map(int, size.read())
    if height != rows or -(-width // factor) != columns:
      raise codes.fail(f'but {size.name} says {[height, width]}')
  table = packed.numbers(scheme.bits, 1 << (scheme.bits - 1))
  return (rows, width), packed.packed_codes(codes, scheme.bits, table)


def _with_global(
  scale: Stored,
  parts: Mapping[str, Stored],
  shape: tuple[int, ...],
  block: tuple[int, int],
) -> Grid:
  """Scales of nvfp4, which one number divides."""
  divisor = packed.need(parts, 'weight_global_scale')
  divisor.check(('F32',), (1,), ())
  grid = packed.grid_of(scale, shape, block, ('F8_E4M3',))

  def read(rows: slice, columns: slice) -> np.ndarray:
    found: np.ndarray = grid.read(rows, columns) / divisor.read().reshape(())
    return found

  return dataclasses.replace(grid, read=read)


def _zeros(
  scheme: _Scheme,
  zero: Stored,
  shape: tuple[int, ...],
  block: tuple[int, int],
  order: Stored | None,
) -> Grid:
  if zero.kind != 'I32':
    return packed.grid_of(zero, shape, block, ('I8', 'F8_E4M3'), order)
  # Packed along the rows.
  factor = 32 // scheme.bits
  groups = -(-shape[1] // block[1])
  zero.check(('I32',), (-(-shape[0] // factor), groups))
  table = packed.numbers(scheme.bits, 1 << (scheme.bits - 1))

  def read(rows: slice, columns: slice) -> np.ndarray:
    first = rows.start // factor
    words = zero.read(slice(first, -(-rows.stop // factor)), columns)
    start = rows.start - first * factor
    values = packed.unpack(np.ascontiguousarray(words.T), scheme.bits, table)
    return values[:, start : start + rows.stop - rows.start].T

  return Grid(read, 1, block[1], order)
