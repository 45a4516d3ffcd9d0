"""VaultGemma."""

from typing import Any

from vtokens.models.families import tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About
from vtokens.models.families.gemma2 import Gemma2


class VaultGemma(Gemma2):
  """Gemma 2 without norms after attention and MLP."""

  model_type = 'vaultgemma'
  about = About('VaultGemma 1B', 'Gemma 2 without norms after', 1.5e-05)
  architecture = 'VaultGemmaForCausalLM'
  names = tensor_names.without(
    tensor_names.BOTH_NORMS,
    'layers.attention_post_norm.scale',
    'layers.mlp_post_norm.scale',
  )
  gguf = None

  def read(self, f: Fields) -> dict[str, Any]:
    return {**super().read(f), 'post_norm': False}
