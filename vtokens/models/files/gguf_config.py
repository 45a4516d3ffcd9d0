"""Architecture of a model from the metadata of its GGUF file."""

import math
from collections.abc import Mapping
from typing import Any

import gguf

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.families.expert_fields import SIGMOID, SOFTMAX
from vtokens.models.families.family import Family
from vtokens.models.families.glm import Glm4Vision
from vtokens.models.files.gguf_metadata import Metadata

# Architectures whose text part is another one's. Qwen-VL's files give sections
# of the rotary embedding, which change nothing for text.
_SAME_AS = {
  'qwen2vl': 'qwen2',
  'qwen3vl': 'qwen3',
  'qwen3vlmoe': 'qwen3moe',
  'nemotron_h_moe': 'nemotron_h',
}
# Architectures that llama.cpp runs with other formulas than the models have, so
# that it is open which of them a file stands for.
_OTHERWISE = {
  'phimoe': 'llama.cpp (b11549) computes RMS norms and chooses experts by '
  'softmax, the model subtracts means and chooses by SparseMixer',
}
# Architectures with YaRN's two weights of the logarithm.
_LOG_SCALES = ('mistral3', 'mistral4', 'deepseek2')
# Settings of scaling besides the usual ones, and their values without effect.
_NEUTRAL = {
  'attn_factor': 1.0,
  'yarn_attn_factor': 1.0,
  'yarn_ext_factor': 1.0,
  'yarn_log_multiplier': 0.0,
}


def family_of(metadata: Metadata) -> Family:
  """The family of a GGUF file.

  Args:
    metadata: metadata of the file.

  Raises:
    errors.UserError: its architecture is not supported.
  """
  families = registry.families()
  known = {f.gguf: f for f in families.values() if f.gguf}
  name = metadata.architecture
  # llama.cpp has one architecture for each of these pairs.
  if name == 'olmo2' and metadata.get('{arch}.attention.sliding_window'):
    return families['olmo3']
  temperature = '{arch}.attention.temperature_scale'
  if name == 'mistral3' and not metadata.get(temperature):
    return families['llama']
  if name == 'llama' and metadata.get('{arch}.expert_count'):
    return families['mixtral']
  if name == 'deepseek2':
    return families[_deepseek(metadata)]
  if name == 'glm4' and metadata.get('{arch}.rope.dimension_sections'):
    return Glm4Vision()
  if name in _OTHERWISE:
    raise errors.UserError(
      f'{metadata.where}: general.architecture is {name!r}, not supported: '
      f"{_OTHERWISE[name]}; give the model's Hugging Face directory"
    )
  found = known.get(_SAME_AS.get(name, name))
  if found is None:
    raise errors.UserError(
      f'{metadata.where}: general.architecture is {name!r}, not supported; '
      f'supported: {", ".join([*known, *_SAME_AS])}'
    )
  return found


def read(
  family: Family, metadata: Metadata, tensors: Mapping[str, gguf.ReaderTensor]
) -> DecoderConfig:
  """Translates the metadata to the fields of config.json, and reads these.

  Args:
    family: family of the file.
    metadata: its metadata.
    tensors: name -> tensor.

  Raises:
    errors.UserError: a value is missing, wrong or not supported, or a value
      that changes the numbers of the model is not used.
  """
  heads = metadata.number('{arch}.attention.head_count')
  embed_dim = metadata.number('{arch}.embedding_length')
  head_dim = metadata.number(
    '{arch}.attention.key_length', default=embed_dim // heads
  )
  values: dict[str, Any] = {
    'model_type': family.model_type,
    'vocab_size': _vocab_size(metadata, tensors),
    'hidden_size': embed_dim,
    'num_hidden_layers': _num_layers(family, metadata, len(tensors)),
    'num_attention_heads': heads,
    'head_dim': head_dim,
    'max_position_embeddings': metadata.number('{arch}.context_length'),
    'rope_theta': metadata.number('{arch}.rope.freq_base', float, 10_000.0),
    'rope_scaling': _rope_scaling(metadata, tensors),
    'sliding_window': metadata.optional('{arch}.attention.sliding_window', int),
    'tie_word_embeddings': 'output.weight' not in tensors,
  }
  values |= _family_sizes(family, metadata, values)
  original = 'original_max_position_embeddings'
  if original in (values['rope_scaling'] or {}):
    # Phi-3 has this field outside of `rope_scaling`.
    values[original] = values['rope_scaling'][original]
  if metadata.has_tensor('blk.0.attn_q.bias'):
    values['attention_bias'] = True
  family.read_gguf(metadata, values)
  _check_head(metadata, values, head_dim)
  config = registry.from_hf(values, metadata.where)
  metadata.finish()
  return config


def _vocab_size(
  metadata: Metadata, tensors: Mapping[str, gguf.ReaderTensor]
) -> int:
  """Rows of the embedding matrix."""
  where = metadata.where
  if 'token_embd.weight' not in tensors:
    raise errors.UserError(f'{where}: tensor token_embd.weight is missing')
  embedding = tensors['token_embd.weight'].shape
  if len(embedding) != 2:
    raise errors.UserError(
      f'{where}: tensor token_embd.weight has the dimensions '
      f'{embedding.tolist()}, expected two'
    )
  # GGUF lists dimensions fastest first: [D, V].
  return int(embedding[1])


def _num_layers(family: Family, metadata: Metadata, most: int) -> int:
  """Number of layers, without those that predict further tokens.

  Args:
    family: family of the file.
    metadata: its metadata.
    most: number of tensors. A larger number of layers is refused before lists
      of that length are made.
  """
  layers: int = metadata.number('{arch}.block_count')
  if layers > most:
    raise metadata.unexpected(
      '{arch}.block_count', layers, f'at most {most}, as many tensors'
    )
  if not family.predicts_further:
    return layers
  further = metadata.optional('{arch}.nextn_predict_layers', int) or 0
  if further >= layers:
    raise metadata.unexpected(
      '{arch}.nextn_predict_layers', further, f'fewer than {layers} layers'
    )
  return layers - further


def _family_sizes(
  family: Family, metadata: Metadata, values: Mapping[str, Any]
) -> dict[str, Any]:
  """Sizes whose keys or forms differ between families.

  Args:
    family: family of the file.
    metadata: its metadata.
    values: the other sizes.
  """

  def size(key: str, default: Any) -> int:
    name = '{arch}.' + key
    if key in family.gguf_by_layer:
      layers = values['num_hidden_layers']
      return max(metadata.per_layer(name, layers, default), default=0)
    found: int = metadata.number(name, default=default)
    return found

  # Converters leave feed_forward_length out where every layer has experts.
  expert = metadata.contents(
    f'{metadata.architecture}.expert_feed_forward_length'
  )
  norm = 'rms_' if family.norm_eps == 'rms_norm_eps' else ''
  epsilon = family.gguf_epsilon or f'layer_norm_{norm}epsilon'
  return {
    'intermediate_size': size('feed_forward_length', expert or ...),
    'num_key_value_heads': size(
      'attention.head_count_kv', values['num_attention_heads']
    ),
    family.norm_eps: metadata.number('{arch}.attention.' + epsilon, float),
  }


def _check_head(
  metadata: Metadata, values: Mapping[str, Any], head_dim: int
) -> None:
  """Raises if values have another width than keys, or a part is not rotated.

  Families whose heads have several widths check these themselves.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, completed by the family.
    head_dim: width of keys.
  """
  value_dim = metadata.number('{arch}.attention.value_length', default=head_dim)
  rotated = metadata.rotary_dim(head_dim)
  if 'head_dim' not in values:
    return
  if value_dim != head_dim:
    raise metadata.unexpected(
      '{arch}.attention.value_length', value_dim, f'{head_dim}, as of keys'
    )
  if (
    rotated != head_dim
    and 'partial_rotary_factor' not in values
    and values.keys() & {'rope_theta', 'rope_parameters'}
  ):
    raise metadata.unexpected(
      '{arch}.rope.dimension_count', rotated, f'{head_dim}, all of them'
    )


def _rope_scaling(
  metadata: Metadata, tensors: Mapping[str, gguf.ReaderTensor]
) -> dict[str, Any] | None:
  """`rope_scaling` as in config.json."""
  # In llama.cpp a factor without a type means linear scaling; 0 and 1 mean no
  # scaling.
  old = metadata.optional('{arch}.rope.scale_linear', float)
  factor = metadata.optional('{arch}.rope.scaling.factor', float) or old
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
        '{arch}.rope.scaling.original_context_length',
        default=metadata.number('{arch}.context_length'),
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
  _check_neutral(metadata, factor if kind == 'yarn' else None)
  if kind in ('linear', 'yarn') and factor is None:
    raise metadata.unexpected(
      '{arch}.rope.scaling.factor', None, 'a positive float'
    )
  if kind == 'linear':
    return {'rope_type': 'linear', 'factor': factor}
  if kind == 'yarn':
    return {
      **_yarn_scales(metadata),
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


def _check_neutral(metadata: Metadata, factor: float | None) -> None:
  """Raises if a setting of scaling has an effect that is not implemented.

  Args:
    metadata: metadata of the file.
    factor: factor of YaRN; None for other types.
  """
  for key, neutral in _NEUTRAL.items():
    if key == 'yarn_log_multiplier' and metadata.architecture in _LOG_SCALES:
      continue  # See `_yarn_scales`.
    found = metadata.get('{arch}.rope.scaling.' + key, neutral)
    expected = [neutral]
    if key == 'yarn_attn_factor' and factor is not None and factor > 1:
      # YaRN's own, spelled out; llama.cpp computes it.
      expected.append(round(1 + 0.1 * math.log(factor), 6))
    near = isinstance(found, (int, float)) and any(
      math.isclose(found, value, rel_tol=1e-5) for value in expected
    )
    if not near:
      raise errors.UserError(
        f'{metadata.where}: {metadata.architecture}.rope.scaling.{key} is '
        f'{found!r}, not supported; expected {" or ".join(map(repr, expected))}'
      )


def _yarn_scales(metadata: Metadata) -> dict[str, float]:
  """`mscale` and `mscale_all_dim`, which a few families' files have."""
  name = metadata.architecture
  if name not in _LOG_SCALES:
    return {}
  under = metadata.optional('{arch}.rope.scaling.yarn_log_multiplier', float)
  if not under:
    return {}
  if name == 'mistral3':
    return {'mscale': 1.0, 'mscale_all_dim': under}
  # The converter multiplies it by 0.1, and llama.cpp takes both for equal.
  under = round(under / 0.1, 6)
  return {'mscale': under, 'mscale_all_dim': under}


def _deepseek(metadata: Metadata) -> str:
  """The `model_type` of a file of DeepSeek's architecture."""
  if not metadata.get('{arch}.expert_count'):
    return 'youtu'
  if metadata.get('{arch}.attention.temperature_scale'):
    return 'mistral4'  # Mistral Large 3.
  scores = metadata.get('{arch}.expert_gating_func')
  if scores is None:
    # As llama.cpp: GLM-4.7-Flash is told by its sizes.
    layers = metadata.get('{arch}.block_count')
    tokens = metadata.get('{arch}.vocab_size')
    flash = layers in (47, 48) and tokens == 154_880
    scores = SIGMOID if flash else SOFTMAX
  families = {SOFTMAX: 'deepseek_v2', SIGMOID: 'deepseek_v3'}
  if scores not in families:
    raise metadata.unexpected(
      '{arch}.expert_gating_func', scores, f'{SOFTMAX} or {SIGMOID}'
    )
  return families[scores]


def _floats(tensor: gguf.ReaderTensor) -> list[float]:
  if tensor.data.ndim != 1 or tensor.data.dtype.kind != 'f':
    return []  # Refused later, with the expected number of factors.
  return [float(value) for value in tensor.data]
