"""GPTQ, as AutoGPTQ and GPTQModel write it.

Matrices are stored transposed, `[inputs, outputs]`: `qweight` packs codes along
the inputs, `qzeros` zero points along the outputs, lowest bits first.
"""

from collections.abc import Mapping

import numpy as np

from vtokens.host import errors
from vtokens.models.files.quantised import auto_round, packed, transposed
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored
from vtokens.models.files.quantised.transposed import Transposed

_FORMATS = 'gptq', 'gptq_v2'
# How the codes were found, and what programs do with them.
_OTHERS = (
  *('damp_percent', 'damp_auto_increment', 'true_sequential', 'static_groups'),
  *('act_group_aware', 'hyb_act', 'mse', 'lm_head', 'meta', 'quantizer'),
  *('model_name_or_path', 'model_file_base_name', 'tokenizer', 'dataset'),
  *('batch_size', 'pad_token_id', 'use_cuda_fp16', 'model_seqlen', 'backend'),
  *('block_name_to_quantize', 'module_name_preceding_first_block'),
  *('modules_in_block_to_quantize', 'max_input_length', 'version'),
  *('cache_block_outputs', 'use_exllama', 'disable_exllama', 'exllama_config'),
)


class GPTQ:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  endings = packed.endings(('weight', 'qweight', 'qzeros', 'scales', 'g_idx'))
  activations = ''
  cache = ''

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    settings.one_of('method', ('gptq',), 'gptq')
    self._bits = settings.one_of('bits', (2, 4, 8), 0)
    self._group = settings.size('group_size', -1)
    self._ordered = settings.one_of('desc_act', (True, False), False)
    symmetric = settings.one_of('sym', (True, False), True)
    form = settings.one_of('checkpoint_format', (*_FORMATS, None), None)
    # Newer files have both fields.
    form = settings.one_of(
      'format', (form,) if form else _FORMATS, form or _FORMATS[0]
    )
    # The first version stores zero points minus 1.
    self._offset = 1 if form == _FORMATS[0] else 0
    settings.one_of('pack_dtype', ('int32',), 'int32')
    dynamic = settings.take('dynamic', {})
    if not isinstance(dynamic, Mapping) or not all(
      isinstance(key, str) and key.startswith('-:') for key in dynamic
    ):
      raise settings.fail(
        'dynamic', dynamic, 'only modules that are left out (-:) are'
      )
    self.skipped = settings.texts('modules_to_not_convert')
    settings.absent('activation', 'adapter', 'rotation', 'is_marlin_format')
    auto_round.check(settings)
    settings.ignore(*_OTHERS)
    settings.finish()
    groups = f'groups of {self._group}' if self._group > 0 else 'channels'
    self.label = (
      f'GPTQ, int{self._bits}, {groups}'
      + (', act-order' if self._ordered else '')
      + ('' if symmetric else ', zero points')
      + (', version 2' if form == _FORMATS[1] else '')
    )

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    codes, zeros, scales = take(parts, ('qweight', 'qzeros', 'scales'))
    bits = self._bits
    factor = 32 // bits
    codes.check(('I32',), (codes.shape[0], codes.shape[-1]))
    columns, rows = codes.shape[0] * factor, codes.shape[1]
    size = self._group if self._group > 0 else columns
    groups = -(-columns // size)
    scales.check(packed.FLOATS, (groups, rows))
    zeros.check(('I32',), (groups, -(-rows // factor)))
    used = [codes, zeros, scales]
    order = parts.get('g_idx')
    if order is not None:
      packed.check_order(order, columns, groups)
      used.append(order)
    elif self._ordered:
      raise codes.fail('but has no g_idx beside it: desc_act is true')

    unpacked = transposed.along_outputs(zeros, bits, range(factor))

    def read_zeros(groups: slice, outputs: slice) -> np.ndarray:
      values = unpacked(groups, outputs)
      if self._offset and (values == 2**bits - 1).any():
        raise errors.UserError(
          f'{zeros.path}: tensor {zeros.name}: programs read a zero point of 0 '
          f'in the format gptq as 0 or as {2**bits}; convert the checkpoint to '
          'gptq_v2'
        )
      values += np.float32(self._offset)
      return values

    return Transposed(
      (rows, columns),
      tuple(used),
      f'gptq {bits} {size} +{self._offset}',
      transposed.along_inputs(codes, bits),
      transposed.floats(scales),
      read_zeros,
      size,
      order,
    )


def take(
  parts: Mapping[str, Stored], names: tuple[str, ...]
) -> tuple[Stored, ...]:
  """The matrices of a weight.

  Args:
    parts: the stored tensors, by the ends of their names.
    names: the ends of names that are needed.

  Raises:
    errors.UserError: one is missing, or is no matrix.
  """
  found = tuple(packed.need(parts, name) for name in names)
  for one in found:
    if len(one.shape) != 2 or 0 in one.shape:
      raise one.fail('expected a matrix that is not empty')
  return found
