"""torchao: int8 and float8 weights, as it writes them to safetensors.

The metadata of a file says what each weight is. Weights in 4 bits have layouts
of GPU kernels, and are refused.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vtokens.host import errors
from vtokens.models.files.quantised import packed
from vtokens.models.files.quantised.packed import Matrix, Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored

_KINDS = {'Int8Tensor': 'I8', 'Float8Tensor': 'F8_E4M3'}


class TorchAO:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
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
    # Classes and older names of weights of 4 bits have it.
    if 'int4' in str(name).lower():
      raise settings.fail('quant_type', name, 'supported: int8 and float8')
    self.label = f'torchao, {name}'
    dynamic = 'Dynamic' in str(name)
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
    if kind == 'Int8Tensor':
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
