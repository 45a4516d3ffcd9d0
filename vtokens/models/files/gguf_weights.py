"""Weights of a GGUF file, dequantised, in Hugging Face's order."""

import pathlib
import re
from typing import Any

import gguf
import numpy as np

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.families.family import Family
from vtokens.models.files import gguf_header, gguf_metadata
from vtokens.models.files.weight_map import EVERY, spread

# Tensors that belong to the config and are no weights.
_FACTORS = (
  'rope_freqs.weight',
  'rope_factors_short.weight',
  'rope_factors_long.weight',
)
# Further settings of scaling, and their values without effect.
_NEUTRAL = {
  'attn_factor': 1.0,
  'yarn_attn_factor': 1.0,
  'yarn_ext_factor': 1.0,
  'yarn_log_multiplier': 0.0,
}
_LAYER = re.compile(r'blk\.(\d+)\.')


class GGUFSource:
  """The tensors of a GGUF file under their Hugging Face names.

  A file may say less than config.json (Mistral's window, Gemma's query scale).
  Then the model is what llama.cpp would run.

  Attributes:
    where: path of the file.
    config: architecture of the model.

  Raises:
    errors.UserError: the file is missing or not GGUF, or its architecture or a
      setting is not supported.
  """

  def __init__(self, path: str | pathlib.Path):
    self.where = str(path)
    gguf_header.check(path)
    try:
      self._reader = gguf.GGUFReader(path)
    except FileNotFoundError:
      raise errors.UserError(f'{path}: not found') from None
    # A damaged file raises any of these.
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as e:
      raise errors.UserError(
        f'{path}: not a readable GGUF file ({e})'
      ) from None
    if self._reader.endianess != gguf.GGUFEndian.LITTLE:
      raise errors.UserError(f'{path}: big-endian GGUF is not supported')
    metadata = gguf_metadata.Metadata(self._reader, self.where)
    kind = metadata.get('general.type', 'model')
    if kind != 'model':
      raise errors.UserError(
        f'{path}: general.type is {kind!r}, expected a model; an adapter has '
        'to be merged into its base first'
      )
    self._metadata = metadata
    self.architecture = metadata.architecture
    families = {f.gguf: f for f in registry.families().values() if f.gguf}
    if self.architecture not in families:
      raise errors.UserError(
        f'{path}: general.architecture is {self.architecture!r}, not '
        f'supported; supported: {", ".join(families)}'
      )
    self._family = families[self.architecture]
    tensors = {tensor.name: tensor for tensor in self._reader.tensors}
    self.config = _read_config(self._family, metadata, tensors)
    self._tensors = {}
    names = self._hf_names(tensors)
    for name, tensor in tensors.items():
      if name in names:
        self._tensors[names[name]] = tensor
      elif name not in _FACTORS:
        raise errors.UserError(
          f'{path}: tensor {name} is not supported for {self.architecture}'
        )
    self._shapes = {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }

  def metadata(self, key: str) -> Any:
    """A metadata value of any type; None if it is missing."""
    return self._metadata.contents(key)

  def _hf_names(self, tensors: dict[str, gguf.ReaderTensor]) -> dict[str, str]:
    """GGUF name -> Hugging Face name, by the gguf package's table."""
    layers = {int(m[1]) for m in map(_LAYER.match, tensors) if m}
    # A file has no more layers than tensors, even if its numbers are wrong.
    count = min(max(layers, default=0) + 1, len(tensors))
    arch = gguf.MODEL_ARCH_NAMES
    kind = next(key for key, name in arch.items() if name == self.architecture)
    table = gguf.get_tensor_name_map(kind, count)
    names = {}
    for template in self._family.names.values():
      for i in range(count):
        name = template.format(i)
        theirs = table.get_name(name, try_suffixes=('.weight', '.bias'))
        if theirs is not None:
          names[theirs] = name
    return names

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `weight_map.TensorSource`."""
    return self._shapes

  def nbytes(self, name: str) -> int:
    """See `weight_map.TensorSource`."""
    return int(self._tensors[name].n_bytes)

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """See `weight_map.TensorSource`; always float32."""
    tensor = self._tensors[name]
    data = tensor.data
    order: slice | np.ndarray = rows
    stored = self._family.gguf_rows(self.config, name, int(tensor.shape[-1]))
    if stored is not None:
      order = stored[rows]
    try:
      array = gguf.dequantize(
        data[order] if data.ndim > 1 else data, tensor.tensor_type
      )
    except NotImplementedError as e:
      raise errors.UserError(
        f'{self.where}: tensor {tensor.name} is quantised as '
        f'{tensor.tensor_type.name}, which the gguf package cannot read ({e})'
      ) from None
    array = array[:, columns] if data.ndim > 1 else array[order]
    offset = self._family.gguf_offset(name)
    return array - offset if offset else array

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    return spread(self._tensors[name].data.reshape(-1).view(np.uint8))


def _read_config(
  family: Family,
  metadata: gguf_metadata.Metadata,
  tensors: dict[str, gguf.ReaderTensor],
) -> DecoderConfig:
  """Translates the metadata to the fields of config.json."""
  where = metadata.where
  if metadata.get('{arch}.expert_count', 0):
    raise errors.UserError(
      f'{where}: mixture-of-experts models are not supported'
    )
  if 'token_embd.weight' not in tensors:
    raise errors.UserError(f'{where}: tensor token_embd.weight is missing')
  embedding = tensors['token_embd.weight'].shape
  if len(embedding) != 2:
    raise errors.UserError(
      f'{where}: tensor token_embd.weight has the dimensions '
      f'{embedding.tolist()}, expected two'
    )
  heads = metadata.number('{arch}.attention.head_count')
  embed_dim = metadata.number('{arch}.embedding_length')
  head_dim = metadata.number(
    '{arch}.attention.key_length', default=embed_dim // heads
  )
  scaling = _rope_scaling(metadata, tensors)
  values: dict[str, Any] = {
    'model_type': family.model_type,
    # GGUF lists dimensions fastest first: [D, V].
    'vocab_size': int(embedding[1]),
    'hidden_size': embed_dim,
    'intermediate_size': metadata.number('{arch}.feed_forward_length'),
    'num_hidden_layers': metadata.number('{arch}.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': metadata.number(
      '{arch}.attention.head_count_kv', default=heads
    ),
    'head_dim': head_dim,
    'rms_norm_eps': metadata.number(
      '{arch}.attention.layer_norm_rms_epsilon', float
    ),
    'max_position_embeddings': metadata.number('{arch}.context_length'),
    'rope_theta': metadata.number('{arch}.rope.freq_base', float, 10_000.0),
    'rope_scaling': scaling,
    'sliding_window': metadata.optional('{arch}.attention.sliding_window', int),
    'tie_word_embeddings': 'output.weight' not in tensors,
  }
  original = 'original_max_position_embeddings'
  if scaling and original in scaling:
    # Phi-3 has this field outside of `rope_scaling`.
    values[original] = scaling[original]
  if 'blk.0.attn_q.bias' in tensors:
    values['attention_bias'] = True
  family.read_gguf(metadata, values)
  rotated = metadata.rotary_dim(head_dim)
  if rotated != head_dim and 'partial_rotary_factor' not in values:
    raise errors.UserError(
      f'{where}: {metadata.architecture}.rope.dimension_count is '
      f'{rotated}, not supported; expected {head_dim}'
    )
  return registry.from_hf(values, where)


def _rope_scaling(
  metadata: gguf_metadata.Metadata, tensors: dict[str, gguf.ReaderTensor]
) -> dict[str, Any] | None:
  """`rope_scaling` as in config.json."""
  # In llama.cpp a factor without a type means linear scaling; 0 and 1 mean no
  # scaling.
  factor = metadata.optional(
    '{arch}.rope.scaling.factor', float
  ) or metadata.optional('{arch}.rope.scale_linear', float)
  kind = metadata.text(
    '{arch}.rope.scaling.type',
    'linear' if factor not in (None, 1) else 'none',
  )
  if {'rope_factors_short.weight', 'rope_factors_long.weight'} <= set(tensors):
    return {
      'rope_type': 'longrope',
      'short_factor': _floats(tensors['rope_factors_short.weight']),
      'long_factor': _floats(tensors['rope_factors_long.weight']),
      'attention_factor': metadata.number(
        '{arch}.rope.scaling.attn_factor', float, 1.0
      ),
      'original_max_position_embeddings': metadata.number(
        '{arch}.rope.scaling.original_context_length'
      ),
    }
  if 'rope_freqs.weight' in tensors and kind == 'none':
    # Llama 3.1 and later: the converter has applied the formula and wrote the
    # divisor of each frequency, for any length.
    factors = _floats(tensors['rope_freqs.weight'])
    return {
      'rope_type': 'longrope',
      'short_factor': factors,
      'long_factor': factors,
      'attention_factor': 1.0,
    }
  if kind == 'none':
    return None
  if 'rope_freqs.weight' in tensors:
    raise errors.UserError(
      f'{metadata.where}: tensor rope_freqs.weight beside '
      f'{metadata.architecture}.rope.scaling.type={kind!r} is not supported'
    )
  for key, neutral in _NEUTRAL.items():
    found = metadata.get('{arch}.rope.scaling.' + key, neutral)
    if found != neutral:
      raise errors.UserError(
        f'{metadata.where}: {metadata.architecture}.rope.scaling.{key} is '
        f'{found!r}, not supported; expected {neutral!r}'
      )
  if kind in ('linear', 'yarn') and factor is None:
    raise metadata.unexpected(
      '{arch}.rope.scaling.factor', None, 'a positive float'
    )
  if kind == 'linear':
    return {'rope_type': 'linear', 'factor': factor}
  if kind == 'yarn':
    return {
      'rope_type': 'yarn',
      'factor': factor,
      'beta_fast': metadata.number(
        '{arch}.rope.scaling.yarn_beta_fast', float, 32.0
      ),
      'beta_slow': metadata.number(
        '{arch}.rope.scaling.yarn_beta_slow', float, 1.0
      ),
      'original_max_position_embeddings': metadata.number(
        '{arch}.rope.scaling.original_context_length'
      ),
    }
  raise errors.UserError(
    f'{metadata.where}: {metadata.architecture}.rope.scaling.type is '
    f"{kind!r}, not supported; expected 'none', 'linear' or 'yarn'"
  )


def _floats(tensor: gguf.ReaderTensor) -> list[float]:
  if tensor.data.ndim != 1 or tensor.data.dtype.kind != 'f':
    return []  # Refused later, with the expected number of factors.
  return [float(value) for value in tensor.data]
