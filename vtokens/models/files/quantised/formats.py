"""The formats of quantised checkpoints, and which one a directory has."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vtokens.host import errors, json_files
from vtokens.models.files.quantised.awq import AWQ
from vtokens.models.files.quantised.bitsandbytes import BitsAndBytes
from vtokens.models.files.quantised.compressed import CompressedTensors
from vtokens.models.files.quantised.fp8 import FP8
from vtokens.models.files.quantised.gptq import GPTQ
from vtokens.models.files.quantised.mxfp4 import MXFP4
from vtokens.models.files.quantised.packed import Packed
from vtokens.models.files.quantised.settings import Settings
from vtokens.models.files.quantised.stored import Stored
from vtokens.models.files.quantised.torchao import TorchAO

FIELD = 'quantization_config'
_FIELDS = FIELD, 'compression_config'
# Lists of modules that are not quantised, in the formats.
_SKIPPED = (
  *('ignore', 'ignored_layers', 'modules_to_not_convert'),
  'llm_int8_skip_modules',
)
# Files of older checkpoints, whose config.json does not have the field.
FILES = {'quantize_config.json': 'gptq', 'quant_config.json': 'awq'}
# Ends of the names of tensors with the scales of quantised keys and values, as
# vLLM reads them (`maybe_remap_kv_scale_name`, and `get_cache_scale` of
# compressed-tensors).
CACHE_ENDINGS = (
  *('.k_scale', '.v_scale', '.kv_scale'),
  *('.k_proj.output_scale', '.v_proj.output_scale'),
)


class Format(Protocol):
  """How the weights of a checkpoint are quantised.

  Attributes:
    label: the format in words.
    activations: how servers quantise the inputs of products; '' if they do
      not. This is not modelled.
    cache: how servers quantise keys and values; '' if they do not. This is not
      modelled either, and tensors of `CACHE_ENDINGS` are not read.
    endings: ends of the names of tensors that make up one weight.
    weight_ending: end of the weight's name, in place of these.
    skipped: modules that quantization_config leaves as they are.
  """

  label: str
  activations: str
  cache: str
  endings: tuple[str, ...]
  weight_ending: str
  skipped: tuple[str, ...]

  def weight(self, name: str, parts: Mapping[str, Stored]) -> Packed:
    """A quantised weight.

    Args:
      name: name of the weight, outside a wrapper.
      parts: the stored tensors, by the ends of their names, without the first
        dot or underscore.

    Raises:
      errors.UserError: a tensor is missing or does not fit.
    """


@dataclasses.dataclass(frozen=True)
class Kind:
  """A value of `quant_method`.

  Attributes:
    make: class of its format.
    reads: what is read, for lists.
    checked: the library whose values ours equal bit for bit, for lists.
  """

  make: Callable[[Settings, Mapping[str, str]], Format]
  reads: str
  checked: str


_FP8 = 'float8_e4m3, one scale a tensor, channel or block'
# `quant_method` -> format.
FORMATS: Mapping[str, Kind] = {
  'fp8': Kind(FP8, _FP8, 'transformers'),
  'fbgemm_fp8': Kind(FP8, _FP8, 'transformers'),
  'compressed-tensors': Kind(
    CompressedTensors,
    'int-quantized, float-quantized, naive-quantized (8 bits), pack-quantized '
    '(4, 8 bits, zero points, g_idx), nvfp4-pack-quantized, '
    'mxfp4-pack-quantized, mixed-precision',
    'compressed-tensors',
  ),
  'awq': Kind(AWQ, 'version GEMM, 4 bits', 'AutoAWQ'),
  'gptq': Kind(
    GPTQ,
    '2, 4, 8 bits, with and without act-order and zero points, formats gptq '
    'and gptq_v2',
    'GPTQModel',
  ),
  'bitsandbytes': Kind(
    BitsAndBytes, 'nf4, fp4, double quantisation, int8', 'bitsandbytes'
  ),
  'mxfp4': Kind(MXFP4, 'experts as in gpt-oss', 'transformers'),
  'torchao': Kind(
    TorchAO,
    'int8, float8 and int4 (plain, unpacked to int8) in safetensors',
    'torchao',
  ),
}


def names(patterns: Sequence[str], modules: Sequence[str]) -> bool:
  """Whether a list of modules has a module.

  Args:
    patterns: names, ends or beginnings of names, or `re:` and an expression.
    modules: names of the module, in and out of a wrapper.
  """

  def fits(pattern: str, module: str) -> bool:
    if pattern.startswith('re:'):
      return re.match(pattern.removeprefix('re:'), module) is not None
    return f'.{module}.'.startswith(f'.{pattern}.') or f'.{module}'.endswith(
      f'.{pattern}'
    )

  return any(fits(p, module) for p in patterns for module in modules)


def split(
  fields: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, Any], Settings | None]:
  """Takes the quantisation out of a config.json.

  Older checkpoints of GPTQ and AWQ have it in a file of its own.

  Args:
    fields: the JSON object.
    path: the file.

  Returns:
    The other fields, and the fields of the quantisation; None for a checkpoint
    that is not quantised.

  Raises:
    errors.UserError: it is no object, or there is more than one.
  """
  fields = dict(fields)
  text = fields.get('text_config')
  places: list[tuple[str, dict[str, Any]]] = [('', fields)]
  if isinstance(text, Mapping):
    fields['text_config'] = text = dict(text)
    places.append(('text_config.', text))
  found = []
  for prefix, part in places:
    for name in _FIELDS:
      value = part.pop(name, None)
      if value not in (None, {}):
        found.append((f'{prefix}{name}', value))
  if len({repr(value) for _, value in found}) > 1:
    names = ' and '.join(name for name, _ in found)
    raise errors.UserError(
      f'{path}: {names} differ; remove the one that does not belong to the '
      'weights'
    )
  if found:
    name, value = found[0]
    return fields, Settings(value, f'{path}: {name}')
  for name, method in FILES.items():
    file = path.with_name(name)
    if file.exists():
      value = {'quant_method': method, **json_files.read(file, dict)}
      return fields, Settings(value, str(file))
  return fields, None


def skipped_lists(fields: Mapping[str, Any]) -> list[list[Any]]:
  """The lists of a config.json that name modules which are not quantised.

  Args:
    fields: the JSON object. The lists are its own, not copies.
  """
  text = fields.get('text_config')
  return [
    part[field][name]
    for part in (fields, text)
    if isinstance(part, Mapping)
    for field in _FIELDS
    if isinstance(part.get(field), Mapping)
    for name in _SKIPPED
    if isinstance(part[field].get(name), list)
  ]


def make(settings: Settings, metadata: Mapping[str, str]) -> Format:
  """The format that a config.json describes.

  Args:
    settings: the fields of the quantisation.
    metadata: metadata of the files with weights.

  Raises:
    errors.UserError: it is not supported.
  """
  method = settings.one_of('quant_method', tuple(FORMATS), '')
  return FORMATS[method].make(settings, metadata)
