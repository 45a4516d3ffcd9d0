"""FP8 as transformers, vLLM and DeepSeek write it.

A weight is float8_e4m3fn times a scale for the tensor, for each row, or for
each block. `weight_scale_inv` is a factor as well, in spite of its name.
"""

from collections.abc import Mapping

import numpy as np

from vtokens.host import errors
from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Matrix, Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

_SCALES = ('weight_scale', 'weight_scale_inv')
_KINDS = (*packed.FLOATS, 'F8_E8M0', 'U8')


class FP8:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  endings = packed.endings(
    ('weight', *_SCALES, 'input_scale', 'activation_scale', 'input_scale_ub')
  )

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    settings.one_of('fmt', ('e4m3', 'float8_e4m3fn'), 'e4m3')
    settings.one_of('expert_dtype', ('fp8',), 'fp8')
    settings.one_of('scale_fmt', ('float', 'ue8m0'), 'float')
    scheme = settings.one_of(
      'activation_scheme', ('dynamic', 'static'), 'dynamic'
    )
    self.skipped = settings.texts('modules_to_not_convert') + settings.texts(
      'ignored_layers'
    )
    block = settings.take('weight_block_size')
    self._block: tuple[int, int] | None = None
    if block is not None:
      if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and size > 0 for size in block)
      ):
        raise settings.fail(
          'weight_block_size', block, 'expected two positive integers'
        )
      self._block = block[0], block[1]
    cached = settings.one_of('kv_cache_scheme', ('', 'static', 'dynamic'), '')
    settings.absent('kv_cache_quant_method')
    settings.ignore('dequantize', 'modules_to_convert', 'activation_scale_ub')
    settings.finish()
    self.label = 'FP8' + (
      f', blocks of {self._block[0]} x {self._block[1]}' if self._block else ''
    )
    self.activations = f'FP8, {scheme} scales'
    self.cache = f'FP8, {cached} scales' if cached else ''

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    return weight(parts, self._block)


def weight(
  parts: Mapping[str, Stored], block: tuple[int, int] | None
) -> Packed:
  """A matrix in FP8.

  Args:
    parts: the stored tensors, by the ends of their names.
    block: rows and columns that have one scale; None for a scale for the
      tensor, or one for each row.

  Raises:
    errors.UserError: a tensor is missing or does not fit.
  """
  codes = packed.need(parts, 'weight')
  if codes.kind != 'F8_E4M3' or len(codes.shape) != 2:
    raise codes.fail('expected a matrix of F8_E4M3')
  found = [parts[name] for name in _SCALES if name in parts]
  if len(found) != 1:
    raise errors.UserError(
      f'{codes.path}: tensor {codes.name} is F8_E4M3 and has {len(found)} '
      f'scales, expected one of {", ".join(_SCALES)} beside it'
    )
  (scale,) = found
  if block is None:
    rows = codes.shape[0]
    one = scale.shape in ((), (1,), (1, 1)) and rows != 1
    block = packed.whole(codes.shape) if one else (1, codes.shape[1])
  return Matrix(
    codes.shape,
    (codes, scale),
    f'fp8 {block[0]}x{block[1]}',
    packed.table_codes(codes, packed.E4M3.astype(np.float32)),
    packed.grid_of(scale, codes.shape, block, _KINDS),
  )
