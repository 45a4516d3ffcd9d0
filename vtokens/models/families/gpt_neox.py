"""GPT-NeoX, Pythia, Dolly."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields, write_gelu
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class GPTNeoX(Family):
  """Attention and MLP side by side with a norm each, fused q, k and v."""

  model_type = 'gpt_neox'
  about = About(
    'Pythia, GPT-NeoX 20B, Dolly',
    'attention and MLP side by side, LayerNorm, biases, partial rotation, '
    'MLP without a gate, q, k and v fused by head',
    2.0e-06,
  )
  architecture = 'GPTNeoXForCausalLM'
  names = tensor_names.GPT_NEOX
  norm_eps = 'layer_norm_eps'
  qkv_by_head = True
  # Masks, which follow from the config.
  unused = ('.attention.bias', '.attention.masked_bias')
  gguf = 'gptneox'

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    heads = f.number('num_attention_heads')
    f.only('num_key_value_heads', heads, None)
    f.only('head_dim', f.number('hidden_size') // heads, None)
    return {
      'num_kv_heads': heads,
      'mlp_dim': f.size('intermediate_size'),
      'norm_eps': f.size(self.norm_eps, float),
      'max_positions': f.size('max_position_embeddings'),
    }

  def read(self, f: Fields) -> dict[str, Any]:
    f.normalised('is_decoder')  # Without effect here.
    f.normalised('hidden_dropout', 'classifier_dropout')  # Of training.
    f.no_window()
    parallel = f.boolean('use_parallel_residual', True)
    # transformers reads it there alone.
    partial = f.number(
      'partial_rotary_factor', float, 1.0, inside=f.get('rope_parameters') or {}
    )
    rotated = int(f.head_dim() * partial)
    rope = rope_json.read(f)
    f.only('rope_theta', rope.theta, None)  # `rotary_emb_base` here.
    return {
      **f.biases(),
      'norm': 'layer',
      'norm_bias': True,
      'parallel': parallel,
      'parallel_norms': parallel,
      'activation': f.gelu('hidden_act'),
      'mlp': PlainMLP(bias=True),
      'rotary_dim': None if rotated == f.head_dim() else rotated,
      'layer_pattern': (LayerKind(rope),),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values['hidden_act'] = write_gelu(config.activation, 'gelu_fast')
    values['use_parallel_residual'] = config.parallel
    rope = config.layer_pattern[0].rope
    assert rope is not None
    rotated = config.rotary_dim or config.head_dim
    values['rope_parameters'] = {
      **rope_json.write_parameters(rope),
      'partial_rotary_factor': rotated / config.head_dim,
    }
    for field in ('num_key_value_heads', 'head_dim', 'rope_theta'):
      del values[field]
    del values['rope_scaling']

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    metadata.partial_rotation(values)
    del values['rope_scaling']
    values['rope_parameters'] = {
      'rope_type': 'default',
      'rope_theta': values.pop('rope_theta'),
      'partial_rotary_factor': values['partial_rotary_factor'],
    }
    values['attention_bias'] = metadata.has_tensor('blk.0.attn_qkv.bias')
    parallel = metadata.get('{arch}.use_parallel_residual', ...)
    values['use_parallel_residual'] = parallel
    values['hidden_act'] = 'gelu_new'  # llama.cpp's, whatever the model's.
