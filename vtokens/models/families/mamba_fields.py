"""Fields of config.json and names of tensors that Mamba 2 layers share."""

import math
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families.config_json import FULL, Fields
from vtokens.models.mixers.mamba2 import Mamba2

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

# In `layer_types`.
RECURRENT = 'linear_attention'


def names(prefix: str, module: str = 'layers.attention.') -> dict[str, str]:
  """Names of the tensors of a Mamba 2 layer.

  Args:
    prefix: beginning of the tensors' names.
    module: beginning of the parameters' paths.
  """
  # The order of the rows of the joined tensors.
  inputs = ('gate', 'x', 'b', 'c', 'step')
  found: dict[str, str] = {}
  for end, kind in (('', 'weight'), ('_bias', 'bias')):
    found |= {f'in_{name}{end}': f'in_proj.{kind}' for name in inputs}
    found |= {f'conv_{name}{end}': f'conv1d.{kind}' for name in 'xbc'}
    found |= {f'out{end}': f'out_proj.{kind}'}
  found |= {
    'log_decay': 'A_log',
    'step_bias': 'dt_bias',
    'skip': 'D',
    'gated_norm': 'norm.weight',
  }
  return {module + path: prefix + name for path, name in found.items()}


def no_limit(f: Fields) -> None:
  """Raises if step sizes are bounded.

  transformers bounds them in one pass over a text and not while it generates.
  """
  f.only('time_step_limit', [0.0, math.inf], (0.0, math.inf), None)


def read(f: Fields, **more: Any) -> Mamba2:
  """The mixer of families with fields `mamba_*`.

  Args:
    f: the fields.
    more: settings of the mixer that the family reads itself.
  """
  f.only('hidden_act', 'silu')
  no_limit(f)
  # Only rounding depends on it.
  f.normalised('mamba_chunk_size')
  groups = f.number('mamba_n_groups')
  heads, width = f.number('mamba_n_heads'), f.number('mamba_d_head')
  inner = f.get('mamba_d_ssm')
  field = 'mamba_expand' if inner is None else 'mamba_d_ssm'
  if inner is None:
    inner = f.number('mamba_expand') * f.number('hidden_size')
  else:
    f.normalised('mamba_expand')
  if inner != heads * width:
    raise f.fail(
      field, f'a width of {heads} heads of {width}, {heads * width} in all'
    )
  bias = f.boolean('mamba_proj_bias')
  settings = {
    'heads': heads,
    'width': width,
    'size': f.number('mamba_d_state'),
    'groups': groups,
    'taps': f.number('mamba_d_conv'),
    'conv_bias': f.boolean('mamba_conv_bias', True),
    'bias': bias,
    'out_bias': bias,
    'norm_groups': groups,
  }
  return Mamba2(**{**settings, **more})


def write(mixer: Mamba2, config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets the fields `mamba_*`."""
  values |= {
    'mamba_n_heads': mixer.heads,
    'mamba_d_head': mixer.width,
    'mamba_d_state': mixer.size,
    'mamba_n_groups': mixer.groups,
    'mamba_d_conv': mixer.taps,
    'mamba_expand': mixer.heads * mixer.width // config.embed_dim,
    'mamba_conv_bias': mixer.conv_bias,
    'mamba_proj_bias': mixer.bias,
  }


def of(config: DecoderConfig) -> Mamba2 | None:
  """The Mamba 2 layers of a decoder; None if it has none."""
  found = (kind.mixer for kind in config.layer_kinds)
  return next((mixer for mixer in found if isinstance(mixer, Mamba2)), None)


def layer_types(config: DecoderConfig) -> list[str]:
  """`layer_types` of Mamba 2 and attention layers."""
  return [RECURRENT if kind.mixer else FULL for kind in config.layer_kinds]


def read_gguf(metadata: 'Metadata', values: dict[str, Any], layer: int) -> None:
  """Sets the fields `mamba_*` from the metadata of a GGUF file.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.
    layer: a layer with Mamba 2.

  Raises:
    errors.UserError: a value is missing or wrong.
  """
  heads, width = metadata.state_heads()
  values |= {
    'mamba_n_heads': heads,
    'mamba_d_head': width,
    'mamba_d_state': metadata.number('{arch}.ssm.state_size'),
    'mamba_n_groups': metadata.number('{arch}.ssm.group_count'),
    'mamba_d_conv': metadata.number('{arch}.ssm.conv_kernel'),
    'mamba_conv_bias': metadata.has_tensor(f'blk.{layer}.ssm_conv1d.bias'),
    'mamba_proj_bias': metadata.has_tensor(f'blk.{layer}.ssm_in.bias'),
  }
