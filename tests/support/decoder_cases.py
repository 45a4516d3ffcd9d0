"""Tiny models of every family, and runs of them by torch and by us."""

import dataclasses

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import tiny_models
import torch
from tiny_models import FULL, GEMMA, SLIDING

from vtokens.devices import partitioning
from vtokens.models.files import hf_directory, weights

LENGTH = 90  # Of the longest row; windows below are shorter.

_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
  'rope_theta': 500.0,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 10_000.0,
}


def _longrope(pairs, **changes):
  return {
    'rope_type': 'longrope',
    'rope_theta': 10_000.0,
    'short_factor': [1.0 + 0.1 * i for i in range(pairs)],
    'long_factor': [2.0 + 0.5 * i for i in range(pairs)],
    **changes,
  }


# The least that shows a feature.
SMALL = {'num_hidden_layers': 2, 'hidden_size': 32, 'intermediate_size': 48}
# All heads have keys of their own.
_MHA = {'num_key_value_heads': 4}
_FALCON = {
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'ffn_hidden_size': 48,
  # Of other families.
  'intermediate_size': None,
  'num_key_value_heads': None,
  'rope_parameters': {'rope_theta': 1e3},
}

_GRANITE = {
  'embedding_multiplier': 3.0,
  'attention_multiplier': 0.4,
  'residual_multiplier': 0.7,
  'logits_scaling': 1.3,
  'attention_bias': True,
}
_RECURRENT = 'linear_attention'
_MAMBA = {
  'mamba_n_heads': 4,
  'mamba_d_head': 16,
  'mamba_n_groups': 2,
  'mamba_d_state': 6,
  'mamba_d_conv': 3,
}

EXPERTS = {
  'num_experts': 6,
  'num_experts_per_tok': 3,
  'moe_intermediate_size': 24,
}

LINEAR = 'linear_attention'
# Two heads of values to a head of keys, of other widths. With less `eps`, norms
# of small outputs enlarge rounding: by 1e-4 between two forms of torch's.
DELTA = {
  'rms_norm_eps': 1e-2,
  'num_hidden_layers': 4,
  'hidden_size': 32,
  'intermediate_size': 48,
  'head_dim': 16,
  'linear_num_key_heads': 2,
  'linear_num_value_heads': 4,
  'linear_key_head_dim': 8,
  'linear_value_head_dim': 12,
  'linear_conv_kernel_dim': 4,
  'layer_types': [LINEAR, FULL, LINEAR, FULL],
  'attention_bias': True,
  'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.5},
}
# Sizes of latent attention, all different. Queries and keys are 12 wide.
_LATENT = {
  **SMALL,
  **_MHA,
  'kv_lora_rank': 16,
  'q_lora_rank': 10,
  'qk_nope_head_dim': 4,
  'qk_rope_head_dim': 8,
  'v_head_dim': 6,
}
_LATENT_YARN = {
  **_YARN,
  'beta_fast': 8.0,
  'mscale': 0.7,
  'mscale_all_dim': 0.5,
}
_GROUPED = {
  'n_routed_experts': 6,
  'num_experts_per_tok': 3,
  'moe_intermediate_size': 24,
  'n_group': 3,
  'topk_group': 2,
  'n_shared_experts': 2,
  'routed_scaling_factor': 1.7,
}
_GEMMA4 = {
  'head_dim': 12,
  'global_head_dim': 20,
  'sliding_window': 20,
  'tie_word_embeddings': True,
}

# name -> model_type and what differs from a tiny Llama, every feature on.
CASES = {
  'llama_biased': ('llama', {'attention_bias': True}),
  'llama3': ('llama', {'rope_parameters': _LLAMA3}),
  'llama_linear': (
    'llama',
    {'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}},
  ),
  # Beyond what it was trained for: 90 tokens of 64.
  'llama_dynamic': (
    'llama',
    {
      'max_position_embeddings': 64,
      'rope_parameters': {'rope_type': 'dynamic', 'factor': 2.0},
    },
  ),
  'mistral': ('mistral', {'sliding_window': 20, 'head_dim': 24}),
  'mistral_without_window': ('mistral', {'sliding_window': None}),
  'ministral': (
    'ministral',
    {
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL, SLIDING],
      'head_dim': 24,
    },
  ),
  'qwen2': (
    'qwen2',
    {
      'use_sliding_window': True,
      'sliding_window': 20,
      'max_window_layers': 2,
      'tie_word_embeddings': True,
    },
  ),
  'qwen2_yarn': (
    'qwen2',
    {'rope_parameters': _YARN, 'num_attention_heads': 8},
  ),
  'qwen2_yarn_options': (
    'qwen2',
    {
      'rope_parameters': {
        **_YARN,
        'beta_fast': 8.0,
        'beta_slow': 0.5,
        'mscale': 0.7,
        'mscale_all_dim': 0.5,
        'truncate': False,
      }
    },
  ),
  'qwen3': (
    'qwen3',
    {
      'head_dim': 24,
      'num_attention_heads': 6,
      'num_key_value_heads': 2,
      'hidden_size': 60,
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 20,
      'max_window_layers': 1,
    },
  ),
  'phi3': ('phi3', {'sliding_window': 20}),
  # Longrope's two regimes, and rotation of a part of each head.
  'phi3_short': (
    'phi3',
    {
      'original_max_position_embeddings': 128,
      'rope_parameters': _longrope(8),
    },
  ),
  'phi3_long': (
    'phi3',
    {
      'original_max_position_embeddings': 64,
      'rope_parameters': _longrope(6, partial_rotary_factor=0.75),
      'num_key_value_heads': 1,
    },
  ),
  'gemma': ('gemma', GEMMA),
  'gemma2': (
    'gemma2',
    {
      **GEMMA,
      'sliding_window': 20,
      'query_pre_attn_scalar': 30,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
  ),
  'gemma3': (
    'gemma3_text',
    {
      **GEMMA,
      'num_hidden_layers': 4,
      'sliding_window': 20,
      'layer_types': [SLIDING, SLIDING, FULL, SLIDING],
      'query_pre_attn_scalar': 30,
      'final_logit_softcapping': 3.0,
      'rope_parameters': {
        FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        SLIDING: {'rope_type': 'default', 'rope_theta': 1e4},
      },
    },
  ),
  'smollm3': (
    'smollm3',
    {
      'num_hidden_layers': 4,
      'no_rope_layers': [1, 0, 1, 0],
      'use_sliding_window': True,
      'sliding_window': 20,
      'tie_word_embeddings': True,
    },
  ),
  'olmo2': ('olmo2', {'num_key_value_heads': 1, 'attention_bias': True}),
  'olmo3': (
    'olmo3',
    {
      'num_hidden_layers': 4,
      'sliding_window': 20,
      'rope_parameters': {
        FULL: _YARN,
        SLIDING: {'rope_type': 'default', 'rope_theta': 10_000.0},
      },
    },
  ),
  'internlm3': ('internlm3', {**SMALL, 'head_dim': 12}),
  'iquestcoder': ('iquestcoder', {**SMALL, 'attention_bias': True}),
  'seed_oss': (
    'seed_oss',
    {
      **SMALL,
      'head_dim': 12,
      'attention_bias': False,
      'attention_out_bias': True,
    },
  ),
  'cwm': (
    'cwm',
    {
      **SMALL,
      'rope_parameters': _LLAMA3,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'bos_token_id': 1,
    },
  ),
  # Queries grow from the 33rd token on.
  'ministral3': (
    'ministral3',
    {
      **SMALL,
      'sliding_window': 40,
      'rope_parameters': {
        **_YARN,
        'mscale': 1.0,
        'mscale_all_dim': 1.0,
        'max_position_embeddings': 512,
        'llama_4_scaling_beta': 0.7,
      },
    },
  ),
  'arcee': ('arcee', {**SMALL, 'attention_bias': True}),
  'granite': ('granite', {**SMALL, **_GRANITE}),
  'cohere': (
    'cohere',
    {
      **SMALL,
      'logit_scale': 0.7,
      'use_qk_norm': True,
      'layer_norm_eps': 1e-3,
      'attention_bias': True,
    },
  ),
  'cohere2': (
    'cohere2',
    {
      **SMALL,
      'logit_scale': 0.7,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'tie_word_embeddings': True,
    },
  ),
  'glm': (
    'glm',
    {**SMALL, 'head_dim': 16, 'partial_rotary_factor': 0.25},
  ),
  'glm4': (
    'glm4',
    {**SMALL, 'head_dim': 8, 'attention_bias': False},
  ),
  'exaone4': (
    'exaone4',
    {**SMALL, 'sliding_window': 20, 'layer_types': [SLIDING, FULL]},
  ),
  'exaone4_without_window': (
    'exaone4',
    {**SMALL, 'sliding_window': None, 'layer_types': [FULL, FULL]},
  ),
  'ernie4_5': ('ernie4_5', {**SMALL, 'head_dim': 12}),
  'starcoder2': (
    'starcoder2',
    {**SMALL, 'norm_epsilon': 1e-3, 'sliding_window': 20},
  ),
  'stablelm': (
    'stablelm',
    {
      **SMALL,
      'layer_norm_eps': 1e-3,
      'use_qkv_bias': True,
      'num_key_value_heads': 4,
    },
  ),
  'nemotron': (
    'nemotron',
    {
      **SMALL,
      'norm_eps': 1e-3,
      'head_dim': 12,
      'attention_bias': True,
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.5},
    },
  ),
  'helium': ('helium', {**SMALL, 'head_dim': 8, 'attention_bias': True}),
  'vaultgemma': (
    'vaultgemma',
    {
      **SMALL,
      'head_dim': 12,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'query_pre_attn_scalar': 30,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
      'tie_word_embeddings': True,
    },
  ),
  # Experts in every second layer.
  'qwen3_moe': (
    'qwen3_moe',
    {
      **SMALL,
      **EXPERTS,
      'num_hidden_layers': 4,
      'head_dim': 12,
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 20,
      'norm_topk_prob': True,
      'decoder_sparse_step': 2,
    },
  ),
  'qwen3_moe_dense_layers': (
    'qwen3_moe',
    {**SMALL, **EXPERTS, 'num_hidden_layers': 3, 'mlp_only_layers': [0]},
  ),
  'qwen2_moe': (
    'qwen2_moe',
    {
      **SMALL,
      **EXPERTS,
      'num_hidden_layers': 4,
      'shared_expert_intermediate_size': 20,
      'use_sliding_window': True,
      'sliding_window': 20,
      'max_window_layers': 3,
      'mlp_only_layers': [1],
    },
  ),
  'olmoe': (
    'olmoe',
    {**SMALL, **EXPERTS, 'attention_bias': True, 'norm_topk_prob': True},
  ),
  # Values reach both bounds of the experts' unit.
  'gpt_oss': (
    'gpt_oss',
    {
      **SMALL,
      'head_dim': 12,
      'sliding_window': 20,
      'num_local_experts': 6,
      'num_experts_per_tok': 3,
      'swiglu_limit': 0.7,
      'swiglu_alpha': 1.3,
      'rope_parameters': {**_YARN, 'truncate': False},
    },
  ),
  'glm4_moe': (
    'glm4_moe',
    {
      **SMALL,
      **{k: v for k, v in EXPERTS.items() if k != 'num_experts'},
      'num_hidden_layers': 3,
      'head_dim': 16,
      'n_routed_experts': 6,
      'n_group': 3,
      'topk_group': 2,
      'n_shared_experts': 2,
      'routed_scaling_factor': 1.7,
      'use_qk_norm': True,
      'attention_bias': True,
    },
  ),
  'minimax_m2': (
    'minimax_m2',
    {
      **SMALL,
      'head_dim': 16,
      'num_local_experts': 6,
      'num_experts_per_tok': 3,
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.5},
    },
  ),
  'mixtral': (
    'mixtral',
    {
      **SMALL,
      'head_dim': 12,
      'sliding_window': 20,
      'num_local_experts': 6,
      'num_experts_per_tok': 2,
    },
  ),
  'granitemoe': (
    'granitemoe',
    {
      **SMALL,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
      'attention_bias': True,
      'num_local_experts': 6,
      'num_experts_per_tok': 3,
      'tie_word_embeddings': True,
    },
  ),
  # Some experts are compared and some are not. Up to the original length:
  # beyond, transformers does not use the long factors.
  'phimoe': (
    'phimoe',
    {
      **SMALL,
      'sliding_window': 20,
      'attention_bias': True,
      'lm_head_bias': True,
      'num_local_experts': 6,
      'router_jitter_noise': 0.2,
      'rope_parameters': _longrope(
        4,
        original_max_position_embeddings=128,
        short_mscale=1.2,
        long_mscale=1.2,
      ),
    },
  ),
  # Layers of two widths; the wide ones' values are their keys.
  'gemma4': (
    'gemma4_text',
    {
      **SMALL,
      **_GEMMA4,
      'hidden_size_per_layer_input': 0,
      'layer_types': [SLIDING, FULL],
      'attention_k_eq_v': True,
      'num_global_key_value_heads': 2,
      'num_key_value_heads': 4,
      'final_logit_softcapping': 3.0,
    },
  ),
  'gemma4_experts': (
    'gemma4_text',
    {
      **SMALL,
      **_GEMMA4,
      'hidden_size_per_layer_input': 0,
      'layer_types': [SLIDING, FULL],
      'attention_k_eq_v': True,
      'enable_moe_block': True,
      'num_experts': 6,
      'top_k_experts': 3,
      'moe_intermediate_size': 24,
    },
  ),
  # The last four layers read keys of the layers 2 and 3.
  'gemma4_shared': (
    'gemma4_text',
    {
      **SMALL,
      **_GEMMA4,
      'num_hidden_layers': 8,
      'hidden_size_per_layer_input': 12,
      'vocab_size_per_layer_input': tiny_models.VOCAB_SIZE,
      'layer_types': [SLIDING, FULL] * 4,
      'num_kv_shared_layers': 4,
      'use_double_wide_mlp': True,
      'pad_token_id': 0,
      'attention_bias': True,
    },
  ),
  # Only the first layer is sparse. The last two read keys of the layers 0, 1.
  'gemma3n': (
    'gemma3n_text',
    {
      **SMALL,
      'num_hidden_layers': 4,
      'intermediate_size': [48, 48, 40, 40],
      'head_dim': 12,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL, SLIDING, FULL],
      'num_kv_shared_layers': 2,
      'hidden_size_per_layer_input': 12,
      # Fewer than there are tokens.
      'vocab_size_per_layer_input': 200,
      'activation_sparsity_pattern': [0.7, 0.0, 0.0, 0.0],
      'altup_num_inputs': 3,
      'altup_active_idx': 1,
      'laurel_rank': 6,
      'final_logit_softcapping': 3.0,
      'tie_word_embeddings': True,
      'attention_bias': True,
      'pad_token_id': 0,
    },
  ),
  'phi': (
    'phi',
    {
      **SMALL,
      'layer_norm_eps': 1e-3,
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.75},
    },
  ),
  'gpt_neox': (
    'gpt_neox',
    {
      **SMALL,
      **_MHA,
      'layer_norm_eps': 1e-3,
      'hidden_act': 'gelu_fast',
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.5},
    },
  ),
  'gpt_neox_in_turn': (
    'gpt_neox',
    {
      **SMALL,
      **_MHA,
      'attention_bias': False,
      'use_parallel_residual': False,
      'tie_word_embeddings': True,
    },
  ),
  'falcon': (
    'falcon',
    {
      **_FALCON,
      'new_decoder_architecture': True,
      'num_kv_heads': 2,
      'layer_norm_epsilon': 1e-3,
      'bias': True,
    },
  ),
  'falcon_one_norm': (
    'falcon',
    {
      **_FALCON,
      'new_decoder_architecture': True,
      'num_kv_heads': 2,
      'num_ln_in_parallel_attn': 1,
      'activation': 'gelu_new',
      'tie_word_embeddings': True,
    },
  ),
  'falcon_multi_query': ('falcon', {**_FALCON, 'bias': True}),
  'falcon_in_turn': (
    'falcon',
    {**_FALCON, 'multi_query': False, 'parallel_attn': False, 'bias': True},
  ),
  'olmo': ('olmo', {**SMALL, 'clip_qkv': 0.5, 'attention_bias': True}),
  'apertus': (
    'apertus',
    {
      **SMALL,
      'head_dim': 12,
      'attention_bias': True,
      'rope_parameters': _LLAMA3,
    },
  ),
  'hunyuan': (
    'hunyuan_v1_dense',
    {
      **SMALL,
      'head_dim': 12,
      'attention_bias': True,
      'rope_parameters': {
        **{'rope_type': 'dynamic', 'rope_theta': 1e3, 'alpha': 50.0},
        **{'factor': 1.0, 'beta_fast': 32, 'beta_slow': 1},
        **{'mscale': 1.0, 'mscale_all_dim': 1.0},
      },
    },
  ),
  'exaone': (
    'exaone',
    {
      **SMALL,
      'head_dim': 12,
      'attention_bias': True,
      'rope_parameters': _LLAMA3,
    },
  ),
  'hyperclovax': (
    'hyperclovax',
    {
      **SMALL,
      'head_dim': 12,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 0.7,
      'attention_bias': True,
    },
  ),
  # A width of the MLP that transformers adjusts to 40.
  'lfm2': (
    'lfm2',
    {
      **SMALL,
      'num_hidden_layers': 3,
      'layer_types': ['conv', FULL, 'conv'],
      'norm_eps': 1e-3,
      'conv_L_cache': 4,
      'conv_bias': True,
      'intermediate_size': 52,
      'block_multiple_of': 8,
      'block_ffn_dim_multiplier': 1.1,
      'tie_word_embeddings': True,
      'head_dim': 12,
    },
  ),
  'granitemoehybrid': (
    'granitemoehybrid',
    {
      **SMALL,
      **_GRANITE,
      **_MAMBA,
      'num_hidden_layers': 5,
      'layer_types': [*[_RECURRENT, FULL] * 2, _RECURRENT],
      'position_embedding_type': 'rope',
      'num_local_experts': 6,
      'num_experts_per_tok': 3,
      'shared_intermediate_size': 40,
      'mamba_proj_bias': True,
    },
  ),
  # Without experts, positions, and biases.
  'granitemoehybrid_dense': (
    'granitemoehybrid',
    {
      **SMALL,
      **_MAMBA,
      'layer_types': [_RECURRENT, FULL],
      'num_local_experts': 0,
      'shared_intermediate_size': 40,
      'mamba_conv_bias': False,
    },
  ),
  # Attention in all layers, as Granite 4 micro.
  'granitemoehybrid_attention': (
    'granitemoehybrid',
    {
      **SMALL,
      **_GRANITE,
      'layer_types': [FULL, FULL],
      'mamba_n_heads': 4,
      'position_embedding_type': 'rope',
      'num_local_experts': 0,
      'shared_intermediate_size': 40,
    },
  ),
  # Two periods of every kind of layer, and one more layer.
  'nemotron_h': (
    'nemotron_h',
    {
      **SMALL,
      'layers_block_type': [*[_RECURRENT, 'moe', FULL] * 2, _RECURRENT],
      'head_dim': 12,
      'mamba_num_heads': 4,
      'mamba_head_dim': 10,
      'n_groups': 2,
      'ssm_state_size': 6,
      'conv_kernel': 3,
      'use_bias': True,
      'use_conv_bias': False,
      'layer_norm_epsilon': 1e-3,
      'n_routed_experts': 8,
      'num_experts_per_tok': 3,
      'moe_intermediate_size': 24,
      'moe_shared_expert_intermediate_size': 20,
      'n_group': 4,
      'topk_group': 2,
      'routed_scaling_factor': 1.5,
    },
  ),
  # As older files give it, with MLPs and their biases.
  'nemotron_h_dense': (
    'nemotron_h',
    {
      **SMALL,
      'layers_block_type': [_RECURRENT, 'mlp', FULL, 'mlp'],
      'head_dim': 12,
      'mamba_num_heads': 4,
      'mamba_head_dim': 8,
      'n_groups': 1,
      'ssm_state_size': 6,
      'mlp_bias': True,
    },
  ),
  'falcon_h1': (
    'falcon_h1',
    {
      **SMALL,
      **_MAMBA,
      'head_dim': 12,
      'mamba_d_ssm': 40,
      'mamba_d_head': 10,
      'mamba_proj_bias': True,
      'projectors_bias': True,
      'mamba_rms_norm': True,
      'attention_bias': True,
      'lm_head_multiplier': 0.7,
      'embedding_multiplier': 1.5,
      'mlp_multipliers': [0.8, 1.2],
      'key_multiplier': 0.6,
      'attention_in_multiplier': 1.3,
      'attention_out_multiplier': 0.9,
      'ssm_multipliers': [0.7, 1.1, 0.8, 1.2, 0.9],
      'ssm_in_multiplier': 1.4,
      'ssm_out_multiplier': 0.8,
    },
  ),
  'falcon_h1_without_norm': (
    'falcon_h1',
    {**SMALL, **_MAMBA, 'mamba_d_ssm': None, 'mamba_conv_bias': False},
  ),
  'bamba': (
    'bamba',
    {
      **SMALL,
      **_MAMBA,
      'num_hidden_layers': 3,
      'attn_layer_indices': [1],
      'mamba_proj_bias': True,
      'attention_bias': True,
    },
  ),
  'jais2': (
    'jais2',
    {**SMALL, 'head_dim': 12, 'layer_norm_eps': 1e-3},
  ),
  'nanochat': (
    'nanochat',
    {
      **SMALL,
      'head_dim': 12,
      'attention_bias': True,
      'final_logit_softcapping': 3.0,
    },
  ),
  'qwen3_5': ('qwen3_5_text', DELTA),
  'qwen3_5_moe': (
    'qwen3_5_moe_text',
    {
      **DELTA,
      **EXPERTS,
      'intermediate_size': None,
      'shared_expert_intermediate_size': 20,
    },
  ),
  'qwen3_next': (
    'qwen3_next',
    {
      **DELTA,
      **EXPERTS,
      'shared_expert_intermediate_size': 20,
      'mlp_only_layers': [1],
      'norm_topk_prob': False,
    },
  ),
  'deepseek_v2': (
    'deepseek_v2',
    {
      **_LATENT,
      **_GROUPED,
      'first_k_dense_replace': 1,
      'topk_method': 'group_limited_greedy',
      'attention_bias': True,
      'rope_parameters': _LATENT_YARN,
    },
  ),
  # Queries without a latent; experts in every layer.
  'deepseek_v2_lite': (
    'deepseek_v2',
    {**_LATENT, **_GROUPED, 'q_lora_rank': None},
  ),
  'deepseek_v3': (
    'deepseek_v3',
    {
      **_LATENT,
      **_GROUPED,
      'num_hidden_layers': 3,
      'first_k_dense_replace': 1,
      'attention_bias': True,
      'rope_parameters': _LATENT_YARN,
    },
  ),
  'deepseek_v3_halves': (
    'deepseek_v3',
    {
      **_LATENT,
      **_GROUPED,
      'first_k_dense_replace': 0,
      'q_lora_rank': None,
      'norm_topk_prob': False,
      'rope_interleave': False,
    },
  ),
  'glm4_moe_lite': (
    'glm4_moe_lite',
    {
      **_LATENT,
      **_GROUPED,
      'num_hidden_layers': 3,
      'mlp_layer_types': ['dense', 'sparse', 'dense'],
      'attention_bias': True,
    },
  ),
  # Queries grow from the 33rd token on.
  'mistral4': (
    'mistral4',
    {
      **_LATENT,
      **_GROUPED,
      'first_k_dense_replace': 1,
      'attention_bias': True,
      'rope_parameters': {
        **_LATENT_YARN,
        'max_position_embeddings': 512,
        'llama_4_scaling_beta': 0.7,
      },
    },
  ),
  'minicpm3': (
    'minicpm3',
    {
      **_LATENT,
      'attention_bias': True,
      'scale_emb': 3.0,
      'scale_depth': 1.1,
      'dim_model_base': 20,
      'tie_word_embeddings': True,
      'rope_parameters': _longrope(4, original_max_position_embeddings=64),
    },
  ),
  'youtu': (
    'youtu',
    {
      **_LATENT,
      'q_lora_rank': None,
      'attention_bias': True,
      'rope_interleave': False,
    },
  ),
  'sarvam_mla': (
    'sarvam_mla',
    {**_LATENT, **_GROUPED, 'first_k_dense_replace': 1, 'q_lora_rank': None},
  ),
}


def save(directory, name, **changes):
  """Saves a case with changes; returns transformers' model."""
  model_type, own = CASES[name]
  return tiny_models.save(
    directory, model_type=model_type, **{**own, **changes}
  )


def load(directory, method='none', dtype=jnp.float32):
  """Ours: graph and parameters."""
  config = hf_directory.read_config(directory)
  model = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    dataclasses.replace(config, context_length=LENGTH),
    dtype,
    partitioning.make_mesh((-1, 1, 1)),
    method,
  )
  return nnx.split(model)


def rows_of_ids():
  """Ragged rows of ids."""
  rng = np.random.default_rng(3)
  # The longest first: transformers' dynamic types look at the longest row.
  return [rng.integers(256, size=size) for size in (LENGTH, 61, 7, 33)]


def torch_logits(model, rows):
  """Of padded rows: the length of a batch may change rotary frequencies."""
  width = max(map(len, rows))
  ids = np.zeros((len(rows), width), np.int64)
  mask = np.zeros((len(rows), width), np.int64)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
    mask[i, : len(row)] = 1
  with torch.no_grad():
    logits = model(
      torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
    ).logits
  return [logits[i, : len(row)].float().numpy() for i, row in enumerate(rows)]


def positions_of(start, lengths, width):
  index = np.arange(width, dtype=np.int32)
  start, lengths = np.asarray(start), np.asarray(lengths)
  inside = index < lengths[:, None]
  return np.where(inside, start[:, None] + index, -1).astype(np.int32)


def padded(rows, width):
  out = np.full((len(rows), width), 5, np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out
