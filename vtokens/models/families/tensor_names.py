"""Names of tensors in Hugging Face checkpoints, shared by most families.

Parameter path -> name of the tensor; `{}` stands for the number of the layer,
and a second one for the number of the expert if each has its own tensor.
Parameters with the same name are rows of one tensor, in the order of the table.
"""

import dataclasses
from collections.abc import Mapping

_LAYER = 'model.layers.{}.'
_ATTENTION = _LAYER + 'self_attn.'

_COMMON = {
  'embedding': 'model.embed_tokens.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'model.norm.weight',
  'layers.attention.q': _ATTENTION + 'q_proj.weight',
  'layers.attention.k': _ATTENTION + 'k_proj.weight',
  'layers.attention.v': _ATTENTION + 'v_proj.weight',
  'layers.attention.o': _ATTENTION + 'o_proj.weight',
  'layers.attention.q_bias': _ATTENTION + 'q_proj.bias',
  'layers.attention.k_bias': _ATTENTION + 'k_proj.bias',
  'layers.attention.v_bias': _ATTENTION + 'v_proj.bias',
  'layers.attention.o_bias': _ATTENTION + 'o_proj.bias',
  'layers.attention.q_norm.scale': _ATTENTION + 'q_norm.weight',
  'layers.attention.k_norm.scale': _ATTENTION + 'k_norm.weight',
  'layers.mlp.gate': _LAYER + 'mlp.gate_proj.weight',
  'layers.mlp.up': _LAYER + 'mlp.up_proj.weight',
  'layers.mlp.down': _LAYER + 'mlp.down_proj.weight',
}
# Norms before attention and MLP: Llama's layout.
PRE_NORM: Mapping[str, str] = {
  **_COMMON,
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'post_attention_layernorm.weight',
}
# Norms after attention and MLP.
POST_NORM: Mapping[str, str] = {
  **_COMMON,
  'layers.attention_post_norm.scale': (
    _LAYER + 'post_attention_layernorm.weight'
  ),
  'layers.mlp_post_norm.scale': _LAYER + 'post_feedforward_layernorm.weight',
}
# Norms before and after.
BOTH_NORMS: Mapping[str, str] = {
  **POST_NORM,
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'pre_feedforward_layernorm.weight',
}
# The same with GLM 4's names.
GLM4_NORMS: Mapping[str, str] = {
  **_COMMON,
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.attention_post_norm.scale': (
    _LAYER + 'post_self_attn_layernorm.weight'
  ),
  'layers.mlp_norm.scale': _LAYER + 'post_attention_layernorm.weight',
  'layers.mlp_post_norm.scale': _LAYER + 'post_mlp_layernorm.weight',
}
# Queries, keys and values in one tensor, gate and up in another.
FUSED: Mapping[str, str] = {
  **PRE_NORM,
  'layers.attention.q': _ATTENTION + 'qkv_proj.weight',
  'layers.attention.k': _ATTENTION + 'qkv_proj.weight',
  'layers.attention.v': _ATTENTION + 'qkv_proj.weight',
  'layers.mlp.gate': _LAYER + 'mlp.gate_up_proj.weight',
  'layers.mlp.up': _LAYER + 'mlp.gate_up_proj.weight',
}
# Norms with a bias.
LAYER_NORM: Mapping[str, str] = {
  **PRE_NORM,
  'norm.bias': 'model.norm.bias',
  'layers.attention_norm.bias': _LAYER + 'input_layernorm.bias',
  'layers.mlp_norm.bias': _LAYER + 'post_attention_layernorm.bias',
}
# The same with an MLP without a gate.
STARCODER2: Mapping[str, str] = {
  **LAYER_NORM,
  'layers.mlp.up': _LAYER + 'mlp.c_fc.weight',
  'layers.mlp.up_bias': _LAYER + 'mlp.c_fc.bias',
  'layers.mlp.down': _LAYER + 'mlp.c_proj.weight',
  'layers.mlp.down_bias': _LAYER + 'mlp.c_proj.bias',
}
# Biases everywhere, one norm in a layer, an MLP without a gate.
PHI: Mapping[str, str] = {
  **_COMMON,
  'head_bias': 'lm_head.bias',
  'norm.scale': 'model.final_layernorm.weight',
  'norm.bias': 'model.final_layernorm.bias',
  'layers.attention.o': _ATTENTION + 'dense.weight',
  'layers.attention.o_bias': _ATTENTION + 'dense.bias',
  'layers.attention_norm.scale': _LAYER + 'input_layernorm.weight',
  'layers.attention_norm.bias': _LAYER + 'input_layernorm.bias',
  'layers.mlp.up': _LAYER + 'mlp.fc1.weight',
  'layers.mlp.up_bias': _LAYER + 'mlp.fc1.bias',
  'layers.mlp.down': _LAYER + 'mlp.fc2.weight',
  'layers.mlp.down_bias': _LAYER + 'mlp.fc2.bias',
}

# Norms before attention and MLP, an MLP without a gate.
APERTUS: Mapping[str, str] = {
  **_COMMON,
  'layers.attention_norm.scale': _LAYER + 'attention_layernorm.weight',
  'layers.mlp_norm.scale': _LAYER + 'feedforward_layernorm.weight',
  'layers.mlp.alpha_p': _LAYER + 'mlp.act_fn.alpha_p',
  'layers.mlp.alpha_n': _LAYER + 'mlp.act_fn.alpha_n',
  'layers.mlp.beta': _LAYER + 'mlp.act_fn.beta',
  'layers.mlp.eps': _LAYER + 'mlp.act_fn.eps',
}
_EXAONE = 'transformer.h.{}.'
_EXAONE_ATTENTION = _EXAONE + 'attn.attention.'
EXAONE: Mapping[str, str] = {
  'embedding': 'transformer.wte.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'transformer.ln_f.weight',
  'layers.attention_norm.scale': _EXAONE + 'ln_1.weight',
  'layers.mlp_norm.scale': _EXAONE + 'ln_2.weight',
  'layers.attention.q': _EXAONE_ATTENTION + 'q_proj.weight',
  'layers.attention.k': _EXAONE_ATTENTION + 'k_proj.weight',
  'layers.attention.v': _EXAONE_ATTENTION + 'v_proj.weight',
  'layers.attention.o': _EXAONE_ATTENTION + 'out_proj.weight',
  'layers.attention.q_bias': _EXAONE_ATTENTION + 'q_proj.bias',
  'layers.attention.k_bias': _EXAONE_ATTENTION + 'k_proj.bias',
  'layers.attention.v_bias': _EXAONE_ATTENTION + 'v_proj.bias',
  'layers.attention.o_bias': _EXAONE_ATTENTION + 'out_proj.bias',
  'layers.mlp.gate': _EXAONE + 'mlp.c_fc_0.weight',
  'layers.mlp.up': _EXAONE + 'mlp.c_fc_1.weight',
  'layers.mlp.down': _EXAONE + 'mlp.c_proj.weight',
}
JAIS2: Mapping[str, str] = {
  **LAYER_NORM,
  'layers.mlp.up_bias': _LAYER + 'mlp.up_proj.bias',
  'layers.mlp.down_bias': _LAYER + 'mlp.down_proj.bias',
}
HYPERCLOVAX: Mapping[str, str] = {
  **PRE_NORM,
  'layers.attention_post_norm.scale': _LAYER + 'post_norm1.weight',
  'layers.mlp_post_norm.scale': _LAYER + 'post_norm2.weight',
}
HUNYUAN: Mapping[str, str] = {
  **PRE_NORM,
  'layers.attention.q_norm.scale': _ATTENTION + 'query_layernorm.weight',
  'layers.attention.k_norm.scale': _ATTENTION + 'key_layernorm.weight',
}
# Norms have no tensors.
NANOCHAT: Mapping[str, str] = {
  **_COMMON,
  'layers.mlp.up': _LAYER + 'mlp.fc1.weight',
  'layers.mlp.down': _LAYER + 'mlp.fc2.weight',
}


def _fused(layer: str, attention: str) -> Mapping[str, str]:
  """Names of a layer with queries, keys and values in one tensor.

  Args:
    layer: beginning of the layer's names.
    attention: name of its attention.
  """
  fused = f'{layer}{attention}.query_key_value'
  dense, mlp = f'{layer}{attention}.dense', f'{layer}mlp.dense'
  return {
    'layers.attention.q': fused + '.weight',
    'layers.attention.k': fused + '.weight',
    'layers.attention.v': fused + '.weight',
    'layers.attention.q_bias': fused + '.bias',
    'layers.attention.k_bias': fused + '.bias',
    'layers.attention.v_bias': fused + '.bias',
    'layers.attention.o': dense + '.weight',
    'layers.attention.o_bias': dense + '.bias',
    'layers.attention_norm.scale': layer + 'input_layernorm.weight',
    'layers.attention_norm.bias': layer + 'input_layernorm.bias',
    'layers.mlp_norm.scale': layer + 'post_attention_layernorm.weight',
    'layers.mlp_norm.bias': layer + 'post_attention_layernorm.bias',
    'layers.mlp.up': mlp + '_h_to_4h.weight',
    'layers.mlp.up_bias': mlp + '_h_to_4h.bias',
    'layers.mlp.down': mlp + '_4h_to_h.weight',
    'layers.mlp.down_bias': mlp + '_4h_to_h.bias',
  }


GPT_NEOX: Mapping[str, str] = {
  'embedding': 'gpt_neox.embed_in.weight',
  'head': 'embed_out.weight',
  'norm.scale': 'gpt_neox.final_layer_norm.weight',
  'norm.bias': 'gpt_neox.final_layer_norm.bias',
  **_fused('gpt_neox.layers.{}.', 'attention'),
}
_FALCON_LAYER = 'transformer.h.{}.'
FALCON: Mapping[str, str] = {
  'embedding': 'transformer.word_embeddings.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'transformer.ln_f.weight',
  'norm.bias': 'transformer.ln_f.bias',
  **_fused(_FALCON_LAYER, 'self_attention'),
}
# Two norms side by side.
FALCON_NEW: Mapping[str, str] = {
  **FALCON,
  'layers.attention_norm.scale': _FALCON_LAYER + 'ln_attn.weight',
  'layers.attention_norm.bias': _FALCON_LAYER + 'ln_attn.bias',
  'layers.mlp_norm.scale': _FALCON_LAYER + 'ln_mlp.weight',
  'layers.mlp_norm.bias': _FALCON_LAYER + 'ln_mlp.bias',
}


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of a family's files.

  Attributes:
    names: parameter path -> name of the tensor.
    input_rows: whether tensors of all experts are stored as [experts, inputs,
      outputs]; else as [experts, outputs, inputs].
    interleaved: whether gate and up take turns in such a tensor; else they
      follow one another.
    row_groups: parameter path -> groups of rows of its tensor, where they
      differ from `Family.row_groups`.
  """

  names: Mapping[str, str]
  input_rows: bool = False
  interleaved: bool = False
  row_groups: Mapping[str, int] = dataclasses.field(default_factory=dict)


def with_shared_expert(names: Mapping[str, str]) -> Mapping[str, str]:
  """Names with a corrected router and an MLP for all tokens.

  Args:
    names: names of the other parameters.
  """
  mlp = _LAYER + 'mlp.'
  return {
    **names,
    'layers.mlp.correction': mlp + 'gate.e_score_correction_bias',
    'layers.mlp.shared.gate': mlp + 'shared_experts.gate_proj.weight',
    'layers.mlp.shared.up': mlp + 'shared_experts.up_proj.weight',
    'layers.mlp.shared.down': mlp + 'shared_experts.down_proj.weight',
  }


def with_experts(
  names: Mapping[str, str],
  prefix: str,
  matrices: tuple[str, str, str] = ('gate_proj', 'up_proj', 'down_proj'),
) -> Mapping[str, str]:
  """Names with one tensor for each matrix of each expert.

  Args:
    names: names of the other parameters.
    prefix: of the layer's part with router and experts, e.g. `mlp.`.
    matrices: names of gate, up and down.
  """
  inside = _LAYER + prefix
  return {
    **names,
    'layers.mlp.router': inside + 'gate.weight',
    **{
      f'layers.mlp.experts.{path}': f'{inside}experts.{{}}.{name}.weight'
      for path, name in zip(('gate', 'up', 'down'), matrices, strict=True)
    },
  }


def with_joined_experts(
  names: Mapping[str, str], prefix: str
) -> Mapping[str, str]:
  """Names with one tensor for all gates and ups, and one for all downs.

  Args:
    names: names of the other parameters.
    prefix: see `with_experts`.
  """
  inside = _LAYER + prefix
  gate_up = inside + 'experts.gate_up_proj'
  return {
    **names,
    'layers.mlp.router': inside + 'gate.weight',
    'layers.mlp.experts.gate': gate_up,
    'layers.mlp.experts.up': gate_up,
    'layers.mlp.experts.down': inside + 'experts.down_proj',
  }


def with_gguf_experts(names: Mapping[str, str]) -> Mapping[str, str]:
  """Names with one tensor for each matrix of all experts, as GGUF has them.

  Args:
    names: names of the other parameters.
  """
  inside = _LAYER + 'mlp.experts.'
  return {
    **names,
    **{
      f'layers.mlp.experts.{path}': f'{inside}{path}_proj.weight'
      for path in ('gate', 'up', 'down')
    },
  }


def with_joined_gguf_experts(names: Mapping[str, str]) -> Mapping[str, str]:
  """The same with one tensor for all gates and ups, as some GGUF files have it.

  Args:
    names: what `with_gguf_experts` returns; others are returned as they are.
  """
  apart = _LAYER + 'mlp.experts.gate_proj.weight'
  if names.get('layers.mlp.experts.gate') != apart:
    return names
  joined = _LAYER + 'mlp.experts.gate_up_proj'
  return {
    **names,
    'layers.mlp.experts.gate': joined,
    'layers.mlp.experts.up': joined,
  }


def without(names: Mapping[str, str], *paths: str) -> Mapping[str, str]:
  """Names without some parameters."""
  return {path: name for path, name in names.items() if path not in paths}


def with_fused_mlp(names: Mapping[str, str]) -> Mapping[str, str]:
  """Names with gate and up in one tensor."""
  fused = FUSED['layers.mlp.gate']
  return {**names, 'layers.mlp.gate': fused, 'layers.mlp.up': fused}
