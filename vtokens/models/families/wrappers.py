"""Multimodal models around a text decoder: only the decoder is read.

A wrapper's config.json has the decoder's fields in `text_config`, and its files
have the decoder's tensors under other names, beside the tensors of the vision
part. `text_fields` gives the config that the decoder has outside the wrapper,
`Wrapper.text_name` the names. So the same decoder has the same fingerprint in
and out of a wrapper.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vtokens.host import errors
from vtokens.models.families import config_classes

# Fields that every decoder has. Wrappers' files may omit those that equal the
# default of the text part's config class.
_SIZES = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'rms_norm_eps',
  'layer_norm_eps',
  'max_position_embeddings',
)
# The section of a rotary embedding for each axis of an image. A text has the
# same position on every axis, so sections do not change its angles.
_SECTIONS = ('mrope_section', 'mrope_interleaved')
_ROPES = ('rope_scaling', 'rope_parameters')
_TIED = 'tie_word_embeddings'


@dataclasses.dataclass(frozen=True)
class Wrapper:
  """Where the text part of a multimodal model is.

  Attributes:
    names: beginning of a tensor's name in the files -> beginning outside the
      wrapper.
    others: beginnings of names of tensors that belong to other parts. They are
      never read.
    text_type: `model_type` of a text part whose config does not say it.
    models: names of models, for lists.
    flat: whether the fields of the text part may stand outside `text_config`.
    caps_logits: whether transformers' class scales and caps logits as the text
      part does outside of it.
  """

  names: Mapping[str, str]
  others: tuple[str, ...]
  text_type: str
  models: str
  flat: bool = False
  caps_logits: bool = False

  def text_name(self, name: str) -> str | None:
    """The name outside the wrapper; None for a tensor of another part."""
    if name.startswith(self.others):
      return None
    for before, after in self.names.items():
      if name.startswith(before):
        return after + name.removeprefix(before)
    return name

  def head_name(self, embedding: str, stored: str, head: str) -> str:
    """Name in the files of a head that they do not have.

    Args:
      embedding: name of the embedding matrix outside the wrapper.
      stored: its name in the files.
      head: name of the head outside the wrapper.
    """
    # A text part that is a whole causal language model has the head, too.
    whole = stored.removesuffix(embedding) + head
    return whole if self.text_name(whole) == head else head


_HEAD = {'lm_head.': 'lm_head.'}
# transformers 4 and 5 in memory, and in files of some types.
_INSIDE = {'model.language_model.': 'model.', **_HEAD}
# A whole causal language model inside: transformers' files of most types.
_WHOLE = {
  'language_model.model.': 'model.',
  'language_model.lm_head.': 'lm_head.',
  **_INSIDE,
}
_TEXT_MODEL = {'model.text_model.': 'model.', **_HEAD}
_TOWER = (
  *('vision_tower.', 'multi_modal_projector.', 'image_newline'),
  *('model.vision_tower.', 'model.multi_modal_projector.'),
  'model.image_newline',
)
_VISUAL = ('visual.', 'model.visual.')
_VISION_MODEL = ('model.vision_model.', 'model.connector.')

WRAPPERS: Mapping[str, Wrapper] = {
  'gemma3': Wrapper(_WHOLE, _TOWER, 'gemma3_text', 'Gemma 3 4B, 12B, 27B'),
  'gemma3n': Wrapper(
    _INSIDE,
    (
      *('model.vision_tower.', 'model.embed_vision.'),
      *('model.audio_tower.', 'model.embed_audio.'),
    ),
    'gemma3n_text',
    'Gemma 3n E2B, E4B',
    caps_logits=True,
  ),
  'gemma4': Wrapper(
    _INSIDE,
    (
      *('model.vision_tower.', 'model.embed_vision.'),
      *('model.audio_tower.', 'model.embed_audio.'),
    ),
    'gemma4_text',
    'Gemma 4 E2B, E4B, 26B-A4B, 31B',
    caps_logits=True,
  ),
  'gemma4_unified': Wrapper(
    _INSIDE,
    ('model.vision_embedder.', 'model.embed_vision.', 'model.embed_audio.'),
    'gemma4_unified_text',
    'Gemma 4 12B',
    caps_logits=True,
  ),
  'mistral3': Wrapper(
    _WHOLE, _TOWER, 'mistral', 'Mistral Small 3.1, 3.2, 4, Ministral 3'
  ),
  'llava': Wrapper(_WHOLE, _TOWER, 'llama', 'LLaVA 1.5'),
  'llava_next': Wrapper(_WHOLE, _TOWER, 'llama', 'LLaVA 1.6'),
  'llava_next_video': Wrapper(_WHOLE, _TOWER, 'llama', 'LLaVA-NeXT-Video'),
  'vipllava': Wrapper(_WHOLE, _TOWER, 'llama', 'ViP-LLaVA'),
  'llava_onevision': Wrapper(_WHOLE, _TOWER, 'qwen2', 'LLaVA-OneVision'),
  'video_llava': Wrapper(
    _WHOLE,
    (
      *_TOWER,
      *('image_tower.', 'video_tower.'),
      *('model.image_tower.', 'model.video_tower.'),
    ),
    'llama',
    'Video-LLaVA',
  ),
  'internvl': Wrapper(_WHOLE, _TOWER, 'qwen2', 'InternVL 2.5, 3 (-hf)'),
  'got_ocr2': Wrapper(_WHOLE, _TOWER, 'qwen2', 'GOT-OCR 2'),
  'qwen2_vl': Wrapper(_INSIDE, _VISUAL, 'qwen2_vl_text', 'Qwen2-VL', flat=True),
  'qwen2_5_vl': Wrapper(
    _INSIDE, _VISUAL, 'qwen2_5_vl_text', 'Qwen2.5-VL', flat=True
  ),
  'qwen3_vl': Wrapper(_INSIDE, _VISUAL, 'qwen3_vl_text', 'Qwen3-VL (dense)'),
  'glm4v': Wrapper(_INSIDE, _VISUAL, 'glm4v_text', 'GLM-4.1V'),
  'glm46v': Wrapper(_INSIDE, _VISUAL, 'glm4v_text', 'GLM-4.6V-Flash'),
  'qwen3_vl_moe': Wrapper(
    _INSIDE, _VISUAL, 'qwen3_vl_moe_text', 'Qwen3-VL with experts'
  ),
  'qwen3_5': Wrapper(
    _INSIDE, (*_VISUAL, 'mtp.'), 'qwen3_5_text', 'Qwen3.5, 3.6 (dense)'
  ),
  'qwen3_5_moe': Wrapper(
    _INSIDE,
    (*_VISUAL, 'mtp.'),
    'qwen3_5_moe_text',
    'Qwen3.5, 3.6 with experts',
  ),
  'video_llama_3': Wrapper(
    _INSIDE,
    ('model.vision_model.', 'model.projector.'),
    'qwen2',
    'VideoLLaMA 3',
  ),
  'lighton_ocr': Wrapper(
    _INSIDE,
    ('model.vision_encoder.', 'model.vision_projection.'),
    'qwen3',
    'LightOnOCR',
  ),
  'deepseek_vl': Wrapper(
    _INSIDE, ('model.vision_model.', 'model.aligner.'), 'llama', 'DeepSeek-VL'
  ),
  'exaone4_5': Wrapper(
    _INSIDE,
    # Also a layer that guesses further tokens.
    (*_VISUAL, 'mtp.', 'model.mtp.'),
    'exaone4',
    'EXAONE 4.5',
  ),
  'perception_lm': Wrapper(_WHOLE, _TOWER, 'llama', 'Perception-LM 1B, 3B, 8B'),
  'fast_vlm': Wrapper(_WHOLE, _TOWER, 'qwen2', 'FastVLM'),
  'janus': Wrapper(
    _INSIDE,
    (
      *('model.vision_model.', 'model.aligner.', 'model.vqmodel.'),
      *('model.generation_', 'model.vision_tower.'),
    ),
    'llama',
    'Janus, Janus-Pro',
  ),
  'ovis2': Wrapper(
    _INSIDE,
    ('model.vision_tower.', 'model.visual_embeddings_table.'),
    'qwen2',
    'Ovis2 (-hf)',
  ),
  'kimi_k25': Wrapper(
    # transformers writes the text part's layers as it reads the vision part's.
    {'language_model.model.blocks.': 'model.layers.', **_WHOLE},
    (
      *('vision_tower.', 'mm_projector.'),
      *('model.vision_tower.', 'model.mm_projector.'),
    ),
    'deepseek_v3',
    'Kimi K2.5, K2.6',
  ),
  'idefics2': Wrapper(_TEXT_MODEL, _VISION_MODEL, 'mistral', 'Idefics2'),
  'idefics3': Wrapper(_TEXT_MODEL, _VISION_MODEL, 'llama', 'Idefics3'),
  'smolvlm': Wrapper(_TEXT_MODEL, _VISION_MODEL, 'llama', 'SmolVLM, SmolVLM2'),
}

# Type of a text part -> family, where only the name differs.
TEXT_TYPES: Mapping[str, str] = {
  'qwen2_vl_text': 'qwen2',
  'qwen2_5_vl_text': 'qwen2',
  'qwen3_vl_text': 'qwen3',
  'qwen3_vl_moe_text': 'qwen3_moe',
  'glm4v_text': 'glm4',
  'gemma4_unified_text': 'gemma4_text',
}
# Type of a decoder or text part whose code was outside of transformers -> type.
_RENAMED: Mapping[str, str] = {
  'exaone4_5_text': 'exaone4',
  'kimi_k2': 'deepseek_v3',
}
# Type of a text part -> fields of its family that its config lacks, with the
# values that its code implies.
_IMPLIED: Mapping[str, Mapping[str, Any]] = {
  'glm4v_text': {'attention_bias': True},
}


def with_known_type(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config.json with the `model_type` that transformers uses."""
  found = config.get('model_type')
  known = _RENAMED.get(found) if isinstance(found, str) else None
  return {**config, 'model_type': known} if known else config


def wrapper_of(config: Mapping[str, Any]) -> Wrapper | None:
  """The wrapper that a config.json describes; None for a plain decoder."""
  model_type = config.get('model_type')
  return WRAPPERS.get(model_type) if isinstance(model_type, str) else None


def text_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The fields of a wrapper's text part, as outside the wrapper.

  Args:
    config: the config.json of a wrapper.
    where: name of the file for errors.

  Returns:
    The fields. `model_type` may be an unsupported one.

  Raises:
    errors.UserError: there is no text part.
  """
  model_type = config['model_type']
  wrapper = WRAPPERS[model_type]
  given = config.get('text_config')
  if given is None and wrapper.flat:
    given = {
      field: value
      for field, value in config.items()
      if field not in ('model_type', 'vision_config', 'architectures')
    }
  if not isinstance(given, Mapping):
    found = 'missing' if given is None else errors.shorten(repr(given))
    raise errors.UserError(
      f'{where}: text_config is {found}, expected an object: model_type '
      f'{model_type!r} has its text part there'
    )
  values = {'model_type': wrapper.text_type, **given}
  values = dict(with_known_type(values))
  if values['model_type'] == 'qwen3_vl_moe_text':
    # In transformers' code, in no field of the config class.
    values.setdefault('norm_topk_prob', True)
  if not config_classes.is_known(values['model_type']):
    return values
  values |= _IMPLIED.get(values['model_type'], {})
  defaults = config_classes.defaults(values['model_type'])
  for field in _SIZES:
    if field in defaults:
      values.setdefault(field, defaults[field])
  for field in _ROPES:
    rope = values.get(field)
    if isinstance(rope, Mapping) and any(key in rope for key in _SECTIONS):
      values[field] = _without_sections(rope)
  # transformers 4 writes it in the text part, 5 outside. Where the two differ,
  # 5 ties. A stored head that differs from the embedding is refused later.
  tied = [part[_TIED] for part in (config, given) if _TIED in part]
  if tied:
    values[_TIED] = next((one for one in tied if one), tied[0])
  return values


def _without_sections(rope: Mapping[str, Any]) -> dict[str, Any]:
  kept = {key: value for key, value in rope.items() if key not in _SECTIONS}
  for key in ('rope_type', 'type'):
    if kept.get(key) == 'mrope':
      kept[key] = 'default'
  return kept
