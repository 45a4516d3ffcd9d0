"""Tensors and metadata that llama.cpp's converter makes of newer models.

What it does is spelled out here, in other words than in the code that undoes
it. `gguf_models` has the older ones.
"""

import math

import numpy as np

_ATTENTION = {
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'self_attn.q_norm.weight': 'attn_q_norm.weight',
  'self_attn.k_norm.weight': 'attn_k_norm.weight',
  'input_layernorm.weight': 'attn_norm.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
}
_EXPERTS = {
  'mlp.gate.weight': 'ffn_gate_inp.weight',
  'mlp.experts.down_proj': 'ffn_down_exps.weight',
  'mlp.gate.e_score_correction_bias': 'exp_probs_b.bias',
  **{
    f'mlp.{module}.{x}_proj.weight': f'ffn_{x}_shexp.weight'
    for module in ('shared_expert', 'shared_experts')
    for x in ('gate', 'up', 'down')
  },
}
_BIASES = {
  f'self_attn.{x}_proj.bias': f'attn_{x}.bias' for x in ('q', 'k', 'v')
}
_LATENT = {
  **_ATTENTION,
  **_EXPERTS,
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'self_attn.q_a_proj.weight': 'attn_q_a.weight',
  'self_attn.q_a_layernorm.weight': 'attn_q_a_norm.weight',
  'self_attn.q_b_proj.weight': 'attn_q_b.weight',
  'self_attn.kv_a_proj_with_mqa.weight': 'attn_kv_a_mqa.weight',
  'self_attn.kv_a_layernorm.weight': 'attn_kv_a_norm.weight',
}
_NET = {
  **_ATTENTION,
  **_EXPERTS,
  'post_attention_layernorm.weight': 'post_attention_norm.weight',
  'mlp.shared_expert_gate.weight': 'ffn_gate_inp_shexp.weight',
  'linear_attn.A_log': 'ssm_a',
  'linear_attn.conv1d.weight': 'ssm_conv1d.weight',
  'linear_attn.dt_bias': 'ssm_dt.bias',
  'linear_attn.in_proj_a.weight': 'ssm_alpha.weight',
  'linear_attn.in_proj_b.weight': 'ssm_beta.weight',
  'linear_attn.in_proj_ba.weight': 'ssm_ba.weight',
  'linear_attn.in_proj_qkv.weight': 'attn_qkv.weight',
  'linear_attn.in_proj_z.weight': 'attn_gate.weight',
  'linear_attn.norm.weight': 'ssm_norm.weight',
  'linear_attn.out_proj.weight': 'ssm_out.weight',
}


def _mamba(module):
  return {
    f'{module}.{name}': stored
    for name, stored in {
      'A_log': 'ssm_a',
      'D': 'ssm_d',
      'dt_bias': 'ssm_dt.bias',
      'conv1d.weight': 'ssm_conv1d.weight',
      'conv1d.bias': 'ssm_conv1d.bias',
      'in_proj.weight': 'ssm_in.weight',
      'out_proj.weight': 'ssm_out.weight',
      'norm.weight': 'ssm_norm.weight',
    }.items()
  }


_GEMMA = {
  **_ATTENTION,
  'post_attention_layernorm.weight': 'post_attention_norm.weight',
  'pre_feedforward_layernorm.weight': 'ffn_norm.weight',
  'post_feedforward_layernorm.weight': 'post_ffw_norm.weight',
  'pre_feedforward_layernorm_2.weight': 'pre_ffw_norm_2.weight',
  'post_feedforward_layernorm_1.weight': 'post_ffw_norm_1.weight',
  'post_feedforward_layernorm_2.weight': 'post_ffw_norm_2.weight',
  'per_layer_input_gate.weight': 'inp_gate.weight',
  'per_layer_projection.weight': 'proj.weight',
  'post_per_layer_input_norm.weight': 'post_norm.weight',
}
# Names in a layer, of each architecture.
_IN_LAYER = {
  'qwen35': _NET,
  'qwen35moe': _NET,
  'qwen3next': _NET,
  'lfm2': {
    **_ATTENTION,
    'conv.conv.weight': 'shortconv.conv.weight',
    'conv.in_proj.weight': 'shortconv.in_proj.weight',
    'conv.out_proj.weight': 'shortconv.out_proj.weight',
    'feed_forward.w1.weight': 'ffn_gate.weight',
    'feed_forward.w2.weight': 'ffn_down.weight',
    'feed_forward.w3.weight': 'ffn_up.weight',
    'operator_norm.weight': 'attn_norm.weight',
    'ffn_norm.weight': 'ffn_norm.weight',
    'self_attn.out_proj.weight': 'attn_output.weight',
    'self_attn.q_layernorm.weight': 'attn_q_norm.weight',
    'self_attn.k_layernorm.weight': 'attn_k_norm.weight',
  },
  'granitehybrid': {
    **_ATTENTION,
    **_mamba('mamba'),
    'post_attention_layernorm.weight': 'ffn_norm.weight',
    'block_sparse_moe.router.weight': 'ffn_gate_inp.weight',
    'block_sparse_moe.experts.down_proj': 'ffn_down_exps.weight',
    'shared_mlp.output_linear.weight': 'ffn_down_shexp.weight',
  },
  'nemotron_h': {
    **_mamba('mixer'),
    **{f'mixer.{x}_proj.weight': f'attn_{x}.weight' for x in ('q', 'k', 'v')},
    # Of the layer, not of Mamba 2.
    'norm.weight': 'attn_norm.weight',
    'mixer.o_proj.weight': 'attn_output.weight',
    'mixer.up_proj.weight': 'ffn_up.weight',
    'mixer.down_proj.weight': 'ffn_down.weight',
    'mixer.gate.weight': 'ffn_gate_inp.weight',
    'mixer.gate.e_score_correction_bias': 'exp_probs_b.bias',
    'mixer.experts.up_proj': 'ffn_up_exps.weight',
    'mixer.experts.down_proj': 'ffn_down_exps.weight',
    'mixer.shared_experts.up_proj.weight': 'ffn_up_shexp.weight',
    'mixer.shared_experts.down_proj.weight': 'ffn_down_shexp.weight',
  },
  'falcon-h1': {
    **_ATTENTION,
    **_mamba('mamba'),
    # The file lacks the ending.
    'pre_ff_layernorm.weight': 'ffn_norm',
    **{
      f'feed_forward.{x}_proj.weight': f'ffn_{x}.weight'
      for x in ('gate', 'up', 'down')
    },
  },
  'qwen2moe': {
    **_ATTENTION,
    **_BIASES,
    **_EXPERTS,
    'post_attention_layernorm.weight': 'ffn_norm.weight',
    'mlp.shared_expert_gate.weight': 'ffn_gate_inp_shexp.weight',
  },
  'glm4moe': {
    **_ATTENTION,
    **_BIASES,
    **_EXPERTS,
    'post_attention_layernorm.weight': 'post_attention_norm.weight',
  },
  'minimax-m2': {
    **_ATTENTION,
    **_EXPERTS,
    'post_attention_layernorm.weight': 'ffn_norm.weight',
    'mlp.e_score_correction_bias': 'exp_probs_b.bias',
  },
  'deepseek2': _LATENT,
  # Its files have experts' gates and ups in one tensor, and so has this one.
  'mistral4': {
    **_LATENT,
    'mlp.experts.gate_up_proj': 'ffn_gate_up_exps.weight',
  },
  'minicpm3': {
    **_LATENT,
    'self_attn.kv_b_proj.weight': 'attn_kv_b.weight',
  },
  'gemma4': {
    **_GEMMA,
    'layer_scalar': 'layer_output_scale.weight',
    'router.proj.weight': 'ffn_gate_inp.weight',
    'router.scale': 'ffn_gate_inp.scale',
    'router.per_expert_scale': 'ffn_down_exps.scale',
    'experts.gate_up_proj': 'ffn_gate_up_exps.weight',
    'experts.down_proj': 'ffn_down_exps.weight',
  },
  'gemma3n': {
    **_GEMMA,
    'altup.correct_output_scale': 'altup_correct_scale.weight',
    'altup.correction_coefs.weight': 'altup_correct_coef.weight',
    'altup.prediction_coefs.weight': 'altup_predict_coef.weight',
    'altup.modality_router.weight': 'altup_router.weight',
    'altup.router_norm.weight': 'altup_router_norm.weight',
    'laurel.linear_left.weight': 'laurel_l.weight',
    'laurel.linear_right.weight': 'laurel_r.weight',
    'laurel.post_laurel_norm.weight': 'laurel_post_norm.weight',
  },
}
_IN_LAYER['nemotron_h_moe'] = _IN_LAYER['nemotron_h']
_OUTSIDE = {
  'embed_tokens.weight': 'token_embd.weight',
  'embeddings.weight': 'token_embd.weight',
  'norm.weight': 'output_norm.weight',
  'norm_f.weight': 'output_norm.weight',
  'final_layernorm.weight': 'output_norm.weight',
  'embedding_norm.weight': 'token_embd_norm.weight',
  'lm_head.weight': 'output.weight',
  'embed_tokens_per_layer.weight': 'per_layer_token_embd.weight',
  'per_layer_model_projection.weight': 'per_layer_model_proj.weight',
  'per_layer_projection_norm.weight': 'per_layer_proj_norm.weight',
}
ARCHITECTURES = tuple(_IN_LAYER)


def tensors(architecture, config, state):
  """Tensors of a file.

  Args:
    architecture: llama.cpp's name of it.
    config: transformers' config.
    state: name -> array, of transformers' model.

  Returns:
    Name -> array.
  """
  found, streams = {}, {}
  for name, array in state.items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    parts = name.split('.')
    if parts[1] != 'layers':
      if parts[-2].isdigit():
        streams.setdefault(parts[1], []).append(array)
      else:
        end = '.'.join(parts[-2:])
        found[_OUTSIDE[end]] = _outside(architecture, config, end, array)
      continue
    layer, part = f'blk.{parts[2]}.', '.'.join(parts[3:])
    for stored, changed in _in_layer(architecture, config, part, array):
      found[layer + stored] = changed
  for name, stored in (
    ('altup_projections', 'altup_proj.weight'),
    ('altup_unembed_projections', 'altup_unembd_proj.weight'),
  ):
    if name in streams:
      found[stored] = np.stack(streams[name])
  return {name: np.ascontiguousarray(x) for name, x in found.items()}


def _outside(architecture, config, end, array):
  if architecture.startswith('qwen3') and end == 'norm.weight':
    return array + 1
  if architecture == 'falcon-h1' and end == 'embed_tokens.weight':
    return array * config.embedding_multiplier
  if architecture == 'falcon-h1' and end == 'lm_head.weight':
    return array * config.lm_head_multiplier
  return array


def _in_layer(architecture, config, part, array):
  """Names and arrays of one tensor of a layer."""
  names = _IN_LAYER[architecture]
  if part.endswith('experts.gate_up_proj') and part not in names:
    for name, half in zip(('gate', 'up'), np.split(array, 2, 1), strict=True):
      yield f'ffn_{name}_exps.weight', half
  elif part == 'shared_mlp.input_linear.weight':
    end = '_shexp' if config.num_local_experts else ''
    for name, half in zip(('gate', 'up'), np.split(array, 2), strict=True):
      yield f'ffn_{name}{end}.weight', half
  elif part == 'shared_mlp.output_linear.weight':
    end = '_shexp' if config.num_local_experts else ''
    yield f'ffn_down{end}.weight', array
  elif part == 'self_attn.kv_b_proj.weight' and part not in names:
    keys, values = config.qk_nope_head_dim, config.v_head_dim
    heads = array.reshape(-1, keys + values, config.kv_lora_rank)
    yield 'attn_k_b.weight', heads[:, :keys].swapaxes(1, 2)
    yield 'attn_v_b.weight', heads[:, keys:]
  elif part == 'linear_attn.in_proj_qkvz.weight':
    groups = config.linear_num_key_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    value *= config.linear_num_value_heads // groups
    parted = array.reshape(groups, -1, array.shape[1])
    pieces = np.split(parted, np.cumsum((key, key, value)), axis=1)
    *qkv, z = (piece.reshape(-1, array.shape[1]) for piece in pieces)
    yield 'attn_qkv.weight', np.concatenate(qkv)
    yield 'attn_gate.weight', z
  else:
    yield names[part], _changed(architecture, config, part, array)


def _changed(architecture, config, part, array):
  """An array with what the converter does to its values and their order."""
  if part.startswith('linear_attn.') and architecture != 'qwen3next':
    array = _tiled(config, part.removeprefix('linear_attn.'), array)
  if architecture == 'qwen2moe' and part.endswith('expert_gate.weight'):
    array = array[0]  # As in files of older converters.
  if part.endswith('A_log'):
    array = -np.exp(array)
  if 'conv1d.weight' in part or part == 'conv.conv.weight':
    array = array[:, 0]
  if part.startswith(('mamba.', 'mixer.')):
    if part.endswith(('.A_log', '.D')):
      array = array[:, None]
    elif part.endswith('.norm.weight'):
      groups = getattr(config, 'mamba_n_groups', None) or config.n_groups
      array = array.reshape(groups, -1)
  if architecture.startswith('qwen3') and part.endswith('norm.weight'):
    array = array if part.startswith('linear_attn') else array + 1
  if architecture in ('granitehybrid', 'nemotron_h', 'nemotron_h_moe'):
    heads = {'q': config.num_attention_heads, 'k': config.num_key_value_heads}
    name = part.split('.')[-2]
    if name in ('q_proj', 'k_proj'):
      halves = array.reshape(heads[name[0]], 2, -1, array.shape[1])
      array = halves.swapaxes(1, 2).reshape(array.shape)
  if architecture == 'falcon-h1':
    array = array * _falcon_factor(config, part)
  return array


def _tiled(config, part, array):
  """Heads of values in turn: one of each head of keys, then the next ones."""
  keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
  before = 0
  if part in ('in_proj_qkv.weight', 'conv1d.weight'):
    before = 2 * keys * config.linear_key_head_dim
  if part == 'norm.weight':
    return array
  if part == 'out_proj.weight':
    return _tiled(config, 'in_proj_z.weight', array.T).T
  rest = array[before:].reshape(keys, heads // keys, -1, *array.shape[1:])
  rest = np.concatenate(
    [rest[:, i].reshape(-1, *array.shape[1:]) for i in range(heads // keys)]
  )
  return np.concatenate([array[:before], rest])


def _falcon_factor(config, part):
  """What the converter multiplies a tensor of Falcon-H1 by."""
  entry = config.attention_in_multiplier
  if part == 'mamba.in_proj.weight':
    inner = config.mamba_d_ssm
    state = config.mamba_n_groups * config.mamba_d_state
    sizes = (inner, inner, state, state, config.mamba_n_heads)
    factors = config.ssm_in_multiplier * np.repeat(
      np.array(config.ssm_multipliers, np.float32), sizes
    )
    return factors[:, None].astype(np.float32)
  return np.float32(
    {
      'feed_forward.gate_proj.weight': config.mlp_multipliers[0],
      'feed_forward.down_proj.weight': config.mlp_multipliers[1],
      'self_attn.q_proj.weight': entry,
      'self_attn.k_proj.weight': entry * config.key_multiplier,
      'self_attn.v_proj.weight': entry,
      'self_attn.o_proj.weight': config.attention_out_multiplier,
      'mamba.out_proj.weight': config.ssm_out_multiplier,
    }.get(part, 1.0)
  )


def metadata(architecture, config):
  """Metadata that only these architectures have, or have in another form."""
  get = lambda name, default=None: getattr(config, name, default)  # noqa: E731
  found = {}
  if get('head_dim') and architecture != 'granitehybrid':
    found |= {
      'attention.key_length': config.head_dim,
      'attention.value_length': config.head_dim,
    }
  if architecture.startswith('qwen3'):
    linear = [name != 'full_attention' for name in config.layer_types]
    inner = config.linear_value_head_dim * config.linear_num_value_heads
    share = config.rope_parameters['partial_rotary_factor']
    found |= {
      'ssm.conv_kernel': config.linear_conv_kernel_dim,
      'ssm.state_size': config.linear_key_head_dim,
      'ssm.group_count': config.linear_num_key_heads,
      'ssm.time_step_rank': config.linear_num_value_heads,
      'ssm.inner_size': inner,
      'attention.recurrent_layers': linear,
      'full_attention_interval': 4,
      'rope.dimension_count': int(config.head_dim * share),
      'rope.freq_base': config.rope_parameters['rope_theta'],
    }
    if architecture != 'qwen3next':
      found['rope.dimension_sections'] = [2, 1, 1, 0]
    if architecture != 'qwen35':
      found |= {
        'expert_feed_forward_length': config.moe_intermediate_size,
        'expert_shared_feed_forward_length': (
          config.shared_expert_intermediate_size
        ),
      }
    if architecture == 'qwen35moe':
      found['feed_forward_length'] = None
  elif architecture == 'lfm2':
    found |= {
      'attention.head_count_kv': [
        config.num_key_value_heads * (name != 'conv')
        for name in config.layer_types
      ],
      'attention.layer_norm_rms_epsilon': config.norm_eps,
      'shortconv.l_cache': config.conv_L_cache,
      'rope.freq_base': config.rope_parameters['rope_theta'],
    }
  elif architecture in ('qwen2moe', 'glm4moe', 'minimax-m2'):
    share = config.rope_parameters.get('partial_rotary_factor')
    found |= {
      'rope.freq_base': config.rope_parameters['rope_theta'],
      'rope.dimension_count': share and int(config.head_dim * share),
      'expert_feed_forward_length': get('moe_intermediate_size')
      or config.intermediate_size,
      'expert_shared_feed_forward_length': get(
        'shared_expert_intermediate_size'
      ),
      **(_of_grouped(config) if architecture == 'glm4moe' else {}),
    }
  elif architecture == 'minicpm3':
    found |= {
      'attention.q_lora_rank': config.q_lora_rank,
      'attention.kv_lora_rank': config.kv_lora_rank,
      'attention.key_length': config.qk_nope_head_dim + config.qk_rope_head_dim,
      # llama.cpp takes hidden_size / heads.
      'attention.value_length': None,
      'rope.dimension_count': config.qk_rope_head_dim,
      'rope.freq_base': None,
    }
  elif architecture in ('deepseek2', 'mistral4'):
    rank, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    found |= {
      'attention.head_count_kv': 1,
      'attention.q_lora_rank': config.q_lora_rank,
      'attention.kv_lora_rank': rank,
      'attention.key_length': rank + rotated,
      'attention.value_length': rank,
      'attention.key_length_mla': config.qk_nope_head_dim + rotated,
      'attention.value_length_mla': config.v_head_dim,
      'rope.dimension_count': rotated,
      **_of_grouped(config),
      'expert_feed_forward_length': (
        get('moe_intermediate_size') or config.intermediate_size
      ),
      'expert_shared_count': get('n_shared_experts', 0),
      'leading_dense_block_count': get(
        'first_k_dense_replace', config.num_hidden_layers
      ),
    }
  elif architecture.startswith('gemma'):
    types = config.layer_types
    found |= {
      'attention.sliding_window': config.sliding_window,
      'attention.sliding_window_pattern': [
        name == 'sliding_attention' for name in types
      ],
      'attention.shared_kv_layers': config.num_kv_shared_layers,
      'embedding_length_per_layer_input': config.hidden_size_per_layer_input,
      'final_logit_softcapping': config.final_logit_softcapping,
      'rope.freq_base': 1e6,
      'rope.freq_base_swa': 1e4,
    }
  if architecture == 'gemma4':
    full = config.per_layer_config[types.index('full_attention')]
    heads = [one.num_key_value_heads for one in config.per_layer_config]
    found |= {
      'attention.head_count_kv': heads,
      'attention.key_length': full.head_dim,
      'attention.value_length': full.head_dim,
      'rope.dimension_count': full.head_dim,
      'expert_count': get('num_experts'),
      'expert_used_count': get('top_k_experts'),
      'expert_feed_forward_length': get('moe_intermediate_size'),
      'attention.key_length_swa': config.head_dim,
      'attention.value_length_swa': config.head_dim,
      'rope.dimension_count_swa': config.head_dim,
    }
  if architecture == 'gemma3n':
    found |= {
      'altup.active_idx': config.altup_active_idx,
      'altup.num_inputs': config.altup_num_inputs,
      'feed_forward_length': list(config.intermediate_size),
      'activation_sparsity_scale': [
        1.6448535919189453 if share else -math.inf
        for share in config.activation_sparsity_pattern
      ],
    }
  if architecture in ('granitehybrid', 'falcon-h1'):
    found |= _of_mamba(
      config.mamba_n_heads,
      config.mamba_d_head,
      config.mamba_d_state,
      config.mamba_n_groups,
      config.mamba_d_conv,
    )
  if architecture == 'falcon-h1':
    found['rope.freq_base'] = config.rope_parameters['rope_theta']
  if architecture == 'granitehybrid':
    found |= {
      'attention.head_count_kv': [
        config.num_key_value_heads * (name == 'full_attention')
        for name in config.layer_types
      ],
      'expert_shared_feed_forward_length': config.shared_intermediate_size,
      'embedding_scale': config.embedding_multiplier,
      'attention.scale': config.attention_multiplier,
      'residual_scale': config.residual_multiplier,
      'logit_scale': config.logits_scaling,
      'rope.scaling.finetuned': False,
    }
  if architecture.startswith('nemotron_h'):
    found |= _of_mamba(
      config.mamba_num_heads,
      config.mamba_head_dim,
      config.ssm_state_size,
      config.n_groups,
      config.conv_kernel,
    )
    kinds = config.layers_block_type
    sparse = architecture.endswith('moe')
    width = config.moe_intermediate_size if sparse else config.intermediate_size
    found |= {
      'attention.head_count_kv': [
        config.num_key_value_heads * (kind in ('attention', 'full_attention'))
        for kind in kinds
      ],
      'feed_forward_length': [
        width * (kind in ('mlp', 'moe')) for kind in kinds
      ],
      'attention.layer_norm_rms_epsilon': config.layer_norm_epsilon,
      'attention.layer_norm_epsilon': config.layer_norm_epsilon,
      'rope.scaling.finetuned': False,
      'rope.freq_base': None,
      # The converter takes the width of a head to be this.
      'rope.dimension_count': (
        config.hidden_size // config.num_attention_heads
      ),
    }
    if sparse:
      found |= {
        'expert_count': config.n_routed_experts,
        'expert_used_count': config.num_experts_per_tok,
        'expert_feed_forward_length': config.moe_intermediate_size,
        'expert_shared_feed_forward_length': (
          config.moe_shared_expert_intermediate_size
        ),
        'expert_shared_count': config.n_shared_experts,
        'expert_weights_norm': config.norm_topk_prob,
        'expert_weights_scale': config.routed_scaling_factor,
        'expert_group_count': config.n_group,
        'expert_group_used_count': config.topk_group,
      }
    else:
      found |= {'expert_count': None, 'expert_used_count': None}
  return found


def _of_mamba(heads, width, size, groups, taps):
  return {
    'ssm.conv_kernel': taps,
    'ssm.inner_size': heads * width,
    'ssm.state_size': size,
    'ssm.time_step_rank': heads,
    'ssm.group_count': groups,
  }


def _of_grouped(config):
  """Metadata of experts in groups, where the config has such fields."""
  return {
    key: getattr(config, field, None)
    for key, field in {
      'expert_count': 'n_routed_experts',
      'expert_used_count': 'num_experts_per_tok',
      'expert_group_count': 'n_group',
      'expert_group_used_count': 'topk_group',
      'expert_shared_count': 'n_shared_experts',
      'expert_weights_scale': 'routed_scaling_factor',
      'expert_weights_norm': 'norm_topk_prob',
      'leading_dense_block_count': 'first_k_dense_replace',
    }.items()
    if hasattr(config, field)
  }
