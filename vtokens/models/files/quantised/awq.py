"""AWQ, as AutoAWQ writes it (version GEMM).

Matrices are stored transposed, `[inputs, outputs]`. Codes and zero points are
packed along the outputs, eight to a word in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from collections.abc import Mapping
from typing import Any

from vtokens.models.files.quantised import (
  auto_round,
  gptq,
  packed,
  transposed,
)
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored
from vtokens.models.files.quantised.transposed import Transposed

_BITS, _EACH = 4, 8
# The outputs of a word's numbers, lowest bits first.
_OUTPUTS = 0, 2, 4, 6, 1, 3, 5, 7
_OTHERS = (
  *('exllama_config', 'fuse_max_seq_len', 'do_fuse', 'modules_to_fuse'),
  *('meta', 'desc_act', 'sym', 'act_group_aware', 'damp_percent', 'dataset'),
  *('true_sequential', 'tokenizer', 'batch_size', 'model_seqlen', 'lm_head'),
  *('block_name_to_quantize', 'module_name_preceding_first_block'),
  *('modules_in_block_to_quantize', 'pad_token_id', 'max_input_length'),
  'cache_block_outputs',
)


class AWQ:
  """See the module; `formats.Format` describes the attributes.

  Raises:
    errors.UserError: a field is not supported.
  """

  weight_ending = '.weight'
  endings = packed.endings(('weight', 'qweight', 'qzeros', 'scales'))
  activations = ''
  cache = ''

  def __init__(self, settings: Settings, metadata: Mapping[str, str]):
    del metadata
    # Older files have the first name of both, some files both names.
    for name in ('w_bit', 'bits'):
      settings.one_of(name, (_BITS,), _BITS)
    older = settings.take('q_group_size')
    self._group = settings.size('group_size', 128 if older is None else older)
    if older not in (None, self._group):
      raise settings.fail('q_group_size', older, 'group_size is another one')
    settings.one_of('zero_point', (True,), True)
    for name in ('version', 'format', 'checkpoint_format'):
      form: Any = settings.take(name, 'gemm')
      if str(form).lower() != 'gemm':
        raise settings.fail(name, form, "supported: 'gemm'")
    settings.one_of('backend', ('autoawq', 'auto', 'auto_trainable'), 'auto')
    settings.one_of('pack_dtype', ('int32',), 'int32')
    settings.one_of('method', ('awq',), 'awq')
    self.skipped = settings.texts('modules_to_not_convert')
    settings.absent('dynamic', 'activation', 'adapter', 'rotation')
    auto_round.check(settings)
    settings.ignore(*_OTHERS)
    settings.finish()
    groups = f'groups of {self._group}' if self._group > 0 else 'channels'
    self.label = f'AWQ, int4, {groups}, zero points'

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """See `formats.Format`."""
    codes, zeros, scales = gptq.take(parts, ('qweight', 'qzeros', 'scales'))
    columns, rows = codes.shape[0], codes.shape[1] * _EACH
    size = self._group if self._group > 0 else columns
    groups = -(-columns // size)
    codes.check(('I32',), codes.shape)
    scales.check(packed.FLOATS, (groups, rows))
    zeros.check(('I32',), (groups, rows // _EACH))
    return Transposed(
      (rows, columns),
      (codes, zeros, scales),
      f'awq {size}',
      transposed.along_outputs(codes, _BITS, _OUTPUTS),
      transposed.floats(scales),
      transposed.along_outputs(zeros, _BITS, _OUTPUTS),
      size,
    )
