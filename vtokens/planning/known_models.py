"""Architectures of bases, and of known models without their files."""

from typing import Any

import huggingface_hub
from etils import epath

from vtokens.host import errors, paths
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.files import gguf_weights, hf_directory

_LLAMA2 = {
  'model_type': 'llama',
  'vocab_size': 32000,
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 32,
  'hidden_act': 'silu',
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
  'pretraining_tp': 1,
  'rope_scaling': None,
  'tie_word_embeddings': False,
}
_LLAMA2_70B = {
  **_LLAMA2,
  'hidden_size': 8192,
  'intermediate_size': 28672,
  'num_hidden_layers': 80,
  'num_attention_heads': 64,
  'num_key_value_heads': 8,
}
_LLAMA2_13B = {
  **_LLAMA2,
  'hidden_size': 5120,
  'intermediate_size': 13824,
  'num_hidden_layers': 40,
  'num_attention_heads': 40,
  'num_key_value_heads': 40,
}
_MISTRAL = {
  'model_type': 'mistral',
  'vocab_size': 32000,
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'hidden_act': 'silu',
  'max_position_embeddings': 32768,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
}

_LLAMA3_1_8B = {
  **_LLAMA2,
  'vocab_size': 128256,
  'intermediate_size': 14336,
  'num_key_value_heads': 8,
  'max_position_embeddings': 131072,
  'rope_theta': 500000.0,
  'rope_scaling': {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'attention_bias': False,
  'mlp_bias': False,
}
_LLAMA3_8B = {
  **_LLAMA3_1_8B,
  'max_position_embeddings': 8192,
  'rope_scaling': None,
}
_LLAMA3_70B = {
  **_LLAMA3_8B,
  'hidden_size': 8192,
  'intermediate_size': 28672,
  'num_hidden_layers': 80,
  'num_attention_heads': 64,
}
_MISTRAL_V3 = {
  **_MISTRAL,
  'vocab_size': 32768,
  'rope_theta': 1000000.0,
  'sliding_window': None,
}

_QWEN3_8B = {
  'model_type': 'qwen3',
  'attention_bias': False,
  'vocab_size': 151936,
  'head_dim': 128,
  'hidden_size': 4096,
  'intermediate_size': 12288,
  'num_hidden_layers': 36,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'hidden_act': 'silu',
  'max_position_embeddings': 40960,
  'max_window_layers': 36,
  'rms_norm_eps': 1e-6,
  'rope_theta': 1000000,
  'rope_scaling': None,
  'sliding_window': None,
  'use_sliding_window': False,
  'tie_word_embeddings': False,
}
_DEEPSEEK_V2_LITE: dict[str, Any] = {
  'model_type': 'deepseek_v2',
  'vocab_size': 102400,
  'hidden_size': 2048,
  'intermediate_size': 10944,
  'num_hidden_layers': 27,
  'num_attention_heads': 16,
  'num_key_value_heads': 16,
  'hidden_act': 'silu',
  'attention_bias': False,
  'kv_lora_rank': 512,
  'q_lora_rank': None,
  'qk_nope_head_dim': 128,
  'qk_rope_head_dim': 64,
  'v_head_dim': 128,
  'n_routed_experts': 64,
  'num_experts_per_tok': 6,
  'moe_intermediate_size': 1408,
  'n_shared_experts': 2,
  'n_group': 1,
  'topk_group': 1,
  'topk_method': 'greedy',
  'scoring_func': 'softmax',
  'norm_topk_prob': False,
  'routed_scaling_factor': 1.0,
  'first_k_dense_replace': 1,
  'moe_layer_freq': 1,
  'max_position_embeddings': 163840,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10000,
  'rope_scaling': {
    'beta_fast': 32,
    'beta_slow': 1,
    'factor': 40,
    'mscale': 0.707,
    'mscale_all_dim': 0.707,
    'original_max_position_embeddings': 4096,
    'type': 'yarn',
  },
  'tie_word_embeddings': False,
}

_GEMMA4 = {
  'model_type': 'gemma4_text',
  'vocab_size': 262144,
  'head_dim': 256,
  'global_head_dim': 512,
  'attention_k_eq_v': True,
  'attention_bias': False,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size_per_layer_input': 0,
  'vocab_size_per_layer_input': 262144,
  'final_logit_softcapping': 30.0,
  'max_position_embeddings': 262144,
  'rms_norm_eps': 1e-6,
  'sliding_window': 1024,
  'tie_word_embeddings': True,
  'use_bidirectional_attention': 'vision',
  'pad_token_id': 0,
}


def _windows(layers: int, period: int) -> list[str]:
  """`layer_types` in which every `period`-th layer has no window."""
  return [
    'sliding_attention' if (i + 1) % period else 'full_attention'
    for i in range(layers)
  ]


# Hub id -> fields of config.json that decide the architecture, and the hub's
# number of parameters; for a multimodal model that of the text part.
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
  'EleutherAI/pythia-6.9b': (
    {
      'model_type': 'gpt_neox',
      'vocab_size': 50432,
      'hidden_size': 4096,
      'intermediate_size': 16384,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'hidden_act': 'gelu',
      'layer_norm_eps': 1e-5,
      'max_position_embeddings': 2048,
      'rotary_emb_base': 10000,
      'rotary_pct': 0.25,
      'tie_word_embeddings': False,
      'use_parallel_residual': True,
    },
    6_857_302_016,
  ),
  'tiiuae/falcon-7b': (
    {
      'model_type': 'falcon',
      'vocab_size': 65024,
      'hidden_size': 4544,
      'num_hidden_layers': 32,
      'num_attention_heads': 71,
      'alibi': False,
      'bias': False,
      'multi_query': True,
      'new_decoder_architecture': False,
      'parallel_attn': True,
    },
    6_921_720_704,
  ),
  'allenai/OLMo-7B-hf': (
    {
      'model_type': 'olmo',
      'vocab_size': 50304,
      'hidden_size': 4096,
      'intermediate_size': 11008,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 32,
      'hidden_act': 'silu',
      'max_position_embeddings': 2048,
      'clip_qkv': None,
      'tie_word_embeddings': False,
    },
    6_888_095_744,
  ),
  'swiss-ai/Apertus-8B-2509': (
    {
      'model_type': 'apertus',
      'vocab_size': 131072,
      'hidden_size': 4096,
      'intermediate_size': 21504,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'hidden_act': 'xielu',
      'max_position_embeddings': 65536,
      'rms_norm_eps': 1e-5,
      'rope_theta': 12000000.0,
      'rope_scaling': {
        'factor': 8.0,
        'high_freq_factor': 4.0,
        'low_freq_factor': 1.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
      'tie_word_embeddings': False,
    },
    8_053_338_176,
  ),
  'LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct': (
    {
      'model_type': 'exaone',
      'vocab_size': 102400,
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'num_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'head_dim': 128,
      'activation_function': 'silu',
      'layer_norm_epsilon': 1e-5,
      'max_position_embeddings': 32768,
      'rope_theta': 1000000.0,
      'rope_scaling': {
        'factor': 8.0,
        'high_freq_factor': 4.0,
        'low_freq_factor': 1.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
      'tie_word_embeddings': False,
    },
    7_818_448_896,
  ),
  'karpathy/nanochat-d32': (
    {
      'model_type': 'nanochat',
      'vocab_size': 65536,
      'hidden_size': 2048,
      'intermediate_size': 8192,
      'num_hidden_layers': 32,
      'num_attention_heads': 16,
      'num_key_value_heads': 16,
      'hidden_act': 'relu2',
      'max_position_embeddings': 2048,
      'rms_norm_eps': 1e-6,
      'tie_word_embeddings': False,
    },
    1_879_048_192,
  ),
  'mistralai/Mistral-7B-v0.1': (_MISTRAL, 7_241_732_096),
  'mistralai/Mistral-7B-Instruct-v0.1': (_MISTRAL, 7_241_732_096),
  'mistralai/Mistral-7B-Instruct-v0.3': (_MISTRAL_V3, 7_248_023_552),
  'meta-llama/Llama-2-7b-hf': (_LLAMA2, 6_738_415_616),
  'meta-llama/Llama-2-7b-chat-hf': (_LLAMA2, 6_738_415_616),
  'meta-llama/Llama-2-13b-hf': (_LLAMA2_13B, 13_015_864_320),
  'meta-llama/Llama-2-13b-chat-hf': (_LLAMA2_13B, 13_015_864_320),
  'meta-llama/Llama-2-70b-hf': (_LLAMA2_70B, 68_976_648_192),
  'meta-llama/Llama-2-70b-chat-hf': (_LLAMA2_70B, 68_976_648_192),
  'meta-llama/Meta-Llama-3-8B-Instruct': (_LLAMA3_8B, 8_030_261_248),
  'meta-llama/Meta-Llama-3-70B-Instruct': (_LLAMA3_70B, 70_553_706_496),
  'meta-llama/Llama-3.1-8B-Instruct': (_LLAMA3_1_8B, 8_030_261_248),
  'Qwen/Qwen2.5-7B-Instruct': (
    {
      'model_type': 'qwen2',
      'vocab_size': 152064,
      'hidden_size': 3584,
      'intermediate_size': 18944,
      'num_hidden_layers': 28,
      'num_attention_heads': 28,
      'num_key_value_heads': 4,
      'hidden_act': 'silu',
      'max_position_embeddings': 32768,
      'max_window_layers': 28,
      'rms_norm_eps': 1e-6,
      'rope_theta': 1000000.0,
      'sliding_window': 131072,
      'use_sliding_window': False,
      'tie_word_embeddings': False,
    },
    7_615_616_512,
  ),
  'Qwen/Qwen3-8B': (_QWEN3_8B, 8_190_735_360),
  'microsoft/Phi-3-mini-4k-instruct': (
    {
      'model_type': 'phi3',
      'vocab_size': 32064,
      'hidden_size': 3072,
      'intermediate_size': 8192,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 32,
      'hidden_act': 'silu',
      'attention_bias': False,
      'max_position_embeddings': 4096,
      'original_max_position_embeddings': 4096,
      'rms_norm_eps': 1e-5,
      'rope_theta': 10000.0,
      'rope_scaling': None,
      'sliding_window': 2047,
      'tie_word_embeddings': False,
    },
    3_821_079_552,
  ),
  'google/gemma-2-9b-it': (
    {
      'model_type': 'gemma2',
      'vocab_size': 256000,
      'hidden_size': 3584,
      'intermediate_size': 14336,
      'num_hidden_layers': 42,
      'num_attention_heads': 16,
      'num_key_value_heads': 8,
      'head_dim': 256,
      'hidden_act': 'gelu_pytorch_tanh',
      'hidden_activation': 'gelu_pytorch_tanh',
      'attention_bias': False,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
      'query_pre_attn_scalar': 256,
      'max_position_embeddings': 8192,
      'rms_norm_eps': 1e-6,
      'rope_theta': 10000.0,
      'sliding_window': 4096,
    },
    9_241_705_984,
  ),
  # With the vision part 12,187,325,040.
  'google/gemma-3-12b-it': (
    {
      'model_type': 'gemma3',
      'text_config': {
        'model_type': 'gemma3_text',
        'vocab_size': 262208,
        'hidden_size': 3840,
        'intermediate_size': 15360,
        'num_hidden_layers': 48,
        'num_attention_heads': 16,
        'num_key_value_heads': 8,
        'head_dim': 256,
        'hidden_activation': 'gelu_pytorch_tanh',
        'attention_bias': False,
        'attn_logit_softcapping': None,
        'final_logit_softcapping': None,
        'query_pre_attn_scalar': 256,
        'max_position_embeddings': 131072,
        'rms_norm_eps': 1e-6,
        'rope_theta': 1000000.0,
        'rope_local_base_freq': 10000.0,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
        'sliding_window': 1024,
        'layer_types': _windows(48, 6),
      },
    },
    11_766_034_176,
  ),
  # Text parts of Gemma 4: published as 30.7, 25.2 (3.8 for each token), 2.3 and
  # 4.5 billion, of the last two without the embeddings of each layer.
  'google/gemma-4-31B-it': (
    {
      'model_type': 'gemma4',
      'text_config': {
        **_GEMMA4,
        'hidden_size': 5376,
        'intermediate_size': 21504,
        'num_hidden_layers': 60,
        'num_attention_heads': 32,
        'num_key_value_heads': 16,
        'num_global_key_value_heads': 4,
        'layer_types': _windows(60, 6),
      },
    },
    30_697_345_280,
  ),
  # 3,822,530,560 for each token.
  'google/gemma-4-26B-A4B-it': (
    {
      'model_type': 'gemma4',
      'text_config': {
        **_GEMMA4,
        'hidden_size': 2816,
        'intermediate_size': 2112,
        'num_hidden_layers': 30,
        'num_attention_heads': 16,
        'num_key_value_heads': 8,
        'num_global_key_value_heads': 2,
        'enable_moe_block': True,
        'num_experts': 128,
        'top_k_experts': 8,
        'moe_intermediate_size': 704,
        'layer_types': _windows(30, 6),
      },
    },
    25_233_141_760,
  ),
  'google/gemma-4-E2B-it': (
    {
      'model_type': 'gemma4',
      'text_config': {
        **_GEMMA4,
        'max_position_embeddings': 131072,
        'hidden_size': 1536,
        'hidden_size_per_layer_input': 256,
        'intermediate_size': 6144,
        'num_hidden_layers': 35,
        'num_attention_heads': 8,
        'num_key_value_heads': 1,
        'attention_k_eq_v': False,
        'num_kv_shared_layers': 20,
        'use_double_wide_mlp': True,
        'sliding_window': 512,
        'layer_types': _windows(35, 5),
      },
    },
    4_628_569_344,
  ),
  'google/gemma-4-E4B-it': (
    {
      'model_type': 'gemma4',
      'text_config': {
        **_GEMMA4,
        'max_position_embeddings': 131072,
        'hidden_size': 2560,
        'hidden_size_per_layer_input': 256,
        'intermediate_size': 10240,
        'num_hidden_layers': 42,
        'num_attention_heads': 8,
        'num_key_value_heads': 2,
        'attention_k_eq_v': False,
        'num_kv_shared_layers': 18,
        'sliding_window': 512,
        'layer_types': _windows(42, 6),
      },
    },
    7_463_013_376,
  ),
  # With the vision part 24,011,361,280.
  'mistralai/Mistral-Small-3.2-24B-Instruct-2506': (
    {
      'model_type': 'mistral3',
      'text_config': {
        'model_type': 'mistral',
        'vocab_size': 131072,
        'hidden_size': 5120,
        'intermediate_size': 32768,
        'num_hidden_layers': 40,
        'num_attention_heads': 32,
        'num_key_value_heads': 8,
        'head_dim': 128,
        'hidden_act': 'silu',
        'max_position_embeddings': 131072,
        'rms_norm_eps': 1e-5,
        'rope_theta': 1000000000.0,
        'sliding_window': None,
        'tie_word_embeddings': False,
      },
    },
    23_572_403_200,
  ),
  # With the vision part 8,767,123,696.
  'Qwen/Qwen3-VL-8B-Instruct': (
    {
      'model_type': 'qwen3_vl',
      'text_config': {
        **_QWEN3_8B,
        'model_type': 'qwen3_vl_text',
        'max_position_embeddings': 262144,
        'rope_theta': 5000000,
        'rope_scaling': {
          'mrope_interleaved': True,
          'mrope_section': [24, 20, 20],
          'rope_type': 'default',
        },
      },
      'tie_word_embeddings': False,
    },
    8_190_735_360,
  ),
  'Qwen/Qwen3-30B-A3B-Instruct-2507': (
    {
      **_QWEN3_8B,
      'model_type': 'qwen3_moe',
      'hidden_size': 2048,
      'intermediate_size': 6144,
      'num_hidden_layers': 48,
      'num_key_value_heads': 4,
      'max_position_embeddings': 262144,
      'max_window_layers': 48,
      'rope_theta': 10000000,
      'decoder_sparse_step': 1,
      'mlp_only_layers': [],
      'moe_intermediate_size': 768,
      'norm_topk_prob': True,
      'num_experts': 128,
      'num_experts_per_tok': 8,
    },
    30_532_122_624,
  ),
  # The count follows from the sizes; the published one has the vision part.
  'Qwen/Qwen3.5-27B': (
    {
      'model_type': 'qwen3_5',
      'text_config': {
        'model_type': 'qwen3_5_text',
        'vocab_size': 248320,
        'hidden_size': 5120,
        'intermediate_size': 17408,
        'num_hidden_layers': 64,
        'num_attention_heads': 24,
        'num_key_value_heads': 4,
        'head_dim': 256,
        'hidden_act': 'silu',
        'attention_bias': False,
        'full_attention_interval': 4,
        'linear_conv_kernel_dim': 4,
        'linear_key_head_dim': 128,
        'linear_num_key_heads': 16,
        'linear_num_value_heads': 48,
        'linear_value_head_dim': 128,
        'max_position_embeddings': 262144,
        'rms_norm_eps': 1e-6,
        'rope_parameters': {
          'mrope_interleaved': True,
          'mrope_section': [11, 11, 10],
          'partial_rotary_factor': 0.25,
          'rope_theta': 10000000,
          'rope_type': 'default',
        },
      },
      'tie_word_embeddings': False,
    },
    26_895_998_464,
  ),
  'mistralai/Mixtral-8x7B-Instruct-v0.1': (
    {
      **_MISTRAL,
      'model_type': 'mixtral',
      'rope_theta': 1000000.0,
      'sliding_window': None,
      'num_experts_per_tok': 2,
      'num_local_experts': 8,
    },
    46_702_792_704,
  ),
  # Its files have experts in MXFP4; this is the number of their weights.
  'openai/gpt-oss-20b': (
    {
      'model_type': 'gpt_oss',
      'vocab_size': 201088,
      'hidden_size': 2880,
      'intermediate_size': 2880,
      'num_hidden_layers': 24,
      'num_attention_heads': 64,
      'num_key_value_heads': 8,
      'head_dim': 64,
      'hidden_act': 'silu',
      'attention_bias': True,
      'max_position_embeddings': 131072,
      'num_experts_per_tok': 4,
      'num_local_experts': 32,
      'rms_norm_eps': 1e-5,
      'rope_theta': 150000,
      'rope_scaling': {
        'beta_fast': 32.0,
        'beta_slow': 1.0,
        'factor': 32.0,
        'original_max_position_embeddings': 4096,
        'rope_type': 'yarn',
        'truncate': False,
      },
      'sliding_window': 128,
      'swiglu_limit': 7.0,
      'tie_word_embeddings': False,
    },
    20_914_757_184,
  ),
  'deepseek-ai/DeepSeek-V2-Lite-Chat': (_DEEPSEEK_V2_LITE, 15_706_484_224),
  # Its files also have a layer that predicts further tokens, and FP8 weights.
  'deepseek-ai/DeepSeek-V3': (
    {
      **_DEEPSEEK_V2_LITE,
      'model_type': 'deepseek_v3',
      'vocab_size': 129280,
      'hidden_size': 7168,
      'intermediate_size': 18432,
      'num_hidden_layers': 61,
      'num_attention_heads': 128,
      'num_key_value_heads': 128,
      'q_lora_rank': 1536,
      'n_routed_experts': 256,
      'num_experts_per_tok': 8,
      'moe_intermediate_size': 2048,
      'n_shared_experts': 1,
      'n_group': 8,
      'topk_group': 4,
      'topk_method': 'noaux_tc',
      'scoring_func': 'sigmoid',
      'norm_topk_prob': True,
      'routed_scaling_factor': 2.5,
      'first_k_dense_replace': 3,
      'num_nextn_predict_layers': 1,
      'rope_scaling': {
        **_DEEPSEEK_V2_LITE['rope_scaling'],
        'mscale': 1.0,
        'mscale_all_dim': 1.0,
      },
    },
    671_026_404_352,
  ),
  'ibm-granite/granite-3.3-8b-instruct': (
    {
      'model_type': 'granite',
      'vocab_size': 49159,
      'hidden_size': 4096,
      'intermediate_size': 12800,
      'num_hidden_layers': 40,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'hidden_act': 'silu',
      'attention_bias': False,
      'mlp_bias': False,
      'attention_multiplier': 0.0078125,
      'embedding_multiplier': 12.0,
      'logits_scaling': 16.0,
      'residual_multiplier': 0.22,
      'max_position_embeddings': 131072,
      'rms_norm_eps': 1e-5,
      'rope_theta': 10000000.0,
      'rope_scaling': None,
      'tie_word_embeddings': True,
    },
    8_170_864_640,
  ),
  'CohereLabs/c4ai-command-r7b-12-2024': (
    {
      'model_type': 'cohere2',
      'vocab_size': 256000,
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'head_dim': 128,
      'hidden_act': 'silu',
      'attention_bias': False,
      'layer_norm_eps': 1e-5,
      'logit_scale': 0.25,
      'max_position_embeddings': 132096,
      'rope_theta': 50000,
      'sliding_window': 4096,
      'layer_types': _windows(32, 4),
      'tie_word_embeddings': True,
    },
    8_028_033_024,
  ),
}


def read_architecture(path: str) -> DecoderConfig:
  """Reads the architecture of a base without its weights.

  Args:
    path: path as in `config.base.path`.

  Raises:
    errors.UserError: the base is not found or not supported.
  """
  path = paths.resolve(path)
  paths.check_on_disk(path)
  if path.endswith('.gguf'):
    return gguf_weights.GGUFSource(path).config
  if epath.Path(path).exists():
    return hf_directory.read_config(path)
  if path in CONFIGS:
    return registry.from_hf(CONFIGS[path][0], path)
  try:
    file = huggingface_hub.hf_hub_download(path, 'config.json')
  # Errors of the hub and of its HTTP client.
  except Exception as e:
    raise errors.UserError(
      f'config.base.path: {path} is no local path, its config.json cannot be '
      f'had from the hub ({str(e).splitlines()[0]}), and it is not among the '
      f'models known here: {", ".join(CONFIGS)}'
    ) from e
  return hf_directory.read_config(epath.Path(file).parent)
