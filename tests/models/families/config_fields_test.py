"""Every field that transformers reads of a config: used, refused or without
effect.

A field that a new version of transformers adds fails these tests until someone
has decided what it means here.
"""

import copy
import dataclasses
import inspect
import re

import pytest
import small_config
import torch
import transformers

from vtokens.host import errors
from vtokens.models.families import registry

LENGTH = 24  # Of a text; windows are shorter.
_FULL, _SLIDING = 'full_attention', 'sliding_attention'
_LAYER_NORM = {'layer_norm_eps': 1e-5}
_PARTIAL = {'attention_bias': False, 'partial_rotary_factor': 0.25}
_EXPERTS = {'num_experts_per_tok': 2}
_DELTA = {
  'linear_num_key_heads': 2,
  'linear_num_value_heads': 4,
  'linear_key_head_dim': 8,
  'linear_value_head_dim': 8,
  'layer_types': ['linear_attention', _FULL] * 2,
}
_DELTA_EXPERTS = {
  **_DELTA,
  **_EXPERTS,
  'num_experts': 4,
  'moe_intermediate_size': 16,
  'shared_expert_intermediate_size': 16,
}
_LATENT = {
  'num_key_value_heads': 4,
  'kv_lora_rank': 12,
  'q_lora_rank': 8,
  'qk_nope_head_dim': 4,
  'qk_rope_head_dim': 8,
  'v_head_dim': 8,
}
_GROUPED = {
  **_EXPERTS,
  'n_routed_experts': 8,
  'n_group': 4,
  'topk_group': 2,
  'n_shared_experts': 1,
  'moe_intermediate_size': 16,
  'first_k_dense_replace': 1,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
_MAMBA = {
  'mamba_n_heads': 4,
  'mamba_d_head': 16,
  'mamba_n_groups': 2,
  'mamba_d_state': 6,
}
# In which every field below has a meaning.
BASES = {
  model_type: {'model_type': model_type, **small_config.SIZES, **own}
  for model_type, own in {
    'llama': {},
    'mistral': {'sliding_window': 8},
    'ministral': {'sliding_window': 8},
    'qwen2': {
      'use_sliding_window': True,
      'sliding_window': 8,
      'max_window_layers': 2,
    },
    'qwen3': {
      'use_sliding_window': True,
      'sliding_window': 8,
      'max_window_layers': 2,
    },
    'phi3': {
      'sliding_window': 8,
      'original_max_position_embeddings': 16,
      'rope_parameters': {
        'rope_type': 'longrope',
        'short_factor': [1.0] * 4,
        'long_factor': [2.0] * 4,
      },
    },
    'gemma': {'hidden_act': 'gelu_pytorch_tanh'},
    'gemma2': {'sliding_window': 8},
    'gemma3_text': {'sliding_window': 8, 'sliding_window_pattern': 2},
    'gemma4_text': {
      'global_head_dim': 16,
      'num_global_key_value_heads': 1,
      'attention_k_eq_v': True,
      'sliding_window': 8,
      'layer_types': [_SLIDING, _FULL, _SLIDING, _FULL],
      'num_kv_shared_layers': 2,
      'use_double_wide_mlp': True,
      'enable_moe_block': True,
      'num_experts': 4,
      'top_k_experts': 2,
      'moe_intermediate_size': 16,
      'hidden_size_per_layer_input': 4,
      'vocab_size_per_layer_input': 64,
    },
    'gemma3n_text': {
      'sliding_window': 8,
      'layer_types': [_SLIDING, _FULL, _SLIDING, _FULL],
      'num_kv_shared_layers': 2,
      'hidden_size_per_layer_input': 4,
      'vocab_size_per_layer_input': 64,
      'laurel_rank': 4,
      'altup_num_inputs': 3,
    },
    'smollm3': {'use_sliding_window': True, 'sliding_window': 8},
    'olmo2': {},
    'olmo3': {'sliding_window': 8},
    'internlm3': {},
    'iquestcoder': {},
    'seed_oss': {'attention_bias': False},
    'cwm': {'sliding_window': 8},
    'ministral3': {
      'sliding_window': 8,
      'rope_parameters': {**_YARN, 'llama_4_scaling_beta': 0.1},
    },
    'arcee': {'hidden_act': 'relu2'},
    'granite': {},
    'cohere': _LAYER_NORM,
    'cohere2': {**_LAYER_NORM, 'sliding_window': 8},
    'glm': _PARTIAL,
    'glm4': _PARTIAL,
    'exaone4': {'sliding_window': 8},
    'ernie4_5': {},
    'starcoder2': {'norm_epsilon': 1e-5, 'sliding_window': 8},
    'stablelm': {**_LAYER_NORM, 'partial_rotary_factor': 0.25},
    'nemotron': {
      'hidden_act': 'relu2',
      'norm_eps': 1e-5,
      'partial_rotary_factor': 0.25,
    },
    'helium': {},
    'vaultgemma': {'sliding_window': 8},
    'phi': {**_LAYER_NORM, 'partial_rotary_factor': 0.25},
    'gpt_neox': {**_LAYER_NORM, 'num_key_value_heads': 4},
    'falcon': {},
    'olmo': {},
    'apertus': {},
    'hunyuan_v1_dense': {},
    'nanochat': {},
    'exaone': {},
    'hyperclovax': {},
    'jais2': _LAYER_NORM,
    'qwen3_moe': {
      **_EXPERTS,
      'num_experts': 4,
      'moe_intermediate_size': 16,
      'use_sliding_window': True,
      'sliding_window': 8,
    },
    'mixtral': {**_EXPERTS, 'sliding_window': 8},
    'qwen2_moe': {
      **_EXPERTS,
      'num_experts': 4,
      'moe_intermediate_size': 16,
      'shared_expert_intermediate_size': 16,
      'use_sliding_window': True,
      'sliding_window': 8,
      'max_window_layers': 4,
      'qkv_bias': False,
    },
    'olmoe': {**_EXPERTS, 'num_experts': 4},
    'glm4_moe': {
      **_EXPERTS,
      'n_routed_experts': 8,
      'n_group': 4,
      'topk_group': 2,
      'norm_topk_prob': False,
      'moe_intermediate_size': 16,
      'partial_rotary_factor': 0.25,
    },
    'minimax_m2': {**_EXPERTS, 'num_local_experts': 4},
    'granitemoe': {**_EXPERTS, 'num_local_experts': 4},
    'phimoe': {**_EXPERTS, 'num_local_experts': 4, 'sliding_window': 8},
    'gpt_oss': {
      **_EXPERTS,
      'num_local_experts': 4,
      'sliding_window': 8,
      'attention_bias': False,
    },
    'qwen3_5_text': _DELTA,
    'qwen3_5_moe_text': _DELTA_EXPERTS,
    'qwen3_next': {**_DELTA_EXPERTS, 'norm_topk_prob': False},
    'deepseek_v2': {
      **_LATENT,
      **_GROUPED,
      'topk_method': 'group_limited_greedy',
    },
    'deepseek_v3': {**_LATENT, **_GROUPED, 'norm_topk_prob': False},
    'glm4_moe_lite': {
      **_LATENT,
      **{k: v for k, v in _GROUPED.items() if k != 'first_k_dense_replace'},
      'norm_topk_prob': False,
    },
    'mistral4': {
      **_LATENT,
      **_GROUPED,
      'norm_topk_prob': False,
      'head_dim': 12,
      'rope_parameters': {**_YARN, 'llama_4_scaling_beta': 0.1},
    },
    'minicpm3': _LATENT,
    'youtu': _LATENT,
    'sarvam_mla': {**_LATENT, **_GROUPED, 'norm_topk_prob': False},
    'lfm2': {
      'norm_eps': 1e-5,
      'full_attn_idxs': [1, 3],
      'block_multiple_of': 8,
    },
    'granitemoehybrid': {
      **_EXPERTS,
      **_MAMBA,
      'num_local_experts': 4,
      'shared_intermediate_size': 40,
      'position_embedding_type': 'rope',
      'layer_types': ['linear_attention', _FULL] * 2,
    },
    'nemotron_h': {
      **_EXPERTS,
      'hybrid_override_pattern': 'ME*-',
      'mlp_hidden_act': 'relu2',
      'layer_norm_epsilon': 1e-5,
      'mamba_num_heads': 4,
      'mamba_head_dim': 8,
      'n_groups': 2,
      'ssm_state_size': 6,
      'n_routed_experts': 8,
      'n_group': 4,
      'topk_group': 2,
      'norm_topk_prob': False,
      'moe_intermediate_size': 16,
      'moe_shared_expert_intermediate_size': 16,
    },
    'falcon_h1': {**_MAMBA, 'mamba_d_ssm': 64, 'mamba_rms_norm': True},
    'bamba': {**_MAMBA, 'attn_layer_indices': [1]},
  }.items()
}
# Sizes have other names.
for _field in ('num_key_value_heads', 'head_dim', 'intermediate_size'):
  del BASES['falcon'][_field]
# All layers have experts.
del BASES['qwen3_5_moe_text']['intermediate_size']
# Another value of each field that is used or refused.
CHANGES = {
  'linear_num_key_heads': 1,
  'linear_num_value_heads': 6,
  'linear_key_head_dim': 16,
  'linear_value_head_dim': 16,
  'linear_conv_kernel_dim': 3,
  'kv_lora_rank': 16,
  'q_lora_rank': 12,
  'qk_nope_head_dim': 8,
  'qk_rope_head_dim': 4,
  'v_head_dim': 12,
  'rope_interleave': False,
  'topk_method': 'greedy',
  'mlp_layer_types': ['dense', 'dense', 'sparse', 'sparse'],
  'moe_layer_freq': 2,
  'scale_emb': 2.0,
  'scale_depth': 1.1,
  'dim_model_base': 16,
  'num_shared_experts': 2,
  'qk_head_dim': 16,
  'q_head_dim': 16,
  'altup_active_idx': 1,
  'altup_correct_scale': False,
  'altup_num_inputs': 2,
  'laurel_rank': 6,
  'activation_sparsity_pattern': [0.5, 0.0, 0.0, 0.0],
  'global_head_dim': 12,
  'num_global_key_value_heads': 2,
  'attention_k_eq_v': False,
  'num_kv_shared_layers': 0,
  'use_double_wide_mlp': False,
  'enable_moe_block': False,
  'top_k_experts': 1,
  'hidden_size_per_layer_input': 8,
  'vocab_size_per_layer_input': 32,
  'n_routed_experts': 4,
  'n_group': 2,
  'topk_group': 3,
  'n_shared_experts': 2,
  'routed_scaling_factor': 2.0,
  'first_k_dense_replace': 2,
  'rotary_dim': 4,
  'shared_expert_intermediate_size': 24,
  'swiglu_limit': 3.0,
  'swiglu_alpha': 1.5,
  'num_experts': 6,
  'num_local_experts': 6,
  'num_experts_per_tok': 1,
  'moe_intermediate_size': 24,
  'norm_topk_prob': True,
  'decoder_sparse_step': 2,
  'mlp_only_layers': [1],
  'block_multiple_of': 12,
  'block_ffn_dim_multiplier': 10.0,
  'block_auto_adjust_ff_dim': False,
  'block_ff_dim': 64,
  'tie_embedding': False,
  'conv_L_cache': 5,
  'conv_bias': True,
  'full_attn_idxs': [0],
  'layers_block_type': ['full_attention'] * 4,
  'hybrid_override_pattern': 'M*M*',
  'shared_intermediate_size': 56,
  'position_embedding_type': None,
  'attn_layer_indices': [0],
  'mamba_n_heads': 8,
  'mamba_d_head': 8,
  'mamba_n_groups': 1,
  'mamba_d_state': 8,
  'mamba_d_conv': 3,
  'mamba_d_ssm': 48,
  'mamba_expand': 4,
  'mamba_conv_bias': False,
  'mamba_proj_bias': True,
  'mamba_rms_norm': False,
  'mamba_norm_before_gate': False,
  'mamba_dt_limit': [0.1, 1.0],
  'time_step_limit': [0.1, 1.0],
  'mamba_num_heads': 8,
  'mamba_head_dim': 16,
  'ssm_state_size': 8,
  'n_groups': 1,
  'conv_kernel': 3,
  'use_conv_bias': False,
  'mlp_hidden_act': 'relu',
  'mamba_hidden_act': 'relu',
  'moe_shared_expert_intermediate_size': 24,
  'moe_latent_size': 16,
  'projectors_bias': True,
  'lm_head_multiplier': 2.0,
  'mlp_multipliers': [2.0, 1.0],
  'key_multiplier': 2.0,
  'attention_in_multiplier': 2.0,
  'attention_out_multiplier': 2.0,
  'ssm_multipliers': [1.0, 1.0, 2.0, 1.0, 1.0],
  'ssm_in_multiplier': 2.0,
  'ssm_out_multiplier': 2.0,
  'vocab_size': 65,
  'hidden_size': 64,
  'intermediate_size': 64,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'num_key_value_heads': 1,
  'head_dim': 16,
  'max_position_embeddings': 32,
  'original_max_position_embeddings': 32,
  'rms_norm_eps': 1e-3,
  'layer_norm_eps': 1e-3,
  'norm_epsilon': 1e-3,
  'norm_eps': 1e-3,
  'tie_word_embeddings': None,  # Its opposite; see `_changed`.
  'hidden_act': 'relu',
  'hidden_activation': 'relu',
  'attention_bias': True,
  'mlp_bias': True,
  'rope_parameters': {
    'rope_type': 'linear',
    'factor': 2.0,
    _FULL: {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4},
  },
  'rope_theta': 7e5,
  'rotary_emb_base': 7e5,
  'rotary_pct': 0.5,
  'partial_rotary_factor': 0.5,
  'default_rope_type': 'linear',
  'attribute_map': {'sliding_window': 'hidden_size'},
  'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
  'rope_local_base_freq': 5e5,
  'sliding_window_pattern': 3,
  'sliding_window': 6,
  'use_sliding_window': False,
  'max_window_layers': 1,
  'layer_types': [_SLIDING, _FULL, _FULL, _SLIDING],
  'no_rope_layers': [0, 1, 1, 0],
  'no_rope_layer_interval': 2,
  'query_pre_attn_scalar': 64,
  'attention_out_bias': True,
  'bias': True,
  'qkv_bias': True,
  'use_bias': None,  # Its opposite.
  'use_qkv_bias': True,
  'use_parallel_residual': True,
  'use_post_norm': True,
  'num_layers': 3,
  'activation_function': 'relu',
  'lm_head_bias': True,
  'use_qk_norm': True,
  'qk_layernorm': True,
  'clip_qkv': 0.5,
  'alibi': True,
  'new_decoder_architecture': True,
  'multi_query': False,
  'num_ln_in_parallel_attn': 2,
  'num_kv_heads': 2,
  'n_embed': 64,
  'parallel_attn': False,
  'activation': 'relu',
  'ffn_hidden_size': 64,
  'layer_norm_epsilon': 1e-3,
  'embedding_multiplier': 2.0,
  'attention_multiplier': 2.0,
  'residual_multiplier': 2.0,
  'logits_scaling': 2.0,
  'logit_scale': 2.0,
  'attn_logit_softcapping': 5.0,
  'final_logit_softcapping': 5.0,
  'pretraining_tp': 2,
  'use_bidirectional_attention': True,
  'is_causal': False,
  'is_encoder_decoder': True,
  'quantization_config': {'quant_method': 'bitsandbytes'},
  'per_layer_config': {'0': {'intermediate_size': 64}},
  'fusion_config': {'rms_norm': True},
  'transformers_weights': 'other.safetensors',
  'attention_chunk_size': 8,
  'kv_sharing_modes': ['reuse'] * 4,
  'text_config': {'hidden_size': 64},
  'text_encoder': {'hidden_size': 64},
  'decoder': {'hidden_size': 64},
  'generator': {'hidden_size': 64},
}
# Values, under which a text must have the very same logits in transformers, of
# fields that concern training, generation or other models.
WITHOUT_EFFECT = {
  'altup_coef_clip': 50.0,
  'input_jitter_noise': 0.5,
  'num_mtp_layers': 2,
  'num_nextn_predict_layers': 2,
  'mtp_layers_block_type': ['full_attention'],
  'mtp_hybrid_override_pattern': '*E',
  'moe_shared_expert_overlap': False,
  'z_loss_coefficient': 0.5,
  'num_logits_to_keep': 3,
  'use_mamba_kernels': False,
  'mamba_ssm_cache_dtype': 'bfloat16',
  'residual_in_fp32': True,
  'rescale_prenorm_residual': False,
  'expand': 4,
  'time_step_max': 0.5,
  'time_step_floor': 1e-3,
  'mamba_dt_max': 0.5,
  'mamba_dt_init_floor': 1e-3,
  'output_router_logits': True,
  'router_aux_loss_coef': 0.5,
  'router_jitter_noise': 0.5,
  'architectures': ['LlamaForSequenceClassification'],
  'transformers_version': '4.31.0',
  'initializer_range': 0.5,
  'embedding_initializer_range': 0.5,
  'attention_dropout': 0.5,
  'resid_pdrop': 0.5,
  'embd_pdrop': 0.5,
  'residual_dropout': 0.5,
  'embedding_dropout': 0.5,
  'hidden_dropout': 0.5,
  'classifier_dropout': 0.5,
  'is_decoder': True,
  'eod_token_id': 9,
  'use_cache': False,
  'bos_token_id': 7,
  'eos_token_id': 8,
  'pad_token_id': 9,
  'sep_token_id': 9,
  'output_hidden_states': True,
  'output_attentions': True,
  'return_dict': True,  # Without it there is a tuple.
  'chunk_size_feed_forward': 3,
  'gradient_checkpointing': True,
  'tie_last_hidden_states': True,
  'id2label': {'0': 'a', '1': 'b', '2': 'c'},
  'label2id': {'a': 0, 'b': 1, 'c': 2},
  'num_labels': 3,
  'problem_type': 'regression',
  'name_or_path': 'some/where',
  '_commit_hash': '0' * 40,
  'vision_aspect_ratio': 'anyres',
  'vision_feature_layer': 3,
  'vision_feature_select_strategy': 'full',
  # Where `layer_types` are given.
  'full_attention_interval': 3,
  # How it is computed and kept, not what.
  'number_of_conv_states': 1,
  'dtype': 'float32',
  'torch_dtype': 'float32',
  'attn_implementation': 'eager',
  'experts_implementation': 'eager',
  'distributed_config': None,
}
# Fields above that have an effect in some families.
_WITH_EFFECT = {
  'phimoe': ('router_jitter_noise',),
  # Its row is that of virtual tokens.
  'gemma4_text': ('pad_token_id',),
  'gemma3n_text': ('pad_token_id',),
}
# Of the class, no fields.
_OF_THE_CLASS = {
  'model_type',
  'base_model_tp_plan',
  'base_model_fsdp_plan',
  'base_model_pp_plan',
  'base_model_ep_plan',
  'sub_configs',
  'is_heterogeneous',
  'serialize_explicit_per_layer_config',
  'extra_files',
  'number_of_conv_states',
}
# On which rounding depends, and nothing else.
_ROUNDING = {'chunk_size', 'mamba_chunk_size'}
# In transformers a bound of the step sizes of a text, but not of generation.
# Servers have no bound.
_OF_TRANSFORMERS = {'time_step_min', 'mamba_dt_min'}
# Fields above that have no effect in some families.
_IGNORED = {
  # It has no rotary embedding.
  'nemotron_h': {'mamba_expand', 'rope_scaling', 'rope_theta'},
  'bamba': {'partial_rotary_factor'},
  # Where `mamba_d_ssm` is given.
  'falcon_h1': {'mamba_expand'},
}
# Without a rotary embedding.
_WITHOUT_POSITIONS = ('nemotron_h',)


# What these families have by default, and others have not.
_TRUE = {
  'gpt_neox': ('attention_bias', 'use_parallel_residual'),
  'jais2': ('attention_bias', 'mlp_bias'),
  'hyperclovax': ('use_post_norm',),
}


def _changed(model_type, field):
  base = BASES[model_type]
  value = {**WITHOUT_EFFECT, **CHANGES}[field]
  if field == 'use_bias':
    value = model_type != 'starcoder2'
  if field in _TRUE.get(model_type, ()):
    value = False
  if field == 'tie_word_embeddings':
    value = not registry.from_hf(base).tie_embeddings
  return {**base, field: value}


def _given(model_type):
  """The fields of a base; a copy, since transformers adds to those given."""
  values = copy.deepcopy(BASES[model_type])
  del values['model_type']
  return values


def _fields_read(model_type, directory):
  """What building, loading and running a model asks its config for."""
  cls = transformers.CONFIG_MAPPING[model_type]
  given = _given(model_type)
  config = cls(**given, pad_token_id=None)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.save_pretrained(directory)
  read = set()

  class Recording(cls):
    def __getattribute__(self, name):
      read.add(name)
      return super().__getattribute__(name)

  config.__class__ = Recording
  model = type(model).from_pretrained(directory, config=config).eval()
  ids = torch.arange(2, 2 + LENGTH)[None]
  # At once, and with a cache as in generation.
  cache = model(ids[:, :-1], use_cache=True).past_key_values
  model(ids[:, -1:], past_key_values=cache)
  return {
    name
    for name in read
    if not name.startswith('_') and not callable(getattr(cls, name, None))
  }


def _fields_known(model_type):
  """Those of the config's class, and old ones that it still takes."""
  cls = transformers.CONFIG_MAPPING[model_type]
  known = {field.name for field in dataclasses.fields(cls)}
  known |= set(cls.attribute_map)
  for name in ('__post_init__', 'convert_rope_params_to_dict'):
    for one in cls.__mro__:
      if name in vars(one):
        source = inspect.getsource(vars(one)[name])
        known |= set(re.findall(r'kwargs\.(?:get|pop)\(\s*"(\w+)"', source))
  return known


@pytest.mark.parametrize('model_type', registry.families())
def test_every_field_is_used_refused_or_without_effect(model_type, tmp_path):
  fields = _fields_read(model_type, tmp_path) | _fields_known(model_type)
  elsewhere = _OF_THE_CLASS | _ROUNDING | _OF_TRANSFORMERS
  unknown = fields - set(CHANGES) - set(WITHOUT_EFFECT) - elsewhere
  assert not unknown
  assert fields > {'vocab_size', 'is_causal', 'head_dim'}
  assert 'rope_parameters' in fields or model_type in _WITHOUT_POSITIONS
  ours = registry.from_hf(BASES[model_type])
  ignored = []
  own = _WITH_EFFECT.get(model_type, ())
  assert fields >= set(own)
  skipped = _IGNORED.get(model_type, set())
  for field in sorted((fields & {*CHANGES, *own}) - skipped):
    try:
      changed = registry.from_hf(_changed(model_type, field))
    except errors.UserError:
      continue
    if changed == ours:
      ignored.append(field)
  assert not ignored


@pytest.mark.parametrize('model_type', registry.families())
def test_fields_without_effect(model_type):
  """In transformers' own model; ours does not look at them."""
  ids = torch.arange(2, 2 + LENGTH)[None]
  found, weights = [], None
  own = _WITH_EFFECT.get(model_type, ())
  others = {key: v for key, v in WITHOUT_EFFECT.items() if key not in own}
  # Another implementation of experts rounds otherwise.
  plain = {'pad_token_id': None, 'experts_implementation': 'eager'}
  for values in (plain, others):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
      model_type, **_given(model_type), **values
    )
    # The width of random weights is one of the fields.
    config.initializer_range = 0.2
    model = transformers.AutoModelForCausalLM.from_config(
      config, attn_implementation='eager'
    )
    if weights is not None:
      model.load_state_dict(weights)
    weights = model.eval().state_dict()
    with torch.no_grad():
      found.append(model(ids).logits)
  assert torch.equal(*found)
  base = registry.from_hf(BASES[model_type])
  assert registry.from_hf({**BASES[model_type], **others}) == base
