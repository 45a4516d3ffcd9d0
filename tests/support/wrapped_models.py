"""Tiny random multimodal models, made with transformers."""

import json
import pathlib
import re
from collections.abc import Sequence

import safetensors.torch
import tiny_models
import torch
import transformers

TEXT = {
  'vocab_size': tiny_models.VOCAB_SIZE,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 512,
  'rms_norm_eps': 1e-5,
}
_VISION = {
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'image_size': 28,
  'patch_size': 14,
}
_QWEN = {'depth': 1, 'num_heads': 2, 'hidden_size': 32}
_SECTIONS = {
  'rope_parameters': {
    'rope_type': 'default',
    'rope_theta': 5e3,
    'mrope_section': [2, 1, 1],
  }
}
_GEMMA4 = {
  'sliding_window': 20,
  'global_head_dim': 12,
  'layer_types': [tiny_models.SLIDING, tiny_models.FULL],
  'attention_k_eq_v': True,
  'final_logit_softcapping': 3.0,
  # transformers' classes need it.
  'pad_token_id': 0,
}
_UNTIED = {'tie_word_embeddings': False}
_QWEN_VISION = {
  **_QWEN,
  'out_hidden_size': 32,
  'intermediate_size': 48,
  'num_position_embeddings': 16,
}
_DELTA = {
  'head_dim': 16,
  'linear_num_key_heads': 2,
  'linear_num_value_heads': 4,
  'linear_key_head_dim': 8,
  'linear_value_head_dim': 8,
  'layer_types': ['linear_attention', tiny_models.FULL],
  'rope_parameters': {
    **_SECTIONS['rope_parameters'],
    'partial_rotary_factor': 0.5,
  },
}
# model_type -> its vision part, its text part, other fields.
WRAPPERS: dict[str, tuple[dict, dict, dict]] = {
  'gemma3': (
    {**_VISION, 'model_type': 'siglip_vision_model'},
    {
      'model_type': 'gemma3_text',
      'sliding_window': 20,
      'layer_types': [tiny_models.SLIDING, tiny_models.FULL],
      'query_pre_attn_scalar': 30,
    },
    {},
  ),
  'gemma3n': (
    {},
    {
      'num_hidden_layers': 3,
      'sliding_window': 20,
      'layer_types': [
        tiny_models.SLIDING,
        tiny_models.FULL,
        tiny_models.SLIDING,
      ],
      'num_kv_shared_layers': 1,
      'hidden_size_per_layer_input': 8,
      'vocab_size_per_layer_input': 200,
      'laurel_rank': 6,
      'final_logit_softcapping': 3.0,
      'pad_token_id': 0,
    },
    {},
  ),
  'gemma4': (
    {
      **{k: _VISION[k] for k in ('hidden_size', 'intermediate_size')},
      **{'num_hidden_layers': 1, 'num_attention_heads': 2, 'head_dim': 16},
      **{'num_key_value_heads': 2, 'patch_size': 4},
      'position_embedding_size': 16,
    },
    {
      **_GEMMA4,
      'hidden_size_per_layer_input': 8,
      'vocab_size_per_layer_input': tiny_models.VOCAB_SIZE,
    },
    {},
  ),
  'gemma4_unified': (
    {
      **{'patch_size': 4, 'mm_embed_dim': 32, 'mm_posemb_size': 16},
      'output_proj_dims': 32,
    },
    {**_GEMMA4, 'hidden_size_per_layer_input': 0},
    {},
  ),
  'mistral3': (
    {**_VISION, 'model_type': 'pixtral', 'head_dim': 16},
    {'model_type': 'mistral', 'sliding_window': None},
    _UNTIED,
  ),
  **dict.fromkeys(
    ('llava', 'llava_next', 'llava_next_video', 'vipllava', 'video_llava'),
    (
      {**_VISION, 'model_type': 'clip_vision_model', 'projection_dim': 16},
      {'model_type': 'llama'},
      {},
    ),
  ),
  'llava_onevision': (
    {**_VISION, 'model_type': 'siglip_vision_model'},
    {'model_type': 'qwen2'},
    {},
  ),
  'internvl': (
    {**_VISION, 'image_size': [28, 28], 'patch_size': [14, 14]},
    {'model_type': 'qwen2'},
    {},
  ),
  'got_ocr2': (
    {
      **{k: _VISION[k] for k in ('hidden_size', 'image_size', 'patch_size')},
      **{'num_hidden_layers': 1, 'num_attention_heads': 2, 'mlp_dim': 32},
      **{'output_channels': 32, 'global_attn_indexes': [0]},
    },
    {'model_type': 'qwen2'},
    _UNTIED,
  ),
  'qwen2_vl': (
    {**_QWEN, 'embed_dim': 32, 'mlp_ratio': 2},
    {'model_type': 'qwen2_vl_text', **_SECTIONS},
    {},
  ),
  'qwen2_5_vl': (
    {**_QWEN, 'out_hidden_size': 32, 'fullatt_block_indexes': [0]},
    {'model_type': 'qwen2_5_vl_text', **_SECTIONS},
    {'tie_word_embeddings': True},
  ),
  'qwen3_vl': (
    {
      **_QWEN,
      **{'out_hidden_size': 32, 'intermediate_size': 48},
      **{'deepstack_visual_indexes': [0], 'num_position_embeddings': 16},
    },
    {'model_type': 'qwen3_vl_text', **_SECTIONS},
    {},
  ),
  **dict.fromkeys(
    ('glm4v', 'glm46v'),
    (
      {
        **_QWEN,
        **{'model_type': 'glm4v_vision', 'out_hidden_size': 32},
        **{'intermediate_size': 48, 'image_size': 28},
      },
      {
        'model_type': 'glm4v_text',
        'rope_parameters': {
          **_SECTIONS['rope_parameters'],
          **{'partial_rotary_factor': 0.5, 'mrope_section': [1, 1, 0]},
        },
      },
      {},
    ),
  ),
  'exaone4_5': (
    {
      **_QWEN,
      **{'out_hidden_size': 32, 'fullatt_block_indexes': [0]},
      **{'intermediate_size': 48, 'num_key_value_heads': 2},
    },
    {
      'model_type': 'exaone4',
      'sliding_window': 20,
      'layer_types': [tiny_models.SLIDING, tiny_models.FULL],
    },
    {},
  ),
  # Of any kind: that of published models needs the package timm.
  'perception_lm': (
    {
      **_VISION,
      **{'model_type': 'clip_vision_model', 'model_args': {'embed_dim': 32}},
    },
    {'model_type': 'llama'},
    {},
  ),
  'fast_vlm': (
    {**_VISION, 'model_type': 'clip_vision_model'},
    {'model_type': 'qwen2'},
    {},
  ),
  'janus': (
    {**_VISION, 'projection_dim': 32},
    {'model_type': 'llama'},
    {
      'vq_config': {
        **{'embed_dim': 4, 'num_embeddings': 16, 'latent_channels': 32},
        **{'base_channels': 32, 'channel_multiplier': [1, 1]},
        **{'num_res_blocks': 1, 'projection_dim': 32},
        **{'image_token_embed_dim': 32},
      },
      **_UNTIED,
    },
  ),
  'ovis2': (
    {**_VISION, 'vocab_size': 16},
    {'model_type': 'qwen2'},
    {
      'hidden_size': 32,
      'vocab_size': tiny_models.VOCAB_SIZE,
      'image_token_id': 300,
      'visual_indicator_token_ids': [301, 302, 303, 304, 305],
    },
  ),
  'qwen3_vl_moe': (
    {
      **_QWEN,
      **{'out_hidden_size': 32, 'intermediate_size': 48},
      **{'deepstack_visual_indexes': [0], 'num_position_embeddings': 16},
    },
    {
      'model_type': 'qwen3_vl_moe_text',
      'num_experts': 4,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 24,
      **_UNTIED,
      **_SECTIONS,
    },
    _UNTIED,
  ),
  'qwen3_5': (_QWEN_VISION, {'model_type': 'qwen3_5_text', **_DELTA}, _UNTIED),
  'qwen3_5_moe': (
    _QWEN_VISION,
    {
      'model_type': 'qwen3_5_moe_text',
      **_DELTA,
      'num_experts': 4,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 24,
      'shared_expert_intermediate_size': 24,
    },
    _UNTIED,
  ),
  'video_llama_3': (_VISION, {'model_type': 'qwen2'}, {}),
  'lighton_ocr': (
    {**_VISION, 'model_type': 'pixtral', 'head_dim': 16},
    {'model_type': 'qwen3'},
    {},
  ),
  'deepseek_vl': (
    {**_VISION, 'model_type': 'siglip_vision_model'},
    {'model_type': 'llama'},
    _UNTIED,
  ),
  'kimi_k25': (
    {
      **{k: v for k, v in _VISION.items() if k != 'image_size'},
      **{'num_attention_heads': 2, 'pos_emb_height': 2, 'pos_emb_width': 2},
    },
    {
      'model_type': 'deepseek_v3',
      'num_key_value_heads': 4,
      **{'kv_lora_rank': 16, 'q_lora_rank': 10, 'v_head_dim': 6},
      **{'qk_nope_head_dim': 4, 'qk_rope_head_dim': 8},
      **{'n_routed_experts': 4, 'num_experts_per_tok': 2},
      **{'n_group': 2, 'topk_group': 1, 'moe_intermediate_size': 24},
      'first_k_dense_replace': 1,
      **_UNTIED,
    },
    {'projection_hidden_size': 32, **_UNTIED},
  ),
  'idefics2': (
    _VISION,
    {'model_type': 'mistral', 'sliding_window': None},
    {},
  ),
  'idefics3': (_VISION, {'model_type': 'llama'}, {}),
  'smolvlm': (_VISION, {'model_type': 'llama'}, {}),
}

# Text part of `mistral3`, instead of the one above. Queries grow from the 33rd
# token on.
MISTRAL_SMALL_4 = {
  'model_type': 'mistral4',
  'head_dim': 12,
  'num_key_value_heads': 4,
  **{'kv_lora_rank': 16, 'q_lora_rank': 10, 'v_head_dim': 6},
  **{'qk_nope_head_dim': 4, 'qk_rope_head_dim': 8},
  **{'n_routed_experts': 4, 'num_experts_per_tok': 2, 'n_shared_experts': 1},
  **{'n_group': 2, 'topk_group': 1, 'moe_intermediate_size': 24},
  'first_k_dense_replace': 1,
  'rope_parameters': {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32,
    'max_position_embeddings': 512,
    'rope_theta': 10_000.0,
    'llama_4_scaling_beta': 0.7,
  },
}


def save(
  directory: pathlib.Path,
  model_type: str,
  /,
  quiet: Sequence[int] = (),
  **changes: object,
) -> transformers.PreTrainedModel:
  """Saves a model and a tokenizer; returns the torch model (float32, eval).

  Tokens `quiet` are never said; see `tiny_models.save`. `changes` are fields of
  the text part.
  """
  vision, text, other = WRAPPERS[model_type]
  if model_type == 'gemma3n':
    return _save_gemma3n(directory, {**TEXT, **text, **changes})
  cls = transformers.CONFIG_MAPPING[model_type]
  special = {f'{name}_token_id': None for name in ('bos', 'eos', 'pad')}
  config = cls(
    text_config={**TEXT, **special, **text, **changes},
    vision_config=vision,
    **other,
  )
  torch.manual_seed(0)
  model = transformers.AutoModelForImageTextToText.from_config(
    config, attn_implementation='eager'
  )
  mean = 0.0 if model_type == 'gemma3' else 1.0
  for name, weight in model.named_parameters():
    torch.nn.init.normal_(
      weight,
      mean if 'norm' in name else 0.0,
      0.1 if 'norm' in name else 0.2,
    )
  if len(quiet):
    tiny_models.silence(model, quiet)
  model.save_pretrained(directory)
  tiny_models.save_tokenizer(directory)
  return model.eval()


def _save_gemma3n(
  directory: pathlib.Path, text: dict
) -> transformers.PreTrainedModel:
  """Saves a text model under the names of the whole one.

  transformers' class of the whole model needs the package timm.
  """
  directory.mkdir(parents=True, exist_ok=True)
  config = transformers.CONFIG_MAPPING['gemma3n_text'](**text)
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager'
  )
  for name, weight in model.named_parameters():
    norm = 'norm' in name
    torch.nn.init.normal_(weight, float(norm), 0.1 if norm else 0.2)
  tensors = {
    name.replace('model.', 'model.language_model.', 1): weight.contiguous()
    for name, weight in model.state_dict().items()
    if name != 'lm_head.weight'
  }
  tensors['model.vision_tower.conv.weight'] = torch.ones(2, 2)
  safetensors.torch.save_file(
    tensors, directory / 'model.safetensors', {'format': 'pt'}
  )
  values = {
    'architectures': ['Gemma3nForConditionalGeneration'],
    'model_type': 'gemma3n',
    'text_config': config.to_dict(),
    'tie_word_embeddings': True,
  }
  (directory / 'config.json').write_text(json.dumps(values))
  tiny_models.save_tokenizer(directory)
  return model.eval()


def rename(directory: pathlib.Path, pattern: str, name: str) -> None:
  """Renames tensors of the one file of a model, by a regular expression."""
  file = directory / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  renamed = {re.sub(pattern, name, key): x for key, x in tensors.items()}
  assert renamed.keys() != tensors.keys()
  assert len(renamed) == len(tensors)
  safetensors.torch.save_file(renamed, file, {'format': 'pt'})
