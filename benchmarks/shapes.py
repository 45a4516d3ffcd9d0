"""Shapes of models for benchmarks, and random weights in these shapes."""

import pathlib
from typing import Any

from vtokens.host import paths
from vtokens.planning import known_models
from vtokens.recipes import smollm2


def _rotation(sections: list[int]) -> dict[str, Any]:
  """`rope_parameters` of Qwen3.5 for other widths of a head."""
  return {
    'mrope_interleaved': True,
    'mrope_section': sections,
    'partial_rotary_factor': 0.25,
    'rope_theta': 10000000,
    'rope_type': 'default',
  }


# Name -> a known model, and the fields of config.json that differ from it.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
  'tiny': (
    'mistralai/Mistral-7B-Instruct-v0.1',
    {
      'hidden_size': 128,
      'intermediate_size': 256,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'vocab_size': 512,
    },
  ),
  'qwen2.5-1.5b': (
    'Qwen/Qwen2.5-7B-Instruct',
    {
      'hidden_size': 1536,
      'intermediate_size': 8960,
      'num_attention_heads': 12,
      'num_key_value_heads': 2,
      'vocab_size': 151936,
      'tie_word_embeddings': True,
    },
  ),
  'llama-3.2-3b': (
    'meta-llama/Llama-3.1-8B-Instruct',
    {
      'hidden_size': 3072,
      'intermediate_size': 8192,
      'num_hidden_layers': 28,
      'num_attention_heads': 24,
      'head_dim': 128,
      'tie_word_embeddings': True,
    },
  ),
  'mistral-7b': ('mistralai/Mistral-7B-Instruct-v0.1', {}),
  'tiny-moe': (
    'Qwen/Qwen3-30B-A3B-Instruct-2507',
    {
      'hidden_size': 128,
      'moe_intermediate_size': 64,
      'num_experts': 8,
      'num_experts_per_tok': 2,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'head_dim': 32,
      'vocab_size': 512,
    },
  ),
  # For CPUs: as many active weights as a CPU can train with.
  'qwen3-moe-small': (
    'Qwen/Qwen3-30B-A3B-Instruct-2507',
    {
      'hidden_size': 512,
      'moe_intermediate_size': 256,
      'num_experts': 32,
      'num_experts_per_tok': 4,
      'num_hidden_layers': 8,
      'num_attention_heads': 8,
      'num_key_value_heads': 2,
      'head_dim': 64,
      'vocab_size': 32000,
    },
  ),
  # For one GPU and its disk: a quarter and a half of the layers.
  'qwen3-30b-a3b-12l': (
    'Qwen/Qwen3-30B-A3B-Instruct-2507',
    {'num_hidden_layers': 12},
  ),
  'gpt-oss-20b-12l': ('openai/gpt-oss-20b', {'num_hidden_layers': 12}),
  # Three of four layers are gated delta nets.
  'tiny-hybrid': (
    'Qwen/Qwen3.5-27B',
    {
      'hidden_size': 128,
      'intermediate_size': 256,
      'num_hidden_layers': 4,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'head_dim': 32,
      'linear_num_key_heads': 2,
      'linear_num_value_heads': 4,
      'linear_key_head_dim': 16,
      'linear_value_head_dim': 16,
      'rope_parameters': _rotation([2, 1, 1]),
      'vocab_size': 512,
    },
  ),
  'qwen3.5-small': (
    'Qwen/Qwen3.5-27B',
    {
      'hidden_size': 512,
      'intermediate_size': 1536,
      'num_hidden_layers': 8,
      'num_attention_heads': 8,
      'num_key_value_heads': 2,
      'head_dim': 64,
      'linear_num_key_heads': 4,
      'linear_num_value_heads': 8,
      'linear_key_head_dim': 64,
      'linear_value_head_dim': 64,
      'rope_parameters': _rotation([3, 3, 2]),
      'vocab_size': 32000,
    },
  ),
  'qwen3.5-27b-16l': ('Qwen/Qwen3.5-27B', {'num_hidden_layers': 16}),
}


def model_settings(name: str) -> Any:
  """transformers' config of a known shape or smollm2."""
  import transformers

  if name == 'smollm2':
    file = pathlib.Path(paths.resolve(smollm2.PATH))
    return transformers.AutoConfig.from_pretrained(
      file.parent, gguf_file=file.name
    )
  if name not in SHAPES:
    raise SystemExit(f'--model: smollm2 or one of {", ".join(SHAPES)}')
  path, changes = SHAPES[name]
  values, _ = known_models.CONFIGS.get(path, ({}, 0))
  # Of a multimodal model the text part.
  values = {**values.get('text_config', values), **changes}
  settings = transformers.AutoConfig.for_model(values.pop('model_type'))
  return type(settings)(**values)


def save_random(name: str, directory: pathlib.Path, dtype: str) -> str:
  """Saves random weights of a known shape, in Hugging Face's format."""
  import torch
  import transformers

  with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
    model = transformers.AutoModelForCausalLM.from_config(
      model_settings(name), dtype=getattr(torch, dtype)
    )
  model.save_pretrained(directory)
  del model
  # The contenders need the device's memory.
  torch.cuda.empty_cache()
  return str(directory)
