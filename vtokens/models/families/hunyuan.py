"""Hunyuan: dense models."""

from typing import Any

from vtokens.models.decoder_config import LayerKind, Rope
from vtokens.models.families import rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

# Other fields of a rotary embedding with `alpha`. transformers ignores them.
_BESIDE_ALPHA = {
  *('rope_type', 'type', 'rope_theta', 'alpha', 'factor'),
  *('beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim'),
}


class HunyuanDense(Family):
  """Norms of heads after their rotation."""

  model_type = 'hunyuan_v1_dense'
  about = About(
    'Hunyuan 0.5B to 7B (dense)',
    'norms of rotated q and k, a base of frequencies stretched by alpha',
    3.5e-06,
  )
  architecture = 'HunYuanDenseV1ForCausalLM'
  names = tensor_names.HUNYUAN
  gguf = 'hunyuan-dense'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.only('pretraining_tp', 1)
    f.normalised('eod_token_id')  # Of the tokenizer.
    f.no_window()
    return {
      **f.biases(),
      'qk_norm': 'head',
      'qk_norm_last': True,
      'layer_pattern': (LayerKind(_rope(f)),),
    }


def _rope(f: Fields) -> Rope:
  """The rotary embedding; `alpha` stretches its base for all lengths."""
  found = f.get('rope_parameters') or {}
  kind = found.get('rope_type', found.get('type'))
  if kind != 'dynamic' or not found.get('alpha'):
    return rope_json.read(f)
  alpha = f.number('alpha', float, inside=found)
  theta = f.number('rope_theta', float, inside=found)
  unknown = sorted(found.keys() - _BESIDE_ALPHA)
  if unknown:
    raise f.fail(unknown[0], 'none beside alpha', found[unknown[0]])
  width = f.head_dim()
  if width < 3:
    raise f.fail('head_dim', 'more than 2 beside alpha', width)
  return Rope(theta=theta * alpha ** (width / (width - 2)))
