"""Tiny GGUF files, written from torch models.

What llama.cpp's converter does to names and values is spelled out here, in
other words than in the code that undoes it.
"""

import json

import family_models
import gguf
import gguf_converted
import numpy as np
from tokenizers import pre_tokenizers

Type = gguf.GGMLQuantizationType

_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.qkv_proj': 'attn_qkv',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.gate_up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm',
  # Phi's and StarCoder 2's.
  'model.final_layernorm': 'output_norm',
  'self_attn.dense': 'attn_output',
  'mlp.fc1': 'ffn_up',
  'mlp.fc2': 'ffn_down',
  'mlp.c_fc': 'ffn_up',
  'mlp.c_proj': 'ffn_down',
  # Hunyuan's and Apertus'.
  'self_attn.query_layernorm': 'attn_q_norm',
  'self_attn.key_layernorm': 'attn_k_norm',
  'attention_layernorm': 'attn_norm',
  'feedforward_layernorm': 'ffn_norm',
  # Of GPT-NeoX and Falcon.
  'embed_in': 'token_embd',
  'embed_out': 'output',
  'final_layer_norm': 'output_norm',
  'attention.query_key_value': 'attn_qkv',
  'attention.dense': 'attn_output',
  'mlp.dense_h_to_4h': 'ffn_up',
  'mlp.dense_4h_to_h': 'ffn_down',
  'word_embeddings': 'token_embd',
  'ln_f': 'output_norm',
  'self_attention.query_key_value': 'attn_qkv',
  'self_attention.dense': 'attn_output',
  'ln_mlp': 'attn_norm',
  'ln_attn': 'attn_norm_2',
  # Experts.
  'mlp.gate': 'ffn_gate_inp',
  'mlp.router': 'ffn_gate_inp',
  'block_sparse_moe.router': 'ffn_gate_inp',
}
_PRE = {'post_attention_layernorm': 'ffn_norm'}
_SANDWICH = {
  'post_attention_layernorm': 'post_attention_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}
_NORMS = {
  'gemma2': _SANDWICH,
  'gemma3': _SANDWICH,
  'olmo2': _SANDWICH,
  'exaone4': _SANDWICH,
  'seed_oss': {'post_attention_layernorm': 'post_attention_norm'},
  'gpt-oss': {'post_attention_layernorm': 'post_attention_norm'},
  'glm4': {
    'post_self_attn_layernorm': 'post_attention_norm',
    'post_attention_layernorm': 'ffn_norm',
    'post_mlp_layernorm': 'post_ffw_norm',
  },
}
# llama.cpp rotates neighbours, transformers halves.
_REORDERED = (
  *('llama', 'smollm3', 'granite', 'granitemoe', 'arcee', 'mistral3', 'olmo'),
)
# transformers' name of the number that norms add; others have rms_norm_eps.
_EPSILON = {
  'command-r': 'layer_norm_eps',
  'cohere2': 'layer_norm_eps',
  'phi2': 'layer_norm_eps',
  'stablelm': 'layer_norm_eps',
  'starcoder2': 'norm_epsilon',
  'nemotron': 'norm_eps',
  'gptneox': 'layer_norm_eps',
  'falcon': 'layer_norm_epsilon',
  'jais2': 'layer_norm_eps',
  'olmo': None,  # In no field.
}
# The tokenizer of `tiny_models`, as llama.cpp wants it: with a merge.
BYTES = {
  'model': 'gpt2',
  'pre': 'gpt-2',
  'tokens': [
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *('<|start|>', '<|end|>', '<|eos|>'),
    *(f'[PAD{i}]' for i in range(259, 320)),
  ],
  'token_type': [1] * 256 + [3] * 3 + [5] * 61,
  'merges': ['a b'],
  'eos_token_id': 258,
  'add_bos_token': False,
}


def write(
  path,
  architecture,
  reference,
  metadata=None,
  extra=None,
  *,
  kind=Type.F32,
  tokenizer=None,
):
  """Writes a GGUF file as llama.cpp's converter does.

  Args:
    path: the file.
    architecture: llama.cpp's name of it.
    reference: torch model.
    metadata: further fields, without the architecture.
    extra: further tensors.
    kind: type of matrices.
    tokenizer: fields, without `tokenizer.ggml.`.
  """
  config = reference.config
  # Sizes of layers with a window, where layers differ.
  config.allow_global_per_layer_attribute_access = True
  heads = config.num_attention_heads
  experts = getattr(config, 'num_local_experts', 0)
  experts = experts or getattr(config, 'num_experts', 0)
  groups = {
    'gptneox': lambda: heads,
    'falcon': lambda: config.num_kv_heads,
  }.get(architecture, lambda: config.num_key_value_heads)()
  slopes = {}
  values = {
    'context_length': config.max_position_embeddings,
    'embedding_length': config.hidden_size,
    'block_count': config.num_hidden_layers,
    'feed_forward_length': (
      config.ffn_hidden_size
      if architecture == 'falcon'
      else getattr(config, 'intermediate_size', None)
    ),
    'attention.head_count': heads,
    'attention.head_count_kv': groups,
    **(
      {
        'attention.layer_norm_epsilon': (
          getattr(config, _EPSILON[architecture])
          if _EPSILON[architecture]
          else 1e-5
        )
      }
      if architecture in _EPSILON
      else {
        'attention.layer_norm_rms_epsilon': getattr(
          config, 'rms_norm_eps', None
        )
      }
    ),
    'rope.freq_base': 10_000.0,
    **(
      {
        'expert_count': experts,
        'expert_used_count': getattr(config, 'num_experts_per_tok', None),
      }
      if experts
      else {}
    ),
    **(
      gguf_converted.metadata(architecture, config)
      if architecture in gguf_converted.ARCHITECTURES
      else {}
    ),
    **(metadata or {}),
  }
  writer = gguf.GGUFWriter(path, architecture)
  # Where its maker had them: llama.cpp's quantiser writes it.
  writer.add_string('quantize.imatrix.file', '/home/maker/imatrix.dat')
  writer.add_string('quantize.imatrix.dataset', '/home/maker/data.txt')
  for key, value in values.items():
    match value:
      case str():
        writer.add_string(f'{architecture}.{key}', value)
      case bool():
        writer.add_bool(f'{architecture}.{key}', value)
      case int():
        writer.add_uint32(f'{architecture}.{key}', value)
      case float():
        writer.add_float32(f'{architecture}.{key}', value)
      case list():
        writer.add_array(f'{architecture}.{key}', value)
  for key, value in (tokenizer or {}).items():
    key = f'tokenizer.ggml.{key}'
    match value:
      case bool():
        writer.add_bool(key, value)
      case int():
        writer.add_uint32(key, value)
      case str():
        writer.add_string(key, value)
      case list():
        writer.add_array(key, value)
  names = {**_NAMES, **_NORMS.get(architecture, _PRE)}
  state = reference.state_dict()
  if architecture in gguf_converted.ARCHITECTURES:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    for name, array in gguf_converted.tensors(
      architecture, config, arrays
    ).items():
      # llama.cpp quantises no vectors, and no row that is no whole blocks.
      if array.ndim > 1 and array.shape[-1] % 32 == 0 and 'norm' not in name:
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
      else:
        writer.add_tensor(name, array)
    state = {}
  for name, tensor in state.items():
    if '.act_fn.' in name:  # xIELU's.
      slopes.setdefault(name.split('.')[-1], []).append(float(tensor))
      continue
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    array = tensor.numpy()
    if '.experts.' in name:
      for stored, x in _of_experts(architecture, name, array).items():
        if x.ndim == 3:
          writer.add_tensor(stored, gguf.quantize(x, kind), raw_dtype=kind)
        else:
          writer.add_tensor(stored, x)
      continue
    *parts, end = name.split('.')
    if end == 'sinks':
      writer.add_tensor(f'blk.{parts[2]}.attn_sinks.weight', array)
      continue
    if parts[1:2] in (['layers'], ['h']):
      layer, part = parts[2], '.'.join(parts[3:])
      stored = f'blk.{layer}.{names[part]}.{end}'
    else:
      part = '.'.join(parts)
      if part not in names:
        part = parts[-1]
      stored = f'{names[part]}.{end}'
    plus_one = architecture.startswith(('gemma', 'nemotron'))
    if plus_one and name.endswith('norm.weight'):
      array = array + 1
    if architecture in _REORDERED and part in (
      'self_attn.q_proj',
      'self_attn.k_proj',
    ):
      heads = (
        config.num_attention_heads
        if part.endswith('q_proj')
        else config.num_key_value_heads
      )
      size = len(array) // heads
      array = np.stack(
        [
          array[head * size + half * size // 2 + i]
          for head in range(heads)
          for i in range(size // 2)
          for half in (0, 1)
        ]
      )
    if 'rope.dimension_sections' in values and architecture == 'glm4':
      array = _halves(array, part, config)
    if part.endswith('query_key_value'):
      parted = array.reshape(groups, heads // groups + 2, -1, *array.shape[1:])
      array = np.concatenate(
        [
          some.reshape(-1, *array.shape[1:])
          for some in (parted[:, :-2], parted[:, -2], parted[:, -1])
        ]
      )
    array = np.ascontiguousarray(array)
    if array.ndim > 1:
      writer.add_tensor(stored, gguf.quantize(array, kind), raw_dtype=kind)
    else:
      writer.add_tensor(stored, array)
  for name, numbers in slopes.items():
    writer.add_array(f'xielu.{name}', numbers)
  for name, array in (extra or {}).items():
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _of_experts(architecture, name, array):
  """Names and arrays in a file, of one tensor with all experts."""
  *_, layer, _, _, part = name.split('.')
  in_turn = architecture == 'gpt-oss'
  end = 'bias' if part.endswith('_bias') else 'weight'
  if in_turn and array.ndim == 3:
    array = array.swapaxes(1, 2)
  if not part.startswith('gate_up'):
    found = {'down': array}
  elif in_turn:
    found = {'gate': array[:, ::2], 'up': array[:, 1::2]}
  else:
    gate, up = np.split(array, 2, axis=1)
    found = {'gate': gate, 'up': up}
  return {
    f'blk.{layer}.ffn_{matrix}_exps.{end}': np.ascontiguousarray(x)
    for matrix, x in found.items()
  }


def _halves(array, part, config):
  """Rows of q and k as in files of GLM-4V: even rows first, then odd ones."""
  if part not in ('self_attn.q_proj', 'self_attn.k_proj'):
    return array
  factor = config.rope_parameters['partial_rotary_factor']
  rotated = int(config.head_dim * factor)
  order = [
    *range(0, rotated, 2),
    *range(1, rotated, 2),
    *range(rotated, config.head_dim),
  ]
  heads = array.reshape(-1, config.head_dim, *array.shape[1:])
  return heads[:, order].reshape(array.shape)


def tokenizer(name, rows):
  """Fields of the tokenizer of one of `family_models.FAMILIES`.

  Args:
    name: of the family.
    rows: of the embedding matrix, up to which unused tokens pad the list.
  """
  family = family_models.FAMILIES[name]
  backend = family.backend()
  vocab = backend.get_vocab(with_added_tokens=True)
  added = backend.get_added_tokens_decoder()
  learnt = json.loads(backend.to_str())['model']
  tokens = sorted(vocab, key=vocab.get)
  merges = [' '.join(merge) for merge in learnt['merges']]
  kinds = [
    2
    if token == '<unk>'
    else 3
    if i in added
    else 6
    if token.startswith('<0x')
    else 1
    for i, token in enumerate(tokens)
  ]
  rank = {merge.replace(' ', ''): -float(i) for i, merge in enumerate(merges)}
  spare = [f'[PAD{i}]' for i in range(len(tokens), rows)]
  fields = {
    'tokens': tokens + spare,
    'token_type': kinds + [5] * len(spare),
    'add_bos_token': 'bos_token' in family.config,
    **{
      f'{role}_token_id': vocab[family.config[key]]
      for role, key in (
        ('bos', 'bos_token'),
        ('eos', 'eos_token'),
        ('unknown', 'unk_token'),
        ('padding', 'pad_token'),
      )
      if key in family.config
    },
  }
  if learnt.get('byte_fallback'):
    spelt = json.dumps(json.loads(backend.to_str())['normalizer'])
    return {
      'model': 'llama',
      **fields,
      'scores': [rank.get(token, -1e4) for token in tokens + spare],
      'add_space_prefix': 'Prepend' in spelt,
    }
  return {
    'model': 'gpt2',
    'pre': 'llama-bpe' if name == 'llama3' else 'qwen2',
    **fields,
    'merges': merges,
  }
