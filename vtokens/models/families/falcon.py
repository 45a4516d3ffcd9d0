"""Falcon 7B, 40B, 180B and Falcon 2 11B."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields, write_gelu
from vtokens.models.families.family import About, Family
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class Falcon(Family):
  """LayerNorm, q, k and v fused, one or two norms side by side."""

  model_type = 'falcon'
  about = About(
    'Falcon 7B, 40B, 180B, Falcon 2 11B',
    'attention and MLP side by side with one or two LayerNorms, MLP without a '
    'gate, q, k and v fused by head of keys',
    2.4e-06,
  )
  architecture = 'FalconForCausalLM'
  names = tensor_names.FALCON
  norm_eps = 'layer_norm_epsilon'
  qkv_by_head = True
  gguf = 'falcon'

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    heads = f.number('num_attention_heads')
    f.only('num_key_value_heads', None)
    f.only('n_embed', None, f.number('hidden_size'))  # Its older name.
    f.only('head_dim', f.number('hidden_size') // heads, None)
    count = f.number('num_kv_heads', default=heads)
    if not f.boolean('new_decoder_architecture'):
      f.only('num_kv_heads', None, heads, 1)
      if f.boolean('multi_query', True):
        count = 1
      elif count != heads:
        raise f.fail('num_kv_heads', f'{heads}, as many as heads of queries')
    else:
      f.normalised('multi_query')  # Ignored.
    return {
      'num_kv_heads': count,
      'mlp_dim': f.number('ffn_hidden_size'),
      'norm_eps': f.number(self.norm_eps, float, 1e-5),
      # Published files leave it to the config class.
      'max_positions': f.number('max_position_embeddings'),
    }

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('alibi', False, None)
    f.normalised('hidden_dropout')  # Of training.
    f.no_window()
    bias = f.boolean('bias')
    parallel = f.boolean('parallel_attn', True)
    # Others have no norms of these names, so that transformers' model fails.
    if f.boolean('new_decoder_architecture'):
      f.only('parallel_attn', True)
      f.only('num_ln_in_parallel_attn', 2, 1, None)
      two = f.values.get('num_ln_in_parallel_attn') != 1
    else:
      f.only('num_ln_in_parallel_attn', None, 1)
      two = False
    return {
      'qkv_bias': bias,
      'out_bias': bias,
      'norm': 'layer',
      'norm_bias': True,
      'parallel': parallel,
      'parallel_norms': two,
      'activation': f.gelu('activation'),
      'mlp': PlainMLP(bias=bias),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    """Two norms side by side have other names."""
    return tensor_names.FALCON_NEW if config.parallel_norms else self.names

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    # With one norm side by side the old architecture has the same tensors.
    new = config.parallel
    values.update(
      new_decoder_architecture=new,
      num_kv_heads=config.num_kv_heads,
      multi_query=not new and config.num_kv_heads == 1,
      parallel_attn=config.parallel,
      num_ln_in_parallel_attn=(
        (2 if config.parallel_norms else 1) if new else None
      ),
      bias=config.qkv_bias,
      alibi=False,
      ffn_hidden_size=config.mlp_dim,
      activation=write_gelu(config.activation, 'gelu_new'),
    )
    for field in (
      *('num_key_value_heads', 'head_dim', 'intermediate_size'),
      *('hidden_act', 'attention_bias'),
    ):
      del values[field]

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    width = values['hidden_size'] // values['num_attention_heads']
    # The config class computes it.
    if values.pop('head_dim') != width:
      raise metadata.unexpected(
        '{arch}.attention.key_length',
        metadata.get('{arch}.attention.key_length'),
        f'{width}, of all values over the number of heads',
      )
    two = metadata.has_tensor('blk.0.attn_norm_2.weight')
    values.update(
      # The tensors are the same in the older architecture.
      new_decoder_architecture=True,
      num_kv_heads=values.pop('num_key_value_heads'),
      num_ln_in_parallel_attn=2 if two else 1,
      ffn_hidden_size=values.pop('intermediate_size'),
      bias=metadata.has_tensor('blk.0.attn_qkv.bias'),
      activation='gelu_new',  # llama.cpp's, whatever the model's.
    )
