"""Weights of a GGUF file, dequantised and put back in Hugging Face order."""

import pathlib
import re
from typing import Any

import gguf
import numpy as np

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.files import gguf_header
from vtokens.models.files.weight_map import EVERY, spread

# GGUF architecture -> model_type. llama.cpp writes Mistral as llama.
_MODEL_TYPES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'phi3': 'phi3',
  'gemma': 'gemma',
  'gemma2': 'gemma2',
  'gemma3': 'gemma3_text',
}
# Read into the config, no weights of the decoder.
_FACTORS = (
  'rope_freqs.weight',
  'rope_factors_short.weight',
  'rope_factors_long.weight',
)
# Further settings of scaling, and what they are where they change nothing.
_NEUTRAL = {
  'attn_factor': 1.0,
  'yarn_attn_factor': 1.0,
  'yarn_ext_factor': 1.0,
  'yarn_log_multiplier': 0.0,
}
_LAYER = re.compile(r'blk\.(\d+)\.')


class GGUFSource:
  """The tensors of a GGUF file under their Hugging Face names.

  Where a file says less than config.json (Mistral's window, Gemma's query
  scale), the model is the one that llama.cpp would run.

  Attributes:
    where: the file.
    config: its architecture.

  Raises:
    errors.UserError: the file is missing, not GGUF, or of an architecture or
      with a setting that is not supported.
  """

  def __init__(self, path: str | pathlib.Path):
    self.where = str(path)
    gguf_header.check(path)
    try:
      self._reader = gguf.GGUFReader(path)
    except FileNotFoundError:
      raise errors.UserError(f'{path}: not found') from None
    # Depending on where a damaged file ends or goes wrong.
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as e:
      raise errors.UserError(
        f'{path}: not a readable GGUF file ({e})'
      ) from None
    if self._reader.endianess != gguf.GGUFEndian.LITTLE:
      raise errors.UserError(f'{path}: big-endian GGUF is not supported')
    kind = self._field('general.type', 'model')
    if kind != 'model':
      raise errors.UserError(
        f'{path}: general.type is {kind!r}, expected a model; an adapter has '
        'to be merged into its base first'
      )
    self.architecture = self._text('general.architecture')
    if self.architecture not in _MODEL_TYPES:
      raise errors.UserError(
        f'{path}: general.architecture is {self.architecture!r}, not '
        f'supported; supported: {", ".join(_MODEL_TYPES)}'
      )
    tensors = {tensor.name: tensor for tensor in self._reader.tensors}
    self.config = self._read_config(tensors)
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

  # -- metadata --

  def metadata(self, key: str) -> Any:
    """A field of any type, as the file has it; None if it has not."""
    field = self._reader.get_field(key)
    return None if field is None else field.contents()

  def _field(self, key: str, default: Any = ...) -> Any:
    key = key.format(arch=getattr(self, 'architecture', ''))
    field = self._reader.get_field(key)
    if field is None:
      if default is ...:
        raise errors.UserError(f'{self.where}: metadata {key} is missing')
      return default
    try:
      return field.contents()
    except UnicodeDecodeError as e:
      raise errors.UserError(
        f'{self.where}: metadata {key} is no text ({e}): the file is damaged'
      ) from None

  def _text(self, key: str, default: Any = ...) -> str:
    value = self._field(key, default)
    if not isinstance(value, str):
      raise self._unexpected(key, value, 'text')
    return value

  def _unexpected(self, key: str, value: Any, what: str) -> errors.UserError:
    key = key.format(arch=getattr(self, 'architecture', ''))
    return errors.UserError(
      f'{self.where}: metadata {key} is {errors.shorten(repr(value))}, '
      f'expected {what}'
    )

  def _number(self, key: str, kind: type = int, default: Any = ...) -> Any:
    value = self._field(key, default)
    # Some architectures have one value per layer; these have not.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise self._unexpected(key, value, f'a positive {kind.__name__}')
    return kind(value)

  def _optional(self, key: str, kind: type) -> Any:
    """A number; None where it is missing or 0, which means none."""
    return None if self._field(key, 0) in (0, None) else self._number(key, kind)

  def _read_config(
    self, tensors: dict[str, gguf.ReaderTensor]
  ) -> DecoderConfig:
    """Says in the words of config.json what the metadata say in others."""
    if self._field('{arch}.expert_count', 0):
      raise errors.UserError(
        f'{self.where}: mixture-of-experts models are not supported'
      )
    if 'token_embd.weight' not in tensors:
      raise errors.UserError(
        f'{self.where}: tensor token_embd.weight is missing'
      )
    embedding = tensors['token_embd.weight'].shape
    if len(embedding) != 2:
      raise errors.UserError(
        f'{self.where}: tensor token_embd.weight has the dimensions '
        f'{embedding.tolist()}, expected two'
      )
    heads = self._number('{arch}.attention.head_count')
    embed_dim = self._number('{arch}.embedding_length')
    head_dim = self._number(
      '{arch}.attention.key_length', default=embed_dim // heads
    )
    gemma = self.architecture.startswith('gemma')
    layers = self._number('{arch}.block_count')
    window = self._optional('{arch}.attention.sliding_window', int)
    values: dict[str, Any] = {
      'model_type': _MODEL_TYPES[self.architecture],
      # GGUF lists dimensions fastest first: [D, V].
      'vocab_size': int(embedding[1]),
      'hidden_size': embed_dim,
      'intermediate_size': self._number('{arch}.feed_forward_length'),
      'num_hidden_layers': layers,
      'num_attention_heads': heads,
      'num_key_value_heads': self._number(
        '{arch}.attention.head_count_kv', default=heads
      ),
      'head_dim': head_dim,
      'rms_norm_eps': self._number(
        '{arch}.attention.layer_norm_rms_epsilon', float
      ),
      'max_position_embeddings': self._number('{arch}.context_length'),
      'rope_theta': self._number('{arch}.rope.freq_base', float, 10_000.0),
      'rope_scaling': self._rope_scaling(tensors),
      'tie_word_embeddings': 'output.weight' not in tensors,
      'hidden_act': 'gelu_pytorch_tanh' if gemma else 'silu',
    }
    scaling = values['rope_scaling'] or {}
    if 'original_max_position_embeddings' in scaling:
      # Where Phi-3 has it.
      values['original_max_position_embeddings'] = scaling[
        'original_max_position_embeddings'
      ]
    if window is not None or self.architecture != 'gemma2':
      values['sliding_window'] = window
    if 'blk.0.attn_q.bias' in tensors and self.architecture != 'qwen2':
      values['attention_bias'] = True
    rotated = self._number('{arch}.rope.dimension_count', default=head_dim)
    if rotated != head_dim and self.architecture == 'phi3':
      values['partial_rotary_factor'] = rotated / head_dim
    elif rotated != head_dim:
      raise errors.UserError(
        f'{self.where}: {self.architecture}.rope.dimension_count is '
        f'{rotated}, not supported; expected {head_dim}'
      )
    if self.architecture in ('gemma2', 'gemma3'):
      # llama.cpp knows the two 27B models by their layers.
      large = {'gemma2': 46, 'gemma3': 62}[self.architecture]
      values.update(
        query_pre_attn_scalar=embed_dim // heads
        if layers == large
        else head_dim,
      )
      # What a file does not say has the same default in llama.cpp and in
      # transformers: early files of Gemma 2 say nothing.
      for field in ('attn_logit_softcapping', 'final_logit_softcapping'):
        if self._field('{arch}.' + field, None) is not None:
          values[field] = self._optional('{arch}.' + field, float)
    if self.architecture == 'gemma3':
      values['rope_local_base_freq'] = self._number(
        '{arch}.rope.freq_base_swa', float, 10_000.0
      )
    return registry.from_hf(values, self.where)

  def _rope_scaling(
    self, tensors: dict[str, gguf.ReaderTensor]
  ) -> dict[str, Any] | None:
    # llama.cpp takes a factor without a type for linear scaling; 0 and 1
    # mean none.
    factor = self._optional(
      '{arch}.rope.scaling.factor', float
    ) or self._optional('{arch}.rope.scale_linear', float)
    kind = self._text(
      '{arch}.rope.scaling.type',
      'linear' if factor not in (None, 1) else 'none',
    )
    if {'rope_factors_short.weight', 'rope_factors_long.weight'} <= set(
      tensors
    ):
      return {
        'rope_type': 'longrope',
        'short_factor': _floats(tensors['rope_factors_short.weight']),
        'long_factor': _floats(tensors['rope_factors_long.weight']),
        'attention_factor': self._number(
          '{arch}.rope.scaling.attn_factor', float, 1.0
        ),
        'original_max_position_embeddings': self._number(
          '{arch}.rope.scaling.original_context_length'
        ),
      }
    if 'rope_freqs.weight' in tensors and kind == 'none':
      # Llama 3.1 and later: the converter has applied the formula and wrote
      # by what to divide each frequency, at any length.
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
        f'{self.where}: tensor rope_freqs.weight beside '
        f'{self.architecture}.rope.scaling.type={kind!r} is not supported'
      )
    for key, neutral in _NEUTRAL.items():
      found = self._field('{arch}.rope.scaling.' + key, neutral)
      if found != neutral:
        raise errors.UserError(
          f'{self.where}: {self.architecture}.rope.scaling.{key} is '
          f'{found!r}, not supported; expected {neutral!r}'
        )
    if kind in ('linear', 'yarn') and factor is None:
      raise self._unexpected(
        '{arch}.rope.scaling.factor', None, 'a positive float'
      )
    if kind == 'linear':
      return {'rope_type': 'linear', 'factor': factor}
    if kind == 'yarn':
      return {
        'rope_type': 'yarn',
        'factor': factor,
        'beta_fast': self._number(
          '{arch}.rope.scaling.yarn_beta_fast', float, 32.0
        ),
        'beta_slow': self._number(
          '{arch}.rope.scaling.yarn_beta_slow', float, 1.0
        ),
        'original_max_position_embeddings': self._number(
          '{arch}.rope.scaling.original_context_length'
        ),
      }
    raise errors.UserError(
      f'{self.where}: {self.architecture}.rope.scaling.type is {kind!r}, not '
      "supported; expected 'none', 'linear' or 'yarn'"
    )

  # -- tensors --

  def _hf_names(self, tensors: dict[str, gguf.ReaderTensor]) -> dict[str, str]:
    """GGUF name -> Hugging Face name, by the gguf package's own table."""
    layers = {int(m[1]) for m in map(_LAYER.match, tensors) if m}
    # A file has no more layers than tensors, whatever their numbers are.
    count = min(max(layers, default=0) + 1, len(tensors))
    arch = gguf.MODEL_ARCH_NAMES
    kind = next(key for key, name in arch.items() if name == self.architecture)
    table = gguf.get_tensor_name_map(kind, count)
    names = {}
    for template in registry.FAMILIES[self.config.model_type].names.values():
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
    """See `weight_map.TensorSource`; always f32."""
    tensor = self._tensors[name]
    data = tensor.data
    order: slice | np.ndarray = rows
    if self.architecture == 'llama' and '.self_attn.' in name:
      heads = {
        'q_proj': self.config.num_heads,
        'k_proj': self.config.num_kv_heads,
      }.get(name.split('.')[-2])
      if heads is not None:
        order = stored_rows(int(tensor.shape[-1]), heads)[rows]
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
    if self.architecture.startswith('gemma') and name.endswith('norm.weight'):
      # Its converter has added the 1 that the model adds.
      array = array - 1
    return array

  def sample(self, name: str) -> bytes:
    """See `weight_map.TensorSource`."""
    return spread(self._tensors[name].data.reshape(-1).view(np.uint8))


def _floats(tensor: gguf.ReaderTensor) -> list[float]:
  if tensor.data.ndim != 1 or tensor.data.dtype.kind != 'f':
    return []  # Refused with the number that there should be.
  return [float(value) for value in tensor.data]


def stored_rows(rows: int, num_heads: int) -> np.ndarray:
  """Where llama.cpp stores the rows of q and k.

  For architecture llama its converter interleaves the two halves of each head
  (rows 0, H/2, 1, H/2 + 1, ...) because it rotates neighbouring pairs; Hugging
  Face rotates row i with row i + H/2. See `LlamaModel.permute` in
  convert_hf_to_gguf.py.

  Args:
    rows: of the matrix, `num_heads * H`.
    num_heads: of the matrix.

  Returns:
    For each row in Hugging Face order, its row in the file.
  """
  pairs = np.arange(rows).reshape(num_heads, rows // num_heads // 2, 2)
  return pairs.swapaxes(1, 2).reshape(rows)
