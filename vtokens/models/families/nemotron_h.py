"""Nemotron-H, Nemotron Nano 2 and 3."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, Without
from vtokens.models.families import (
  expert_fields,
  gguf_stored,
  mamba_fields,
  tensor_names,
)
from vtokens.models.families.config_json import (
  FULL,
  Fields,
  shortest_pattern,
)
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored
from vtokens.models.mixers.mamba2 import Mamba2
from vtokens.models.mlps.experts import Experts
from vtokens.models.mlps.plain_mlp import PlainMLP

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_MLP, _EXPERTS = 'mlp', 'moe'
_LISTS = ('layers_block_type', 'hybrid_override_pattern')
_MIXER = 'backbone.layers.{}.mixer.'
_NAMES = {
  'embedding': 'backbone.embeddings.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'backbone.norm_f.weight',
  'layers.norm.scale': 'backbone.layers.{}.norm.weight',
  **{
    f'layers.attention.{path}': f'{_MIXER}{path}_proj.weight' for path in 'qkvo'
  },
  **mamba_fields.names(_MIXER),
  'layers.mlp.up': _MIXER + 'up_proj.weight',
  'layers.mlp.up_bias': _MIXER + 'up_proj.bias',
  'layers.mlp.down': _MIXER + 'down_proj.weight',
  'layers.mlp.down_bias': _MIXER + 'down_proj.bias',
  'layers.mlp.router': _MIXER + 'gate.weight',
  'layers.mlp.correction': _MIXER + 'gate.e_score_correction_bias',
  'layers.mlp.experts.up': _MIXER + 'experts.{}.up_proj.weight',
  'layers.mlp.experts.down': _MIXER + 'experts.{}.down_proj.weight',
  'layers.mlp.shared.up': _MIXER + 'shared_experts.up_proj.weight',
  'layers.mlp.shared.down': _MIXER + 'shared_experts.down_proj.weight',
}
# Without effect on the numbers of a forward pass. `time_step_min` is the lowest
# step size when weights are initialised. transformers also bounds the steps by
# it in one pass over a text, but not while it generates; servers never do.
_WITHOUT_EFFECT = (
  'num_logits_to_keep',
  'use_mamba_kernels',
  'chunk_size',
  'expand',
  'mamba_ssm_cache_dtype',
  'moe_shared_expert_overlap',
  'output_router_logits',
  'residual_in_fp32',
  'rescale_prenorm_residual',
  'hidden_dropout',
  'time_step_min',
  'time_step_max',
  'time_step_floor',
  'num_nextn_predict_layers',
  'mtp_layers_block_type',
)


class NemotronH(Family):
  """Each layer is Mamba 2, attention, an MLP or experts alone."""

  model_type = 'nemotron_h'
  about = About(
    'Nemotron-H, Nemotron Nano 2, Nemotron 3 Nano',
    'Mamba 2; layers of one part; attention without positions; squared ReLU; '
    'experts, chosen by corrected sigmoids, without a gate',
    3.5e-06,
  )
  architecture = 'NemotronHForCausalLM'
  names = _NAMES
  norm_eps = 'layer_norm_epsilon'
  gguf = 'nemotron_h'
  # llama.cpp rotates nothing here, but its converter permutes q and k.
  gguf_interleaved = True
  gguf_epsilon = 'layer_norm_rms_epsilon'
  gguf_by_layer = ('attention.head_count_kv', 'feed_forward_length')
  # Layers that predict further tokens.
  unused_parts = ('mtp.',)
  aliases: Mapping[str, str] = {
    'mamba_n_groups': 'n_groups',
    'mamba_d_conv': 'conv_kernel',
    'mamba_conv_bias': 'use_conv_bias',
    'mamba_dt_limit': 'time_step_limit',
    'num_local_experts': 'n_routed_experts',
  }

  def complete(self, values: dict[str, Any]) -> None:
    # Newer files give the list alone, older ones a string such as 'M-M*'.
    for field in _LISTS:
      layers = values.get(field)
      if isinstance(layers, list | str) and layers:
        values.setdefault('num_hidden_layers', len(layers))

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('mlp_hidden_act', 'relu2')
    f.only('mamba_hidden_act', 'silu')
    # transformers ignores these.
    f.only('attention_bias', False)
    f.only('mamba_proj_bias', False)
    f.only('sliding_window', None)
    f.only('n_shared_experts', 1)
    f.only('tie_word_embeddings', False)
    mamba_fields.no_limit(f)
    f.normalised(*_WITHOUT_EFFECT, 'hybrid_override_pattern')
    names = (mamba_fields.RECURRENT, FULL, _MLP, _EXPERTS)
    types = f.per_layer('layers_block_type', names) or []
    if f.values['num_hidden_layers'] != len(types) and any(
      field in f.values for field in _LISTS
    ):
      raise f.fail(
        'num_hidden_layers', f'{len(types)}, as layers_block_type has'
      )
    kinds = {FULL: LayerKind(None, mlp=Without())}
    if mamba_fields.RECURRENT in types:
      mixer = _mamba(f)
      kinds[mamba_fields.RECURRENT] = LayerKind(
        None, mixer=mixer, mlp=Without()
      )
    if _MLP in types:
      mlp = PlainMLP(f.boolean('mlp_bias'))
      kinds[_MLP] = LayerKind(None, mixer=Without(), mlp=mlp)
    if _EXPERTS in types:
      kinds[_EXPERTS] = LayerKind(None, mixer=Without(), mlp=_experts(f))
    for field, name in _FIELDS_OF.items():
      if name not in types:
        f.normalised(field)
    return {
      'activation': 'relu2',
      'num_layers': len(types),
      'layer_pattern': shortest_pattern([kinds[kind] for kind in types]),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    for field in ('rope_theta', 'rope_scaling', 'hidden_act'):
      del values[field]
    types = []
    for kind in config.layer_kinds:
      if isinstance(kind.mixer, Mamba2):
        types.append(mamba_fields.RECURRENT)
        values |= {
          'mamba_num_heads': kind.mixer.heads,
          'mamba_head_dim': kind.mixer.width,
          'ssm_state_size': kind.mixer.size,
          'n_groups': kind.mixer.groups,
          'conv_kernel': kind.mixer.taps,
          'use_conv_bias': kind.mixer.conv_bias,
          'use_bias': kind.mixer.bias,
        }
      elif isinstance(kind.mlp, PlainMLP):
        types.append(_MLP)
        values['mlp_bias'] = kind.mlp.bias
      elif isinstance(kind.mlp, Experts):
        types.append(_EXPERTS)
        rule = kind.mlp.routing
        values |= {
          'n_routed_experts': rule.experts,
          'num_experts_per_tok': rule.active,
          'norm_topk_prob': rule.normalised,
          'routed_scaling_factor': rule.scale,
          'n_group': rule.groups,
          'topk_group': rule.active_groups,
          'moe_intermediate_size': kind.mlp.width,
          'moe_shared_expert_intermediate_size': kind.mlp.shared,
        }
      else:
        types.append(FULL)
    values['layers_block_type'] = types

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    names = tensor_names.with_gguf_experts(self.names)
    return tensor_names.Form(
      tensor_names.without(names, 'layers.mlp.experts.gate')
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    layers = values['num_hidden_layers']
    attention = metadata.heads_of_layers(values)
    key = '{arch}.feed_forward_length'
    widths = metadata.per_layer(key, layers)
    if not set(widths) <= {0, values['intermediate_size']} or any(
      one and width for one, width in zip(attention, widths, strict=True)
    ):
      raise metadata.unexpected(
        key, widths, 'one width for layers without attention, else 0'
      )
    sparse = metadata.get('{arch}.expert_count')
    types = [
      FULL
      if one
      else _EXPERTS
      if sparse and width
      else _MLP
      if width
      else mamba_fields.RECURRENT
      for one, width in zip(attention, widths, strict=True)
    ]
    values['layers_block_type'] = types
    for field in ('rope_theta', 'rope_scaling'):
      del values[field]
    if mamba_fields.RECURRENT in types:
      layer = types.index(mamba_fields.RECURRENT)
      found: dict[str, Any] = {}
      mamba_fields.read_gguf(metadata, found, layer)
      values |= {
        'mamba_num_heads': found['mamba_n_heads'],
        'mamba_head_dim': found['mamba_d_head'],
        'ssm_state_size': found['mamba_d_state'],
        'n_groups': found['mamba_n_groups'],
        'conv_kernel': found['mamba_d_conv'],
        'use_conv_bias': found['mamba_conv_bias'],
        'use_bias': found['mamba_proj_bias'],
      }
    if _MLP in types:
      layer = types.index(_MLP)
      values['mlp_bias'] = metadata.has_tensor(f'blk.{layer}.ffn_up.bias')
    if sparse:
      expert_fields.read_gguf(
        metadata, values, 'n_routed_experts', 'moe_intermediate_size'
      )
      expert_fields.read_gguf_scores(metadata, values)
      values['moe_shared_expert_intermediate_size'] = metadata.number(
        '{arch}.expert_shared_feed_forward_length'
      )

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    return gguf_stored.recurrent(name, shape) or super().gguf_stored(
      config, name, shape
    )


# Fields of parts that a model may lack.
_FIELDS_OF = {
  **dict.fromkeys(
    (
      'mamba_num_heads',
      'mamba_head_dim',
      'ssm_state_size',
      'n_groups',
      'conv_kernel',
      'use_conv_bias',
      'use_bias',
    ),
    mamba_fields.RECURRENT,
  ),
  **dict.fromkeys(
    (
      'n_routed_experts',
      'num_experts_per_tok',
      'norm_topk_prob',
      'routed_scaling_factor',
      'n_group',
      'topk_group',
      'moe_intermediate_size',
      'moe_shared_expert_intermediate_size',
      'moe_latent_size',
    ),
    _EXPERTS,
  ),
}


def _mamba(f: Fields) -> Mamba2:
  bias = f.boolean('use_bias')
  groups = f.number('n_groups')
  return Mamba2(
    heads=f.number('mamba_num_heads'),
    width=f.number('mamba_head_dim'),
    size=f.number('ssm_state_size'),
    groups=groups,
    taps=f.number('conv_kernel'),
    conv_bias=f.boolean('use_conv_bias', True),
    bias=bias,
    out_bias=bias,
    norm_groups=groups,
  )


def _experts(f: Fields) -> Experts:
  f.only('moe_latent_size', None)
  # Of the MLP beside the experts.
  f.only('mlp_bias', False)
  routing = expert_fields.routing(
    f,
    expert_fields.count(f, 'n_routed_experts'),
    expert_fields.count(f, 'num_experts_per_tok'),
    scores='sigmoid',
    normalised=f.boolean('norm_topk_prob', True),
    floor=1e-20,
    scale=f.number('routed_scaling_factor', float),
    correction=True,
    groups=f.number('n_group'),
    active_groups=f.number('topk_group'),
  )
  return Experts(
    routing,
    f.number('moe_intermediate_size'),
    shared=f.number('moe_shared_expert_intermediate_size'),
    gated=False,
  )
