"""GGUF files of every family, written from the weights of a torch model."""

import dataclasses
import math
import types

import flax.nnx as nnx
import gguf
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import FULL, GEMMA, SLIDING

from vtokens.devices import partitioning
from vtokens.exports.gguf import llama_consumer
from vtokens.host import errors
from vtokens.models.families import registry
from vtokens.models.files import (
  gguf_weights,
  hf_directory,
  stored_names,
  weights,
)

LENGTH = 90

_SHORT = [1.0 + 0.1 * i for i in range(6)]
_LONG = [2.0 + 0.5 * i for i in range(6)]


# The least that shows a feature.
_SMALL = {'num_hidden_layers': 2, 'hidden_size': 32, 'intermediate_size': 48}
_EXPERTS = {
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'intermediate_size': 64,
  'num_experts_per_tok': 2,
}
_FALCON = {
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'ffn_hidden_size': 128,
  # Of other families.
  'intermediate_size': None,
  'num_key_value_heads': None,
  'activation': 'gelu_new',
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 5e3,
}
_YARN_METADATA = {
  'rope.scaling.type': 'yarn',
  'rope.scaling.factor': 4.0,
  'rope.scaling.original_context_length': 32,
  'rope.freq_base': 5e3,
}


def _rope(**values):
  return {'rope_type': 'default', 'rope_theta': 5e3, **values}


def _llama3_factors():
  """As the converter computes them for rope_freqs.weight."""
  factors = []
  for i in range(8):
    wavelength = 2 * np.pi * 50.0 ** (2 * i / 16)
    if wavelength < 64 / 4:
      factors.append(1.0)
    elif wavelength > 64:
      factors.append(8.0)
    else:
      smooth = (64 / wavelength - 1) / (4 - 1)
      factors.append(1 / ((1 - smooth) / 8 + smooth))
  assert len(set(factors)) > 3
  return np.array(factors, np.float32)


_NET = {
  'num_hidden_layers': 4,
  'hidden_size': 32,
  'intermediate_size': 64,
  'head_dim': 16,
  'linear_num_key_heads': 2,
  'linear_num_value_heads': 4,
  # llama.cpp wants keys and values of one width.
  'linear_key_head_dim': 12,
  'linear_value_head_dim': 12,
  'linear_conv_kernel_dim': 4,
  'layer_types': ['linear_attention', FULL, 'linear_attention', FULL],
  'rope_parameters': {
    'rope_type': 'default',
    'rope_theta': 5e3,
    'partial_rotary_factor': 0.5,
  },
}
_NET_EXPERTS = {
  'num_experts': 4,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 32,
  'shared_expert_intermediate_size': 24,
  'norm_topk_prob': True,
}
_MAMBA = {
  'mamba_n_heads': 4,
  'mamba_d_head': 16,
  'mamba_n_groups': 2,
  'mamba_d_state': 8,
  'mamba_d_conv': 4,
  'mamba_expand': 2,
}
_NEMOTRON = {
  'hidden_size': 32,
  'intermediate_size': 48,
  # Not hidden_size / num_attention_heads.
  'head_dim': 12,
  'num_hidden_layers': 4,
  'layer_norm_epsilon': 1e-3,
  'mamba_num_heads': 4,
  'mamba_head_dim': 16,
  'ssm_state_size': 8,
  'n_groups': 2,
  'conv_kernel': 4,
}
_LATENT = {
  'num_hidden_layers': 3,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_key_value_heads': 4,
  'head_dim': 8,
  'kv_lora_rank': 16,
  'q_lora_rank': 12,
  'qk_nope_head_dim': 4,
  'qk_rope_head_dim': 8,
  'v_head_dim': 6,
}
_GROUPED = {
  'num_hidden_layers': 3,
  'hidden_size': 32,
  'intermediate_size': 48,
  'n_routed_experts': 6,
  'num_experts_per_tok': 3,
  'moe_intermediate_size': 24,
  'n_shared_experts': 2,
  'routed_scaling_factor': 1.7,
  'first_k_dense_replace': 1,
  'n_group': 1,
  'topk_group': 1,
}
_LATENT_EXPERTS = {**_GROUPED, **_LATENT}
_GEMMA4 = {
  'hidden_size': 64,
  'intermediate_size': 48,
  'head_dim': 12,
  'global_head_dim': 32,
  'sliding_window': 20,
  'tie_word_embeddings': True,
  'final_logit_softcapping': 3.0,
  'hidden_size_per_layer_input': 0,
  'vocab_size_per_layer_input': 320,
  'num_kv_shared_layers': 0,
}
# A quarter of the values of a head are rotated.
_STOPPED = {'rope_freqs.weight': np.array([1.0] * 4 + [1e30] * 12, np.float32)}

# Published files have keys and values of layers that read an earlier layer's.
# llama.cpp wants them in files of Gemma 3n.
_UNUSED_KEYS = {
  f'blk.{layer}.{name}.weight': np.ones(shape, np.float32)
  for layer in (20, 21)
  for name, shape in (
    ('attn_k', (24, 32)),
    ('attn_v', (24, 32)),
    ('attn_k_norm', (12,)),
  )
}

# name -> architecture, model_type, changes of the model, metadata, tensors.
CASES = {
  'mistral': ('llama', 'mistral', {'sliding_window': None}, {}, {}),
  'llama3': (
    'llama',
    'llama',
    {
      'rope_parameters': {
        'rope_type': 'llama3',
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 64,
        'rope_theta': 50.0,
      }
    },
    {'rope.freq_base': 50.0},
    {'rope_freqs.weight': _llama3_factors()},
  ),
  'llama_linear': (
    'llama',
    'llama',
    {'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}},
    {'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0},
    {},
  ),
  'qwen2': (
    'qwen2',
    'qwen2',
    {
      'tie_word_embeddings': True,
      'rope_parameters': {
        'rope_type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 32,
        'rope_theta': 10_000.0,
      },
    },
    {
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4.0,
      'rope.scaling.original_context_length': 32,
    },
    {},
  ),
  'qwen3': (
    'qwen3',
    'qwen3',
    {'head_dim': 24},
    {
      'attention.key_length': 24,
      'attention.value_length': 24,
      'rope.freq_base': 10_000.0,
    },
    {},
  ),
  'phi3': (
    'phi3',
    'phi3',
    {
      'sliding_window': 20,
      'original_max_position_embeddings': 64,
      'rope_parameters': {
        'rope_type': 'longrope',
        'rope_theta': 10_000.0,
        'partial_rotary_factor': 0.75,
        'short_factor': _SHORT,
        'long_factor': _LONG,
      },
    },
    {
      'rope.dimension_count': 12,
      'attention.sliding_window': 20,
      'rope.scaling.original_context_length': 64,
      'rope.scaling.attn_factor': float(np.sqrt(1 + np.log(8) / np.log(64))),
    },
    {
      'rope_factors_short.weight': np.array(_SHORT, np.float32),
      'rope_factors_long.weight': np.array(_LONG, np.float32),
    },
  ),
  'phi4': (
    'phi3',
    'phi3',
    {'sliding_window': None},
    {'attention.sliding_window': 0},
    {},
  ),
  'gemma': (
    'gemma',
    'gemma',
    GEMMA,
    {'attention.key_length': 24, 'attention.value_length': 24},
    {},
  ),
  'gemma2': (
    'gemma2',
    'gemma2',
    {
      **GEMMA,
      'sliding_window': 20,
      'query_pre_attn_scalar': 24,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
    {
      'attention.key_length': 24,
      'attention.sliding_window': 20,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
    {},
  ),
  'gemma3': (
    'gemma3',
    'gemma3_text',
    {
      **GEMMA,
      'num_hidden_layers': 7,
      'sliding_window': 20,
      'query_pre_attn_scalar': 24,
      'rope_parameters': {
        FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        SLIDING: {'rope_type': 'default', 'rope_theta': 1e4},
      },
    },
    {
      'attention.key_length': 24,
      'attention.sliding_window': 20,
      'rope.freq_base': 1e6,
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': 8.0,
    },
    {},
  ),
  'olmo2': ('olmo2', 'olmo2', {**_SMALL, 'attention_bias': False}, {}, {}),
  'olmo3': (
    'olmo2',
    'olmo3',
    {
      **_SMALL,
      'num_hidden_layers': 4,
      'sliding_window': 20,
      'rope_parameters': {
        FULL: {**_YARN, 'attention_factor': 1 + 0.1 * math.log(4)},
        SLIDING: _rope(),
      },
    },
    {
      **_YARN_METADATA,
      'rope.scaling.yarn_attn_factor': 1 + 0.1 * math.log(4),
      'rope.freq_base_swa': 5e3,
      'attention.sliding_window': 20,
      'attention.sliding_window_pattern': [True, True, True, False],
    },
    {},
  ),
  'smollm3': (
    'smollm3',
    'smollm3',
    {**_SMALL, 'num_hidden_layers': 4, 'rope_parameters': _rope()},
    {'rope.freq_base': 5e3},
    {},
  ),
  'granite': (
    'granite',
    'granite',
    {
      **_SMALL,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
      'attention_bias': True,
    },
    {
      'embedding_scale': 3.0,
      'attention.scale': 0.4,
      'residual_scale': 0.7,
      'logit_scale': 1.3,
    },
    {},
  ),
  'cohere': (
    'command-r',
    'cohere',
    {
      **_SMALL,
      'logit_scale': 0.7,
      'layer_norm_eps': 1e-3,
      'rope_parameters': _rope(),
      'tie_word_embeddings': True,
    },
    {'logit_scale': 0.7, 'rope.freq_base': 5e3, 'rope.scaling.type': 'none'},
    {},
  ),
  # llama.cpp has these norms in models of 64 layers and more.
  'cohere_norms': (
    'command-r',
    'cohere',
    {
      **_SMALL,
      'num_hidden_layers': 64,
      'logit_scale': 0.7,
      'use_qk_norm': True,
      'rope_parameters': _rope(rope_theta=1e4),
      'tie_word_embeddings': True,
    },
    {'logit_scale': 0.7},
    {},
  ),
  'cohere2': (
    'cohere2',
    'cohere2',
    {
      **_SMALL,
      'num_hidden_layers': 5,
      'logit_scale': 0.7,
      'layer_norm_eps': 1e-3,
      'sliding_window': 20,
      'tie_word_embeddings': True,
    },
    {'logit_scale': 0.7, 'attention.sliding_window': 20},
    {},
  ),
  'glm': (
    'chatglm',
    'glm',
    {
      **_SMALL,
      'head_dim': 8,
      'rope_parameters': _rope(partial_rotary_factor=0.5),
    },
    {'rope.dimension_count': 4, 'rope.freq_base': 5e3},
    {},
  ),
  'glm4': (
    'glm4',
    'glm4',
    {
      **_SMALL,
      'head_dim': 16,
      'attention_bias': True,
      'rope_parameters': _rope(partial_rotary_factor=0.25),
    },
    {
      'attention.key_length': 16,
      'attention.value_length': 16,
      'rope.dimension_count': 4,
      'rope.freq_base': 5e3,
    },
    {},
  ),
  'glm4_vision': (
    'glm4',
    'glm4',
    {
      **_SMALL,
      'head_dim': 16,
      'attention_bias': True,
      'rope_parameters': _rope(partial_rotary_factor=0.5),
    },
    {
      'attention.key_length': 16,
      'attention.value_length': 16,
      'rope.dimension_count': 8,
      'rope.dimension_sections': [2, 1, 1, 0],
      'rope.freq_base': 5e3,
    },
    {},
  ),
  'exaone4': (
    'exaone4',
    'exaone4',
    {
      **_SMALL,
      'hidden_size': 64,
      'sliding_window': None,
      'layer_types': [FULL, FULL],
      'rope_parameters': {
        'rope_type': 'llama3',
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 64,
        'rope_theta': 50.0,
      },
    },
    {'rope.freq_base': 50.0},
    {'rope_freqs.weight': _llama3_factors()},
  ),
  # llama.cpp has windows in models of 64 layers alone.
  'exaone4_windows': (
    'exaone4',
    'exaone4',
    {**_SMALL, 'num_hidden_layers': 64, 'sliding_window': 20},
    {
      'attention.sliding_window': 20,
      'attention.sliding_window_pattern': [True, True, True, False] * 16,
    },
    {},
  ),
  'ernie4_5': (
    'ernie4_5',
    'ernie4_5',
    {
      **_SMALL,
      'head_dim': 12,
      'rope_parameters': _rope(),
      'tie_word_embeddings': True,
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.freq_base': 5e3,
    },
    {},
  ),
  'phi': (
    'phi2',
    'phi',
    {
      **_SMALL,
      'num_key_value_heads': 4,
      'layer_norm_eps': 1e-3,
      'rope_parameters': _rope(partial_rotary_factor=0.5, rope_theta=1e4),
    },
    {'rope.dimension_count': 4},
    {},
  ),
  'starcoder2': (
    'starcoder2',
    'starcoder2',
    {
      **_SMALL,
      'norm_epsilon': 1e-3,
      'sliding_window': None,
      'rope_parameters': _rope(),
      'tie_word_embeddings': True,
    },
    {'rope.freq_base': 5e3},
    {},
  ),
  'stablelm': (
    'stablelm',
    'stablelm',
    {
      **_SMALL,
      'layer_norm_eps': 1e-3,
      'use_qkv_bias': True,
      'rope_parameters': _rope(partial_rotary_factor=0.25, rope_theta=1e4),
    },
    {'rope.dimension_count': 2, 'use_parallel_residual': False},
    {},
  ),
  'stablelm_parallel': (
    'stablelm',
    'stablelm',
    {**_SMALL, 'layer_norm_eps': 1e-3, 'use_parallel_residual': True},
    {'rope.dimension_count': 2, 'use_parallel_residual': True},
    {},
  ),
  'nemotron': (
    'nemotron',
    'nemotron',
    {
      **_SMALL,
      'norm_eps': 1e-3,
      'attention_bias': True,
      'rope_parameters': _rope(partial_rotary_factor=0.5),
    },
    {
      # The converter writes both epsilons; this one is not used.
      'attention.layer_norm_rms_epsilon': 0.5,
      'rope.dimension_count': 4,
      'rope.freq_base': 5e3,
      'rope.scaling.type': 'none',
    },
    {},
  ),
  'arcee': (
    'arcee',
    'arcee',
    {**_SMALL, 'rope_parameters': _YARN},
    {**_YARN_METADATA, 'rope.dimension_count': 8},
    {},
  ),
  'seed_oss': (
    'seed_oss',
    'seed_oss',
    {
      **_SMALL,
      'head_dim': 12,
      'attention_bias': True,
      'attention_out_bias': False,
      'rope_parameters': _rope(),
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.freq_base': 5e3,
    },
    {},
  ),
  # Queries grow from the 33rd token on.
  'ministral3': (
    'mistral3',
    'ministral3',
    {
      **_SMALL,
      'head_dim': 12,
      'sliding_window': None,
      'rope_parameters': {
        **_YARN,
        'mscale': 1.0,
        'mscale_all_dim': 0.5,
        'llama_4_scaling_beta': 0.7,
      },
    },
    {
      **_YARN_METADATA,
      'attention.key_length': 12,
      'attention.value_length': 12,
      'attention.temperature_scale': 0.7,
      'rope.scaling.yarn_log_multiplier': 0.5,
    },
    {},
  ),
  'mistral_small': (
    'mistral3',
    'mistral',
    {**_SMALL, 'head_dim': 12, 'sliding_window': None},
    {'attention.key_length': 12, 'attention.value_length': 12},
    {},
  ),
  # llama.cpp (b11549) reads no epsilon for it, and uses 0.
  'qwen2_vl': (
    'qwen2vl',
    'qwen2',
    {
      **_SMALL,
      'rms_norm_eps': 1e-9,
      'rope_parameters': _rope(rope_theta=1e4),
    },
    {'rope.dimension_sections': [1, 1, 2, 0]},
    {},
  ),
  'qwen3_vl': (
    'qwen3vl',
    'qwen3',
    {**_SMALL, 'head_dim': 12, 'rope_parameters': _rope(rope_theta=1e4)},
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.dimension_sections': [2, 2, 2, 0],
      'n_deepstack_layers': 1,
    },
    {},
  ),
  'olmo': (
    'olmo',
    'olmo',
    {**_SMALL, 'clip_qkv': 0.5},
    {'attention.clamp_kqv': 0.5},
    {},
  ),
  # transformers has no class of it; its layers are Llama's.
  'exaone': (
    'exaone',
    'llama',
    {**_SMALL, 'hidden_size': 64, 'rope_parameters': _rope()},
    {'rope.dimension_count': 16, 'rope.freq_base': 5e3},
    {},
  ),
  'jais2': (
    'jais2',
    'jais2',
    {
      **_SMALL,
      'head_dim': 12,
      'layer_norm_eps': 1e-3,
      'rope_parameters': _rope(),
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.dimension_count': 12,
      'rope.freq_base': 5e3,
    },
    {},
  ),
  # The converter writes the base that alpha has stretched.
  'hunyuan': (
    'hunyuan-dense',
    'hunyuan_v1_dense',
    {
      **_SMALL,
      'head_dim': 12,
      'rope_parameters': _rope(rope_type='dynamic', alpha=50.0, factor=1.0),
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.freq_base': 5e3 * 50.0 ** (12 / 10),
      'rope.scaling.type': 'none',
      'rope.scaling.factor': 1.0,
    },
    {},
  ),
  'gpt_neox': (
    'gptneox',
    'gpt_neox',
    {
      **_SMALL,
      'num_key_value_heads': 4,
      'layer_norm_eps': 1e-3,
      'hidden_act': 'gelu_fast',
      'rope_parameters': _rope(partial_rotary_factor=0.5, rope_theta=1e4),
    },
    {'rope.dimension_count': 4, 'use_parallel_residual': True},
    {},
  ),
  'gpt_neox_in_turn': (
    'gptneox',
    'gpt_neox',
    {
      **_SMALL,
      'num_key_value_heads': 4,
      'use_parallel_residual': False,
      'hidden_act': 'gelu_fast',
      'rope_parameters': _rope(partial_rotary_factor=0.25, rope_theta=1e4),
    },
    {'rope.dimension_count': 2, 'use_parallel_residual': False},
    {},
  ),
  'falcon': (
    'falcon',
    'falcon',
    {
      **_FALCON,
      'new_decoder_architecture': True,
      'num_kv_heads': 2,
      'layer_norm_epsilon': 1e-3,
    },
    {},
    {},
  ),
  'falcon_one_norm': (
    'falcon',
    'falcon',
    {**_FALCON, 'multi_query': True, 'num_kv_heads': 1},
    {},
    {},
  ),
  'apertus': (
    'apertus',
    'apertus',
    {**_SMALL, 'head_dim': 12, 'rope_parameters': _rope()},
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'rope.freq_base': 5e3,
    },
    {},
  ),
  'qwen3_moe': (
    'qwen3moe',
    'qwen3_moe',
    {
      **_EXPERTS,
      'num_experts': 4,
      'moe_intermediate_size': 64,
      'norm_topk_prob': True,
      'head_dim': 12,
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'expert_feed_forward_length': 64,
    },
    {},
  ),
  'qwen3_vl_moe': (
    'qwen3vlmoe',
    'qwen3_moe',
    {
      **_EXPERTS,
      'num_experts': 4,
      'moe_intermediate_size': 64,
      'norm_topk_prob': True,
      'head_dim': 12,
    },
    {
      'attention.key_length': 12,
      'attention.value_length': 12,
      'expert_feed_forward_length': 64,
      'rope.dimension_sections': [2, 2, 2, 0],
      'n_deepstack_layers': 1,
    },
    {},
  ),
  'gpt_oss': (
    'gpt-oss',
    'gpt_oss',
    {
      **_EXPERTS,
      'num_local_experts': 4,
      'head_dim': 16,
      'sliding_window': 20,
      'rope_parameters': {**_YARN, 'truncate': True},
    },
    {
      **_YARN_METADATA,
      'attention.key_length': 16,
      'attention.value_length': 16,
      'attention.sliding_window': 20,
      'expert_feed_forward_length': 64,
    },
    {},
  ),
  # llama.cpp wants as many heads of keys as of queries.
  'olmoe': (
    'olmoe',
    'olmoe',
    {**_EXPERTS, 'num_experts': 4, 'num_key_value_heads': 4},
    {},
    {},
  ),
  'granite_moe': (
    'granitemoe',
    'granitemoe',
    {
      **_EXPERTS,
      'num_local_experts': 4,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
    },
    {
      'embedding_scale': 3.0,
      'attention.scale': 0.4,
      'residual_scale': 0.7,
      'logit_scale': 1.3,
    },
    {},
  ),
  'mixtral': (
    'llama',
    'mixtral',
    {
      **_EXPERTS,
      'num_local_experts': 4,
      'sliding_window': None,
      'rope_parameters': _rope(),
    },
    {'rope.freq_base': 5e3},
    {},
  ),
  'qwen2_moe': (
    'qwen2moe',
    'qwen2_moe',
    {
      **_EXPERTS,
      'num_experts': 4,
      'moe_intermediate_size': 24,
      'shared_expert_intermediate_size': 40,
      'norm_topk_prob': False,
      'rope_parameters': _rope(),
    },
    {},
    {},
  ),
  'glm4_moe': (
    'glm4moe',
    'glm4_moe',
    {
      **_GROUPED,
      'attention_bias': True,
      'use_qk_norm': True,
      'head_dim': 16,
      'rope_parameters': _rope(partial_rotary_factor=0.5),
    },
    {'expert_gating_func': 2},
    {},
  ),
  'minimax_m2': (
    'minimax-m2',
    'minimax_m2',
    {
      **_EXPERTS,
      'num_local_experts': 4,
      'head_dim': 16,
      'rope_parameters': _rope(partial_rotary_factor=0.5),
    },
    {'expert_gating_func': 2},
    {},
  ),
  # llama.cpp wants sections no longer than what is rotated.
  'qwen3_5': ('qwen35', 'qwen3_5_text', _NET, {}, {}),
  'qwen3_5_moe': (
    'qwen35moe',
    'qwen3_5_moe_text',
    {
      **_NET,
      **_NET_EXPERTS,
      'intermediate_size': None,
      'num_hidden_layers': 2,
      'layer_types': ['linear_attention', FULL],
    },
    {},
    {},
  ),
  'qwen3_next': (
    'qwen3next',
    'qwen3_next',
    {**_NET, **_NET_EXPERTS},
    {},
    {},
  ),
  'lfm2': (
    'lfm2',
    'lfm2',
    {
      **_SMALL,
      'num_hidden_layers': 3,
      'layer_types': ['conv', FULL, 'conv'],
      'conv_L_cache': 3,
      'block_auto_adjust_ff_dim': False,
      'norm_eps': 1e-3,
      'tie_word_embeddings': True,
      'rope_parameters': _rope(),
    },
    {},
    {},
  ),
  'granite_hybrid': (
    'granitehybrid',
    'granitemoehybrid',
    {
      **_SMALL,
      **_MAMBA,
      'num_hidden_layers': 3,
      'layer_types': ['linear_attention', FULL, 'linear_attention'],
      'num_local_experts': 4,
      'num_experts_per_tok': 2,
      'shared_intermediate_size': 40,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
    },
    {},
    {},
  ),
  'granite_hybrid_dense': (
    'granitehybrid',
    'granitemoehybrid',
    {
      **_SMALL,
      **_MAMBA,
      'num_hidden_layers': 3,
      'layer_types': ['linear_attention', FULL, 'linear_attention'],
      'num_local_experts': 0,
      'shared_intermediate_size': 48,
    },
    {},
    {},
  ),
  'nemotron_h': (
    'nemotron_h',
    'nemotron_h',
    {
      **_NEMOTRON,
      'layers_block_type': ['linear_attention', FULL, 'mlp', 'mlp'],
    },
    {},
    {},
  ),
  'nemotron_h_moe': (
    'nemotron_h_moe',
    'nemotron_h',
    {
      **_NEMOTRON,
      'layers_block_type': ['linear_attention', FULL, 'moe', 'moe'],
      'n_routed_experts': 4,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 24,
      'moe_shared_expert_intermediate_size': 40,
      'n_group': 1,
      'topk_group': 1,
      'routed_scaling_factor': 1.7,
    },
    {},
    {},
  ),
  # The file has the multipliers in its weights.
  'falcon_h1': (
    'falcon-h1',
    'falcon_h1',
    {
      **_SMALL,
      **_MAMBA,
      'mamba_d_ssm': 64,
      'head_dim': 12,
      'mamba_rms_norm': True,
      'mamba_norm_before_gate': False,
      'key_multiplier': 0.7,
      'attention_in_multiplier': 1.2,
      'attention_out_multiplier': 0.8,
      'ssm_in_multiplier': 0.9,
      'ssm_out_multiplier': 1.3,
      'ssm_multipliers': [0.8, 1.1, 0.9, 1.2, 0.7],
      'embedding_multiplier': 1.7,
      'lm_head_multiplier': 0.6,
      'mlp_multipliers': [0.8, 1.4],
      'rope_parameters': _rope(),
    },
    {},
    {},
  ),
  'deepseek_v2': (
    'deepseek2',
    'deepseek_v2',
    {**_LATENT_EXPERTS, 'topk_method': 'greedy', 'q_lora_rank': None},
    {},
    {},
  ),
  'deepseek_v3': (
    'deepseek2',
    'deepseek_v3',
    {
      **_LATENT_EXPERTS,
      'n_group': 3,
      'topk_group': 2,
      'rope_parameters': {**_YARN, 'mscale': 1.5, 'mscale_all_dim': 1.5},
    },
    {
      **_YARN_METADATA,
      'rope.scaling.yarn_log_multiplier': 0.15,
      'expert_gating_func': 2,
    },
    {},
  ),
  'youtu': ('deepseek2', 'youtu', _LATENT, {}, {}),
  # Queries grow from the 33rd token on.
  'mistral4': (
    'mistral4',
    'mistral4',
    {
      **_LATENT_EXPERTS,
      'head_dim': 12,
      'rope_parameters': {
        **_YARN,
        'mscale': 1.0,
        'mscale_all_dim': 1.0,
        'llama_4_scaling_beta': 0.7,
      },
    },
    {
      **_YARN_METADATA,
      'rope.scaling.yarn_log_multiplier': 0.1,
      'attention.temperature_scale': 0.7,
      'attention.temperature_length': 32,
    },
    {},
  ),
  # llama.cpp's scales are those of the 4B model.
  'minicpm3': (
    'minicpm3',
    'minicpm3',
    {
      **_LATENT,
      'num_hidden_layers': 2,
      'hidden_size': 64,
      'v_head_dim': 16,
      'scale_emb': 12.0,
      'scale_depth': 1.4,
      'dim_model_base': 256,
    },
    {},
    {},
  ),
  # Experts; keys that are values, of another number of heads.
  'gemma4': (
    'gemma4',
    'gemma4_text',
    {
      **_GEMMA4,
      'num_hidden_layers': 3,
      'layer_types': [SLIDING, SLIDING, FULL],
      'attention_k_eq_v': True,
      'num_global_key_value_heads': 1,
      'enable_moe_block': True,
      'num_experts': 4,
      'top_k_experts': 2,
      'moe_intermediate_size': 24,
    },
    {},
    _STOPPED,
  ),
  # Inputs of each layer; keys of earlier layers; wider MLPs.
  'gemma4_e': (
    'gemma4',
    'gemma4_text',
    {
      **_GEMMA4,
      'num_hidden_layers': 5,
      'layer_types': [SLIDING, SLIDING, FULL, SLIDING, FULL],
      'hidden_size_per_layer_input': 16,
      'num_kv_shared_layers': 2,
      'use_double_wide_mlp': True,
    },
    {'feed_forward_length': [48, 48, 48, 96, 96]},
    _STOPPED,
  ),
  # llama.cpp takes the sizes that the file does not say for given.
  'gemma3n': (
    'gemma3n',
    'gemma3n_text',
    {
      'num_hidden_layers': 22,
      'hidden_size': 32,
      'intermediate_size': [48] * 22,
      'head_dim': 12,
      'sliding_window': 20,
      'layer_types': [*([SLIDING] * 4 + [FULL]) * 4, SLIDING, FULL],
      'num_kv_shared_layers': 2,
      'hidden_size_per_layer_input': 256,
      'vocab_size_per_layer_input': 320,
      'laurel_rank': 64,
      'activation_sparsity_pattern': [0.95] * 10 + [0.0] * 12,
      'tie_word_embeddings': True,
      'final_logit_softcapping': 30.0,
    },
    {},
    _UNUSED_KEYS,
  ),
}
# Cases with GELU.
_GELU = ('phi', 'starcoder2', 'gpt_neox', 'gemma')
# Cases whose files differ from another's by names alone, or that cost more.
_EXHAUSTIVE = (
  *('cohere_norms', 'exaone4_windows'),
  *('mistral', 'phi4', 'llama_linear', 'mistral_small', 'arcee', 'ernie4_5'),
  *('qwen2_vl', 'qwen3_vl', 'seed_oss', 'exaone', 'jais2', 'stablelm_parallel'),
  *('gpt_neox_in_turn', 'falcon_one_norm'),
  *('qwen3_vl_moe', 'olmoe', 'granite_moe', 'mixtral'),
  # `test_weights_equal_those_of_the_model` compares what these read.
  *('qwen3_5', 'qwen3_5_moe', 'qwen3_next', 'lfm2', 'granite_hybrid'),
  *('granite_hybrid_dense', 'nemotron_h', 'nemotron_h_moe'),
  *('qwen2_moe', 'glm4_moe', 'minimax_m2', 'mistral4', 'minicpm3'),
  *('deepseek_v2', 'deepseek_v3', 'youtu', 'gemma4', 'gemma4_e', 'gemma3n'),
)
# Cases whose tensors differ from Hugging Face's in shape, values or number, and
# which have no multipliers in them.
_CONVERTED = (
  *('qwen3_5', 'qwen3_5_moe', 'qwen3_next', 'lfm2', 'granite_hybrid'),
  *('granite_hybrid_dense', 'nemotron_h', 'nemotron_h_moe'),
  *('qwen2_moe', 'glm4_moe', 'minimax_m2', 'mistral4', 'minicpm3'),
  *('deepseek_v2', 'deepseek_v3', 'youtu', 'gemma4', 'gemma4_e', 'gemma3n'),
)


def _marked(names, exhaustive):
  mark = pytest.mark.exhaustive
  return [
    pytest.param(name, marks=mark) if name in exhaustive else name
    for name in names
  ]


def _write(case, directory):
  """The file of a case, and the torch model that it was written from."""
  architecture, model_type, changes, metadata, extra = CASES[case]
  reference = tiny_models.save(
    directory / 'hf', model_type=model_type, **changes
  )
  path = directory / 'model.gguf'
  gguf_models.write(
    path,
    architecture,
    reference,
    metadata,
    extra,
    tokenizer=gguf_models.BYTES,
  )
  return path, reference


@jax.jit
def _logits(model, ids, positions):
  hidden, _ = model(model.embed(ids), positions, ids=ids)
  return model.logits(hidden)


def test_an_architecture_has_one_family():
  """A subclass inherits the name."""
  found = [f.gguf for f in registry.families().values() if f.gguf]
  assert len(found) == len(set(found))


# llama.cpp wants at least 20 layers of Gemma 3n. Random ones amplify rounding:
# torch's logits in float32 are 0.007 from its own in float64. So weights and
# config are compared here, logits with fewer layers in
# `decoder_families_test.py`.
_IN_TORCH = [name for name in CASES if name != 'gemma3n']


@pytest.mark.parametrize('case', _marked(_IN_TORCH, _EXHAUSTIVE))
def test_logits_equal_those_of_torch(case, tmp_path):
  architecture, model_type, *_ = CASES[case]
  path, reference = _write(case, tmp_path)
  source = gguf_weights.GGUFSource(path)
  other = {
    'mistral_small': 'llama',
    'mixtral': 'mixtral',
  }.get(case, {'llama': 'llama', 'exaone': 'exaone'}.get(architecture))
  assert source.config.model_type == (other or model_type)
  model = weights.load_decoder(
    source,
    dataclasses.replace(source.config, context_length=LENGTH),
    jnp.float32,
    partitioning.make_mesh((-1, 1, 1)),
  )
  ids = np.random.default_rng(0).integers(256, size=(2, LENGTH))
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
  graph, params = nnx.split(model)
  found = jax.jit(
    lambda params: _logits(nnx.merge(graph, params), ids, positions)
  )(params)
  with torch.no_grad():
    expected = reference(torch.from_numpy(ids)).logits.numpy()
  assert expected.std() > 0.3
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize('case', _CONVERTED)
def test_weights_equal_those_of_the_model(case, tmp_path):
  """And the config; so the logits do, without a program."""
  path, _ = _write(case, tmp_path)
  source = gguf_weights.GGUFSource(path)
  weights.check_shapes(source, source.config)
  theirs = hf_directory.SafetensorsSource(tmp_path / 'hf')
  config = hf_directory.read_config(tmp_path / 'hf')
  assert _rounded(source.config) == _rounded(config)
  found = _parameters(source, source.config)
  expected = _parameters(theirs, config)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    # The converter adds 1 to some, and takes the exponential of others.
    np.testing.assert_allclose(
      found[name], array, rtol=1e-6, atol=1e-6, err_msg=name
    )
  for name, shape in source.shapes().items():
    if len(shape) == 2:
      rows, columns = slice(1, shape[0] // 2 + 1), slice(1, None)
      np.testing.assert_array_equal(
        source.read(name, rows, columns),
        source.read(name)[rows, columns],
        err_msg=name,
      )


def _parameters(source, config):
  """Path -> the parameter of all layers."""
  found = {}
  for path, (weight, _) in stored_names.weights_of(
    config, source.shapes()
  ).items():
    whole = tuple(slice(0, size) for size in weight.shape)
    array = np.empty((weight.layers, *weight.shape), np.float32)
    for layer in range(weight.layers):
      weight.read(source, layer, whole, array[layer, ...], lambda _: None)
    found['.'.join(map(str, path))] = array
  return found


def _rounded(value):
  """A config with rounded numbers: the file has them in float32."""
  match value:
    case float():
      return float(f'{value:.5g}')
    case tuple():
      return tuple(map(_rounded, value))
    case _ if dataclasses.is_dataclass(value):
      return {
        field.name: _rounded(getattr(value, field.name))
        for field in dataclasses.fields(value)
        # Not used where each layer has a width of its own, or experts.
        if field.name != 'mlp_dim'
      }
  return value


@pytest.mark.parametrize(
  ('case', 'wide', 'moved'),
  [
    (
      'qwen3_5',
      {'linear_key_head_dim': 32, 'linear_value_head_dim': 32},
      ['linear_attn.in_proj_qkv', 'linear_attn.out_proj'],
    ),
    (
      'deepseek_v3',
      {'qk_nope_head_dim': 32, 'kv_lora_rank': 32},
      ['self_attn.kv_b_proj'],
    ),
  ],
)
def test_quantised_weights(case, wide, moved, tmp_path):
  """Their rows and columns are put in order, and their parts together."""
  architecture, model_type, changes, metadata, extra = CASES[case]
  reference = tiny_models.save(
    tmp_path / 'hf', model_type=model_type, **{**changes, **wide}
  )

  def source(kind):
    path = tmp_path / f'{kind.name}.gguf'
    gguf_models.write(path, architecture, reference, metadata, extra, kind=kind)
    return gguf_weights.GGUFSource(path)

  plain, quantised = map(source, (gguf_models.Type.F32, gguf_models.Type.Q8_0))
  assert quantised.shapes() == plain.shapes()
  rounded = []
  for name in plain.shapes():
    expected, found = plain.read(name), quantised.read(name)
    bound = np.abs(expected).max() / 127
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=bound, err_msg=name
    )
    rounded += [name] * bool((found != expected).any())
  for name in moved:
    assert f'model.layers.0.{name}.weight' in rounded


@pytest.mark.parametrize('case', ['qwen3_5', 'glm4_moe'])
def test_layers_that_predict_further_tokens_are_left_out(case, tmp_path):
  architecture, model_type, changes, metadata, _ = CASES[case]
  reference = tiny_models.save(
    tmp_path / 'hf', model_type=model_type, **changes
  )
  path = tmp_path / 'model.gguf'
  layers = changes['num_hidden_layers']
  metadata = {
    **metadata,
    'block_count': layers + 1,
    'nextn_predict_layers': 1,
  }
  if case == 'qwen3_5':
    recurrent = [True, False, True, False, False]
    metadata['attention.recurrent_layers'] = recurrent
  extra = {
    f'blk.{layers}.attn_norm.weight': np.ones(32, np.float32),
    f'blk.{layers}.nextn.eh_proj.weight': np.ones((32, 64), np.float32),
  }
  gguf_models.write(path, architecture, reference, metadata, extra)
  source = gguf_weights.GGUFSource(path)
  assert source.config.num_layers == layers
  weights.check_shapes(source, source.config)


def test_granite_4_without_mamba(tmp_path):
  """Its file is Granite 3's, and has numbers of layers that it lacks."""
  architecture, model_type, changes, metadata, _ = CASES['granite']
  reference = tiny_models.save(
    tmp_path / 'hf', model_type=model_type, **changes
  )

  def config(**more):
    path = tmp_path / 'model.gguf'
    gguf_models.write(path, architecture, reference, metadata | more)
    return gguf_weights.GGUFSource(path).config

  of_others = {
    'ssm.conv_kernel': 4,
    'ssm.state_size': 16,
    'ssm.group_count': 1,
    'ssm.inner_size': 64,
    'ssm.time_step_rank': 4,
    'expert_shared_feed_forward_length': 48,
    'rope.scaling.finetuned': True,
  }
  by_layer = 'attention.head_count_kv'
  assert config(**{by_layer: [2, 2]}, **of_others) == config()
  with pytest.raises(errors.UserError, match=f'{by_layer} is .*, expected one'):
    config(**{by_layer: [2, 1]})


def test_an_architecture_that_llama_cpp_runs_otherwise(tmp_path):
  path = tmp_path / 'model.gguf'
  writer = gguf.GGUFWriter(path, 'phimoe')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  expected = "general.architecture is 'phimoe', not supported: llama.cpp"
  with pytest.raises(errors.UserError, match=expected):
    gguf_weights.GGUFSource(path)


# Also in files of families whose converter leaves them apart.
@pytest.mark.parametrize(
  'case',
  [
    'qwen3_moe',
    *_marked(
      ['mixtral', 'granite_moe', 'qwen2_moe', 'glm4_moe', 'minimax_m2'], CASES
    ),
    *_marked(['qwen3_next', 'deepseek_v3', 'granite_hybrid'], CASES),
  ],
)
def test_gates_and_ups_of_experts_in_one_tensor(case, tmp_path):
  path, _ = _write(case, tmp_path)
  apart = gguf_weights.GGUFSource(path)
  joined = _fused(path, tmp_path / 'fused.gguf')
  assert joined.config == apart.config
  weights.check_shapes(joined, joined.config)
  expected = _parameters(apart, apart.config)
  for name, array in _parameters(joined, joined.config).items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def _fused(path, fused):
  """A file as the converter's --fuse-gate-up-exps makes it."""
  reader = gguf.GGUFReader(path)
  arch = reader.get_field('general.architecture').contents()
  writer = gguf.GGUFWriter(fused, arch)
  for key, field in reader.fields.items():
    if key.startswith(arch):
      kind = field.types[0]
      inner = field.types[-1] if len(field.types) > 1 else None
      writer.add_key_value(key, field.contents(), kind, sub_type=inner)
  arrays = {tensor.name: tensor.data for tensor in reader.tensors}
  for name, array in arrays.items():
    if '.ffn_gate_exps.' in name:
      up = arrays[name.replace('_gate_', '_up_')]
      name = name.replace('_gate_', '_gate_up_')
      array = np.concatenate([array, up], axis=1)
    elif '.ffn_up_exps.' in name:
      continue
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return gguf_weights.GGUFSource(fused)


# llama.cpp runs the others with other numbers: Gemma 2 and 3 get their query
# scale from the number of layers, Phi-3 its factors from the length of the
# context. DeepSeek-V2's queries have no latent in models of 26 layers and more.
# Gemma 3n's deviation of activations is divided by n - 1, which shows where an
# MLP is narrow.
_IN_LLAMA_CPP = [
  name
  for name, (architecture, *_) in CASES.items()
  if architecture not in ('gemma2', 'gemma3', 'phi3', 'gemma3n')
  and name != 'deepseek_v2'
]


@pytest.mark.parametrize(
  'case',
  _marked(_IN_LLAMA_CPP, {*_IN_LLAMA_CPP} - {'granite'}),
)
def test_logits_equal_those_of_llama_cpp(case, tmp_path):
  """So the file says what llama.cpp understands by it."""
  path, reference = _write(case, tmp_path)
  ids = np.random.default_rng(0).integers(256, size=LENGTH)
  with torch.no_grad():
    logits = reference(torch.from_numpy(ids[None])).logits[0, -2:]
  expected = torch.log_softmax(logits, dim=-1).numpy()
  tokenizer = types.SimpleNamespace(eos_token_id=258)
  with llama_consumer.serve(path, 256, 'exact') as address:
    consumer = llama_consumer.LlamaConsumer(address, tokenizer, None)
    found = consumer.log_probabilities(ids.tolist(), 2, 320)
  bound = 2e-4
  if case.startswith((*_GELU, 'falcon')) and case != 'falcon_h1':
    # llama.cpp takes it from a table in float16; see `llama_gate`.
    bound = 2**-10 * float(logits.abs().max())
    if case == 'gemma4_e':
      bound *= 2  # Two in each layer.
  np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
  ('case', 'key', 'value', 'expected'),
  [
    (
      'exaone4',
      'attention.sliding_window',
      20,
      'none: llama.cpp has windows in models of 64 layers alone',
    ),
    ('granite', 'rope.scaling.finetuned', False, 'true: llama.cpp rotates'),
    ('cohere2', 'rope.freq_base_swa', 5e3, '10000.0'),
    ('ministral3', 'attention.temperature_length', 64, '32'),
    ('ministral3', 'rope.scaling.type', 'linear', "'yarn' beside attention"),
    ('olmo', 'attention.layer_norm_epsilon', 0.25, '1e-05'),
    ('apertus', 'block_count', 1, None),
    ('falcon', 'attention.key_length', 16, '8, of all values'),
    ('qwen3_5', 'ssm.inner_size', 50, 'a multiple of 4 heads'),
    ('deepseek_v2', 'expert_group_count', 3, '1: llama.cpp chooses groups'),
    ('deepseek_v2', 'expert_gating_func', 3, '1 or 2'),
    ('deepseek_v2', 'expert_weights_norm', True, 'false: weights of experts'),
    ('glm4_moe', 'expert_gating_func', 1, '2'),
    ('mistral4', 'expert_gating_func', 2, '1'),
    ('mistral4', 'attention.temperature_length', 64, '32'),
    ('nemotron_h', 'feed_forward_length', [0, 48, 48, 48], 'one width'),
    ('gemma4_e', 'attention.shared_kv_layers', 1, 'a layer with a window'),
    ('gemma4_e', 'feed_forward_length', [48, 48, 96, 96, 96], 'one width'),
    ('gemma3n', 'attention.shared_kv_layers', 3, '2, as llama.cpp has'),
    ('gemma3n', 'altup.num_inputs', 3, '4, as llama.cpp has'),
    ('gemma3n', 'activation_sparsity_scale', 1.5, '1.6448536 for 10'),
    ('gemma3n', 'final_logit_softcapping', 3.0, '30.0, as llama.cpp has'),
  ],
)
def test_what_llama_cpp_would_run_otherwise(
  case, key, value, expected, tmp_path
):
  architecture, model_type, changes, metadata, extra = CASES[case]
  reference = tiny_models.save(
    tmp_path / 'hf', model_type=model_type, **changes
  )
  path = tmp_path / 'model.gguf'
  metadata = {**metadata, key: value}
  gguf_models.write(path, architecture, reference, metadata, extra)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  if expected is not None:
    assert str(e.value).startswith(
      f'{path}: metadata {architecture}.{key} is {value!r}, expected {expected}'
    )
  else:
    assert f'{path}: metadata xielu.alpha_p is ' in str(e.value)
