"""What is supported, as tables; and what a directory or file is."""

import dataclasses
import pathlib
from collections.abc import Sequence

import flax.nnx as nnx
import jax.numpy as jnp

from vtokens import config
from vtokens.host import errors, paths
from vtokens.models import frozen_base, quantize, rope
from vtokens.models.abstract import abstract_decoder, num_params
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry, wrappers
from vtokens.models.files import directory_files, gguf_weights, hf_directory
from vtokens.models.files.quantised import formats
from vtokens.models.files.weight_map import TensorSource

_GB = 1e9
# The memory of the weights is given for each `base.dtype` and `base.quantize`.
_FORMS = (
  ('float32', 'none'),
  ('bfloat16', 'none'),
  ('bfloat16', 'int8'),
  ('bfloat16', 'int4'),
)
_OF_EXPERTS = ('bfloat16', 'mxfp4')


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of texts.

  Attributes:
    names: names of the columns.
    rows: the cells of each row.
  """

  names: Sequence[str]
  rows: Sequence[Sequence[str]]

  def text(self) -> str:
    """Aligned columns."""
    lines = [self.names, *self.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
      '  '.join(
        cell.ljust(width) for cell, width in zip(line, widths, strict=True)
      ).rstrip()
      for line in lines
    )

  def markdown(self) -> str:
    """A table in Markdown."""
    lines = [self.names, ['---'] * len(self.names), *self.rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def families() -> Table:
  """The supported decoders."""
  rows = []
  for model_type, family in registry.families().items():
    about = family.about
    rows.append(
      (
        f'`{model_type}`',
        about.models,
        about.beyond,
        _figure(about.difference),
        about.gguf or ('yes' if family.gguf else 'no'),
      )
    )
  names = ('`model_type`', 'models', 'what it has beyond Llama 2')
  return Table((*names, 'max. difference', 'GGUF'), rows)


def _figure(value: float) -> str:
  return f'{value:.1e}'.replace('e-0', 'e-') if value else ''


def multimodal() -> Table:
  """The supported multimodal models."""
  rows = [
    (f'`{model_type}`', wrapper.models, f'`{wrapper.text_type}`')
    for model_type, wrapper in wrappers.WRAPPERS.items()
  ]
  return Table(('`model_type`', 'models', 'usual text part'), rows)


def quantised() -> Table:
  """The supported formats of quantised weights."""
  rows = [
    (f'`{method}`', one.reads, one.checked)
    for method, one in formats.FORMATS.items()
  ]
  return Table(('`quant_method`', 'what is read', 'checked against'), rows)


def weight_bytes(architecture: DecoderConfig, dtype: str, method: str) -> float:
  """Bytes of all weights on the devices.

  Args:
    architecture: the decoder.
    dtype: as `config.Base.dtype`.
    method: as `config.Base.quantize`.
  """
  model = abstract_decoder(architecture, jnp.dtype(dtype), None, method)
  return sum(
    quantize.num_bytes(param)
    for _, param in nnx.to_flat_state(nnx.state(model))
  )


def _has_experts(architecture: DecoderConfig) -> bool:
  model = abstract_decoder(architecture, jnp.dtype(jnp.float32))
  return any(
    quantize.is_quantised(param, 'mxfp4')
    for _, param in nnx.to_flat_state(nnx.state(model))
  )


def describe(path: str) -> tuple[list[str], bool]:
  """Says what a base is.

  Args:
    path: as `config.base.path`: a directory or a file.

  Returns:
    Lines of text, and whether the base loads.

  Raises:
    errors.UserError: there is no such path.
  """
  local = pathlib.Path(paths.resolve(path))
  if not local.exists():
    raise errors.UserError(
      f'{path}: not found; expected a Hugging Face model directory or a .gguf '
      'file on this machine'
    )
  lines: list[str] = []
  try:
    lines.append(f'{path}: {_kind(local)}')
    architecture = _architecture(local)
    lines += _sizes(architecture)
    base = frozen_base.open_base(config.Base(path=str(local)))
  except errors.UserError as e:
    return [*lines, f'does not load: {e}'], False
  stored = sum(map(base.source.nbytes, base.source.shapes()))
  lines += _quantised(base.source)
  lines.append(f'weights in the files: {stored / _GB:,.2f} GB')
  experts = (_OF_EXPERTS,) * _has_experts(architecture)
  lines.append(
    'weights in memory, GB: '
    + ', '.join(
      f'{weight_bytes(architecture, dtype, method) / _GB:,.2f} in '
      + (dtype if method == 'none' else method)
      for dtype, method in (*_FORMS, *experts)
    )
  )
  regimes = {
    rope.regime(kind.rope, architecture.longest_sequence)
    for kind in architecture.layer_pattern
    if kind.rope
  }
  lines += sorted(regime for regime in regimes if regime)
  lines.append(f'fingerprint: {base.fingerprint}')
  lines.append(
    'loads; training and generation need more memory: see vtokens plan'
  )
  return lines, True


def _quantised(source: TensorSource) -> list[str]:
  """How the files are quantised, in words."""
  if not isinstance(source, hf_directory.SafetensorsSource):
    return []
  if source.format is None:
    return []
  names = source.shapes()
  number = sum(map(source.is_quantised, names))
  lines = [
    f'quantised: {source.format.label}; {number:,} of {len(names):,} tensors'
  ]
  if source.format.activations:
    lines.append(
      'servers may quantise the inputs of products, too '
      f'({source.format.activations}); vtokens does not'
    )
  if source.format.cache:
    lines.append(
      f'servers may quantise keys and values ({source.format.cache}); vtokens '
      'does not'
    )
  return lines


def _kind(path: pathlib.Path) -> str:
  """What the files are, in words."""
  if path.suffix == '.gguf':
    source = gguf_weights.GGUFSource(path)
    return f'a GGUF file of architecture {source.architecture}'
  directory_files.check(path)
  fields = hf_directory.read_fields(path / 'config.json')
  model_type = fields.get('model_type')
  if not hf_directory.read_wrapper(path):
    return f'a Hugging Face directory, model_type {model_type}'
  text = wrappers.text_fields(fields, str(path))['model_type']
  return (
    f'a Hugging Face directory, model_type {model_type}: a multimodal model, '
    f'of which the text part is used, model_type {text}'
  )


def _architecture(path: pathlib.Path) -> DecoderConfig:
  if path.suffix == '.gguf':
    return gguf_weights.GGUFSource(path).config
  return hf_directory.read_config(path)


def _sizes(architecture: DecoderConfig) -> list[str]:
  a = architecture
  total, active = (num_params(a, active=x) for x in (False, True))
  used = f', {active:,} for each token' if active < total else ''
  widths = sorted({a.head_width(kind) for kind in a.layer_kinds})
  key, latent = a.cache_widths
  cached = f'{a.num_kv_heads} of keys and values'
  if key != a.head_dim:
    cached = f'over latents of {latent} and keys of {key}'
  return [
    f'parameters: {total:,}{used}',
    f'{a.num_layers} layers of width {a.embed_dim:,}, {a.num_heads} heads of '
    f'{" or ".join(map(str, widths))} ({cached}), '
    f'{a.vocab_size:,} tokens, sequences of up to {a.longest_sequence:,}',
  ]
