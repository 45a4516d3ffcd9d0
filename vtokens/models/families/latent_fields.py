"""Fields of config.json that families with latent attention share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, Rope
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.gguf_stored import Part
from vtokens.models.mixers.latent_attention import LatentAttention

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_TEMPERATURE = 'mscale_all_dim'
_LAYER = 'model.layers.{}.self_attn.'
_KV = _LAYER + 'kv_b_proj.weight'
# llama.cpp has the heads' keys and values apart, the keys turned.
GGUF_PARTS: Mapping[str, Sequence[Part]] = {
  _KV: (
    Part(_LAYER + 'k_b_proj.weight', turned=True),
    Part(_LAYER + 'v_b_proj.weight'),
  )
}


def read(f: Fields, rope: Rope) -> dict[str, Any]:
  """Fields of `DecoderConfig` that concern attention.

  Args:
    f: the fields.
    rope: the rotary embedding.

  Raises:
    errors.UserError: a field is wrong or not supported.
  """
  heads = f.number('num_attention_heads')
  given = f.number('num_key_value_heads', default=heads)
  if given != heads:
    raise f.fail(
      'num_key_value_heads', f'{heads}, as num_attention_heads', given
    )
  f.no_window()
  temperature = _temperature(f, rope)
  query_rank = f.optional('q_lora_rank', int)
  settings = LatentAttention(
    rank=f.number('kv_lora_rank'),
    plain=f.number('qk_nope_head_dim'),
    rotated=f.number('qk_rope_head_dim'),
    value=f.number('v_head_dim'),
    query_rank=query_rank,
    temperature=temperature,
  )
  width = settings.plain + settings.rotated
  scale = width**-0.5
  if temperature:
    # As in transformers' `yarn_apply_mscale`.
    scale *= rope_json.yarn_mscale(rope.factor, temperature) ** 2
  return {
    'attention': settings,
    'num_kv_heads': 1,
    'head_dim': width,
    'rotary_dim': settings.rotated,
    'attention_scale': scale,
    'out_bias': f.boolean('attention_bias'),
  }


def check_width(f: Fields, *fields: str) -> None:
  """Checks the widths of a head, which the sizes of its parts decide.

  Args:
    f: the fields.
    fields: names of the sizes whose sum `head_dim` is in files of transformers.

  Raises:
    errors.UserError: a file has another width, which transformers ignores; or
      only some of the values of `qk_rope_head_dim` are rotated, which it cannot
      run.
  """
  expected = _sum(f, fields)
  # Sarvam's first files have the width of a cached token.
  cached = _sum(f, ('kv_lora_rank', 'qk_rope_head_dim'))
  legacy = (cached,) if f.values.get('model_type') == 'sarvam_mla' else ()
  f.only('head_dim', expected, None, *legacy)
  whole = _sum(f, ('qk_nope_head_dim', 'qk_rope_head_dim'))
  for field in ('qk_head_dim', 'q_head_dim'):
    f.only(field, whole, None)
  if f.rotary_dim() not in (None, f.number('qk_rope_head_dim')):
    raise f.fail(
      'partial_rotary_factor', 'none: qk_rope_head_dim says what is rotated'
    )


def _sum(f: Fields, fields: Sequence[str]) -> int:
  # As in the file: some config classes put one in the place of another.
  return sum(f.number(x, default=f.number(x), inside=f.values) for x in fields)


def _temperature(f: Fields, rope: Rope) -> float:
  """`mscale_all_dim`, which also scales the scores; 0 for none."""
  found = (f.get('rope_parameters') or {}).get(_TEMPERATURE)
  if rope.type != 'yarn' or not found:
    return 0.0
  return float(found)


def write(config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets the sizes of latent attention and the fields that follow from them.

  Args:
    config: the architecture.
    values: the fields, to be changed in place.
  """
  settings = of(config)
  values |= {
    'kv_lora_rank': settings.rank,
    'q_lora_rank': settings.query_rank,
    'qk_nope_head_dim': settings.plain,
    'qk_rope_head_dim': settings.rotated,
    'v_head_dim': settings.value,
    'num_key_value_heads': config.num_heads,
    'attention_bias': config.out_bias,
  }
  del values['head_dim']
  if settings.temperature:
    values['rope_scaling'][_TEMPERATURE] = settings.temperature


def of(config: DecoderConfig) -> LatentAttention:
  """The latent attention of a decoder."""
  if not isinstance(config.attention, LatentAttention):
    raise AssertionError(f'{config.model_type} has latent attention')
  return config.attention


def names(others: Mapping[str, str]) -> Mapping[str, str]:
  """Names of tensors.

  Args:
    others: names of a family with usual attention, whose other names are kept.
  """
  layer = _LAYER
  kept = {
    path: name
    for path, name in others.items()
    if not path.startswith('layers.attention.')
  }
  return {
    **kept,
    'layers.attention.q_down': layer + 'q_a_proj.weight',
    'layers.attention.q_down_bias': layer + 'q_a_proj.bias',
    'layers.attention.q_norm.scale': layer + 'q_a_layernorm.weight',
    'layers.attention.q': layer + 'q_b_proj.weight',
    'layers.attention.kv_down': layer + 'kv_a_proj_with_mqa.weight',
    'layers.attention.kv_down_bias': layer + 'kv_a_proj_with_mqa.bias',
    'layers.attention.kv_norm.scale': layer + 'kv_a_layernorm.weight',
    'layers.attention.kv': _KV,
    'layers.attention.o': layer + 'o_proj.weight',
    'layers.attention.o_bias': layer + 'o_proj.bias',
  }


def names_of(
  config: DecoderConfig, several: Mapping[str, str]
) -> Mapping[str, str]:
  """`names` of one model.

  Args:
    config: the architecture.
    several: what `names` returns, for models that make queries from a latent.
  """
  if of(config).query_rank is not None:
    return several
  direct = tensor_names.PRE_NORM['layers.attention.q']
  return {**several, 'layers.attention.q': direct}


def read_gguf(metadata: 'Metadata', values: dict[str, Any]) -> None:
  """Sets the sizes of latent attention from the metadata of a GGUF file.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.

  Raises:
    errors.UserError: a value is missing, wrong or not supported.
  """
  rank = metadata.number('{arch}.attention.kv_lora_rank')
  rotated = metadata.number('{arch}.rope.dimension_count')
  # Older files have the widths of a head in the place of a latent's.
  width = metadata.number(
    '{arch}.attention.key_length_mla', default=values['head_dim']
  )
  if width <= rotated:
    raise metadata.unexpected(
      '{arch}.attention.key_length_mla', width, f'more than {rotated}'
    )
  values |= {
    'kv_lora_rank': rank,
    'q_lora_rank': metadata.optional('{arch}.attention.q_lora_rank', int),
    'qk_nope_head_dim': width - rotated,
    'qk_rope_head_dim': rotated,
    'v_head_dim': metadata.number(
      '{arch}.attention.value_length_mla',
      default=metadata.number(
        '{arch}.attention.value_length',
        default=values['hidden_size'] // values['num_attention_heads'],
      ),
    ),
    # The file says that all queries share one latent.
    'num_key_value_heads': values['num_attention_heads'],
    'rope_interleave': True,
  }
  del values['head_dim']


def check_gguf_scaling(metadata: 'Metadata', values: Mapping[str, Any]) -> None:
  """Raises if a GGUF file of DeepSeek's architecture scales in another way.

  Args:
    metadata: metadata of the file.
    values: fields of config.json.

  Raises:
    errors.UserError: transformers and llama.cpp would compute other numbers.
  """
  scaling = values['rope_scaling']
  if scaling and _TEMPERATURE not in scaling:
    raise metadata.unexpected(
      '{arch}.rope.scaling.type',
      scaling['rope_type'],
      'none, or yarn with rope.scaling.yarn_log_multiplier: llama.cpp computes '
      'others in another way',
    )
