"""Registry of model families; reads and writes config.json."""

import difflib
import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from vtokens.host import errors
from vtokens.models import rope as rope_lib
from vtokens.models.decoder_config import DecoderConfig, Rope
from vtokens.models.families import refused, rope_json, wrappers
from vtokens.models.families.apertus import Apertus
from vtokens.models.families.arcee import Arcee
from vtokens.models.families.bamba import Bamba
from vtokens.models.families.cohere import Cohere, Cohere2
from vtokens.models.families.config_json import Fields
from vtokens.models.families.cwm import Cwm
from vtokens.models.families.deepseek import DeepseekV2, DeepseekV3, SarvamMLA
from vtokens.models.families.ernie4_5 import Ernie45
from vtokens.models.families.exaone import Exaone
from vtokens.models.families.exaone4 import Exaone4
from vtokens.models.families.falcon import Falcon
from vtokens.models.families.falcon_h1 import FalconH1
from vtokens.models.families.family import Family
from vtokens.models.families.gemma import Gemma
from vtokens.models.families.gemma2 import Gemma2
from vtokens.models.families.gemma3 import Gemma3
from vtokens.models.families.gemma3n import Gemma3n
from vtokens.models.families.gemma4 import Gemma4
from vtokens.models.families.glm import Glm, Glm4
from vtokens.models.families.glm4_moe import Glm4Moe
from vtokens.models.families.glm4_moe_lite import Glm4MoeLite
from vtokens.models.families.gpt_neox import GPTNeoX
from vtokens.models.families.gpt_oss import GptOss
from vtokens.models.families.granite import Granite
from vtokens.models.families.granitemoe import GraniteMoe
from vtokens.models.families.granitemoehybrid import GraniteMoeHybrid
from vtokens.models.families.helium import Helium
from vtokens.models.families.hunyuan import HunyuanDense
from vtokens.models.families.hyperclovax import HyperCLOVAX
from vtokens.models.families.jais2 import Jais2
from vtokens.models.families.lfm2 import Lfm2
from vtokens.models.families.llama import InternLM3, IQuestCoder, Llama
from vtokens.models.families.minicpm3 import MiniCPM3
from vtokens.models.families.minimax_m2 import MiniMaxM2
from vtokens.models.families.ministral3 import Ministral3
from vtokens.models.families.mistral import Ministral, Mistral
from vtokens.models.families.mistral4 import Mistral4
from vtokens.models.families.mixtral import Mixtral
from vtokens.models.families.nanochat import NanoChat
from vtokens.models.families.nemotron import Nemotron
from vtokens.models.families.nemotron_h import NemotronH
from vtokens.models.families.olmo import Olmo, Olmo2, Olmo3
from vtokens.models.families.olmoe import Olmoe
from vtokens.models.families.phi import Phi
from vtokens.models.families.phi3 import Phi3
from vtokens.models.families.phimoe import PhiMoe
from vtokens.models.families.qwen2 import Qwen2
from vtokens.models.families.qwen2_moe import Qwen2Moe
from vtokens.models.families.qwen3 import Qwen3
from vtokens.models.families.qwen3_5 import Qwen3Next, Qwen35, Qwen35Moe
from vtokens.models.families.qwen3_moe import Qwen3Moe
from vtokens.models.families.seed_oss import SeedOss
from vtokens.models.families.smollm3 import SmolLM3
from vtokens.models.families.stablelm import StableLM
from vtokens.models.families.starcoder2 import StarCoder2
from vtokens.models.families.vaultgemma import VaultGemma
from vtokens.models.families.youtu import Youtu

_BUILT_IN = (
  *(Llama, Mistral, Ministral, Qwen2, Qwen3, Phi3, Gemma, Gemma2, Gemma3),
  *(SmolLM3, Olmo2, Olmo3),
  *(InternLM3, IQuestCoder, SeedOss, Cwm, Ministral3, Arcee),
  *(Granite, Cohere, Cohere2, Glm, Glm4, Exaone4, Ernie45, Phi),
  *(StarCoder2, StableLM, Nemotron, Helium, VaultGemma),
  *(GPTNeoX, Falcon, Olmo, Apertus, HunyuanDense, NanoChat),
  *(Exaone, HyperCLOVAX, Jais2),
  *(Qwen3Moe, Mixtral, Qwen2Moe, Olmoe, GptOss, Glm4Moe, MiniMaxM2),
  *(GraniteMoe, PhiMoe),
  *(Qwen35, Qwen35Moe, Qwen3Next),
  *(DeepseekV2, DeepseekV3, Glm4MoeLite, Mistral4, MiniCPM3, Youtu, SarvamMLA),
  *(Gemma4, Gemma3n),
  *(Lfm2, GraniteMoeHybrid, NemotronH, FalconH1, Bamba),
)
# Entry point group in which other packages register families.
ENTRY_POINTS = 'vtokens.families'

# Fields that transformers obeys in any family and this decoder does not.
_NEVER = (
  'quantization_config',
  'per_layer_config',  # Layers with other sizes or missing parts.
  'fusion_config',  # Replaces modules.
  'transformers_weights',  # Name of the weights' file.
  'attribute_map',  # Other names of fields.
  'attention_chunk_size',
  'kv_sharing_modes',
  'text_config',
  'text_encoder',
  'decoder',
  'generator',
)

# Fields of a wrapper that change the numbers of its text part.
_OBEYED = {*_NEVER, 'is_causal', 'is_encoder_decoder'} - {'text_config'}

_families: dict[str, Family] = {}


def register(family: type[Family]) -> type[Family]:
  """Registers a family, as a decorator or by an entry point in `ENTRY_POINTS`.

  Args:
    family: the class. It replaces an earlier one of the same `model_type`.
  """
  _families[family.model_type] = family()
  return family


for _family in _BUILT_IN:
  register(_family)


def families() -> Mapping[str, Family]:
  """`model_type` -> family, for all families."""
  _load_entry_points()
  return _families


@functools.cache
def _load_entry_points() -> None:
  for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
    register(entry.load())


def family_of(config: DecoderConfig) -> Family:
  """The family of a decoder."""
  return families()[config.model_type]


def scales_lookup(config: DecoderConfig) -> bool:
  """Whether servers scale embeddings where they look them up.

  Embeddings that are sent to such a server may miss the scale.
  """
  return config.scale_embeddings or family_of(config).scales_lookup


def from_hf(
  config: Mapping[str, Any], where: str = 'config.json'
) -> DecoderConfig:
  """Makes a `DecoderConfig` from a Hugging Face `config.json`.

  Args:
    config: the parsed JSON object, as transformers 4 or 5 writes it.
    where: name of the file for errors, e.g. its path.

  Returns:
    The `DecoderConfig`. Missing fields have transformers' defaults.

  Raises:
    errors.UserError: a field is missing, or has a value that this decoder
      does not implement. Nothing that changes the numbers is ignored.
  """
  config = wrappers.with_known_type(config)
  wrapper = wrappers.wrapper_of(config)
  if wrapper is not None:
    inner = wrappers.text_fields(config, where)
    family = _family_of_type(inner, where, config['model_type'])
    outer = {key: v for key, v in config.items() if key in _OBEYED}
    config, where = {**inner, **outer}, f'{where}: text_config'
  else:
    family = _family_of_type(config, where)
  model_type = family.model_type
  f = Fields(_with_new_names(config, family, where), where)
  # Some libraries turn a decoder into an encoder with this field.
  f.only('is_causal', True)
  f.only('is_encoder_decoder', False, None)
  f.only('default_rope_type', 'default', None)
  for field in _NEVER:
    f.only(field, None, {})
  try:
    values = {
      'model_type': model_type,
      'vocab_size': f.size('vocab_size'),
      'embed_dim': f.size('hidden_size'),
      'num_layers': f.size('num_hidden_layers'),
      'num_heads': f.size('num_attention_heads'),
      'head_dim': f.head_dim(),
      **family.read_sizes(f),
      'tie_embeddings': f.boolean('tie_word_embeddings'),
      **family.read(f),
    }
    rotary_dim = f.rotary_dim()
    if not family.own_rotation and values.get('rotary_dim') != rotary_dim:
      raise f.fail('partial_rotary_factor', f'1 for {model_type}', rotary_dim)
    f.finish()
    found = DecoderConfig(**values)
    for kind in found.layer_pattern:
      rope_lib.check(kind.rope, found.rotated_width(kind))
  # Fields that contradict each other.
  except ValueError as e:
    raise errors.UserError(f'{where}: {e}') from None
  if wrapper is not None and not wrapper.caps_logits:
    _check_plain_logits(found, where)
  return found


def _with_new_names(
  config: Mapping[str, Any], family: Family, where: str
) -> dict[str, Any]:
  """A config whose older names of fields are replaced by the newer ones."""
  values = dict(config)
  for old, new in family.aliases.items():
    if old not in values:
      continue
    value = values.pop(old)
    if values.setdefault(new, value) != value:
      raise errors.UserError(
        f'{where}: {old} is {errors.shorten(repr(value))}, expected '
        f'{errors.shorten(repr(values[new]))} as {new}, its newer name'
      )
  family.complete(values)
  return values


def _check_plain_logits(config: DecoderConfig, where: str) -> None:
  """Refuses a wrapper around a decoder that changes its head's products.

  transformers' wrappers have a head of their own, without the change; other
  programs run the whole decoder.
  """
  scaled = config.logit_scale != 1.0 or config.logit_divisor != 1.0
  if scaled or config.logit_softcap is not None:
    raise errors.UserError(
      f'{where}: logits of {config.model_type} are scaled or capped, which '
      'transformers leaves out in a multimodal model and other programs do '
      'not; export the text part as a causal language model of its own'
    )


def _family_of_type(
  config: Mapping[str, Any], where: str, wrapper: str = ''
) -> Family:
  """The family of a config.json's `model_type`.

  Args:
    config: the config, of a text part if it has a wrapper.
    where: name of the file for errors.
    wrapper: `model_type` of the wrapper; '' for a plain decoder.

  Raises:
    errors.UserError: the type is not supported.
  """
  found = config.get('model_type')
  if isinstance(found, str):
    family = families().get(wrappers.TEXT_TYPES.get(found, found))
    if family:
      return family
  if wrapper:
    raise errors.UserError(
      f'{where}: model_type {wrapper!r} with a text part of type {found!r}, '
      f'which is not supported{_about_type(found, wrappers.TEXT_TYPES)}'
    )
  text = config.get('text_config')
  inner = text.get('model_type') if isinstance(text, Mapping) else None
  around = f', around a text part of type {inner!r}' if inner else ''
  raise errors.UserError(
    f'{where}: model_type is {found!r}{around}, not supported'
    f'{_about_type(found, wrappers.WRAPPERS)}'
  )


def _about_type(found: Any, others: Iterable[str]) -> str:
  """Why a type is not supported, and which types are.

  Args:
    found: the type.
    others: supported types besides those of the families.
  """
  name = errors.shorten(found) if isinstance(found, str) else ''
  reason = refused.reasons().get(name)
  near = difflib.get_close_matches(name, [*families(), *others])
  if reason:
    why = f' ({reason})'
  elif near:
    why = f'; the nearest supported: {", ".join(near)}'
  else:
    why = ''
  return f'{why}; `vtokens models` lists all that are'


def to_hf(config: DecoderConfig) -> dict[str, Any]:
  """The `config.json` of a decoder, in transformers 4's form, which 5 reads.

  It is the inverse of `from_hf`, except for `context_length`, which belongs to
  a run and not to the model.
  """
  family = family_of(config)
  kinds = config.layer_kinds
  full = [k.rope for k in kinds if k.rope and not k.window]
  local = [k.rope for k in kinds if k.rope and k.window]
  rope = (full or local or [Rope()])[0]
  values = {
    'architectures': [family.architecture],
    'model_type': config.model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    family.norm_eps: config.norm_eps,
    'max_position_embeddings': config.max_positions,
    'tie_word_embeddings': config.tie_embeddings,
    'rope_theta': rope.theta,
    'rope_scaling': rope_json.write_scaling(rope),
    'attention_bias': config.out_bias,
  }
  family.write(config, values)
  return values
