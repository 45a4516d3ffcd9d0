"""MXFP4, as gpt-oss has its experts.

`NAME_blocks` is `[experts, outputs, groups, 16]`, two codes of E2M1 to a byte,
lowest bits first; `NAME_scales` has the exponent of each group of 32, with bias
127. The weight is `[experts, inputs, outputs]`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

_GROUP = 32


class MXFP4:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = ''
  endings: tuple[str, ...] = ('_blocks', '_scales')
  label = 'MXFP4'
  activations = ''
  cache = ''

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    self.skipped = settings.texts('modules_to_not_convert')
    settings.ignore('dequantize')
    settings.finish()

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    blocks, scales = packed.need(parts, 'blocks'), packed.need(parts, 'scales')
    if len(blocks.shape) != 4:
      raise blocks.fail('expected [experts, outputs, groups, 16]')
    experts, outputs, groups, _ = blocks.shape
    blocks.check(('U8',), (experts, outputs, groups, _GROUP // 2))
    scales.check(('U8',), blocks.shape[:3])
    return _Experts(
      (experts, groups * _GROUP, outputs), (blocks, scales), 'mxfp4'
    )


@dataclasses.dataclass(frozen=True)
class _Experts:
  """See the module."""

  shape: tuple[int, ...]
  parts: tuple[Stored, ...]
  about: str

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """Rows of the experts, which are below one another; see `Packed`."""
    experts, inputs, outputs = self.shape
    start, stop, _ = rows.indices(experts * inputs)
    columns = slice(*columns.indices(outputs))
    return np.concatenate(
      [
        self._expert(expert, start, stop, columns)
        for expert in range(start // inputs, -(-stop // inputs))
      ]
    )

  def _expert(
    self, expert: int, start: int, stop: int, columns: slice
  ) -> np.ndarray:
    """The rows of an expert that are among those given."""
    first = expert * self.shape[1]
    start = max(start - first, 0)
    stop = min(stop - first, self.shape[1])
    groups = slice(start // _GROUP, -(-stop // _GROUP))
    index = slice(expert, expert + 1), columns, groups
    values = dequantise(*(part.read(*index)[0] for part in self.parts))
    begin = start - groups.start * _GROUP
    return values[:, begin : begin + stop - start].T


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Values of groups of 32.

  Args:
    blocks: array of shape [R, G, 16], bytes of two codes.
    scales: array of shape [R, G], exponents of 2 with bias 127.

  Returns:
    Array of shape [R, 32 G], float32.
  """
  rows, groups = scales.shape
  values = packed.unpack(blocks.reshape(rows, -1), 4, packed.E2M1)
  grouped = values.reshape(rows, groups, _GROUP)
  grouped *= packed.as_float(scales)[..., None]
  return values
