"""Llama and models of the same form: SmolLM2, Yi, DeepSeek LLM and others."""

from typing import Any

from vtokens.models.decoder_config import LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Llama(Family):
  """Llama 1 to 3."""

  model_type = 'llama'
  about = About(
    'Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2',
    'RoPE scaling llama3, linear, dynamic; biases',
    3.3e-05,
  )
  architecture = 'LlamaForCausalLM'
  gguf: str | None = 'llama'
  gguf_interleaved = True

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {**f.biases(), 'layer_pattern': (LayerKind(rope_json.read(f)),)}


class InternLM3(Llama):
  """Llama under another name."""

  model_type = 'internlm3'
  about = About(
    'InternLM3',
    'head width',
    2.2e-05,
    'as `llama`',
  )
  gguf = None

  def read(self, f: Fields) -> dict[str, Any]:
    # Fields of the publisher's own code, with other names of biases.
    f.only('qkv_bias', False)
    f.only('bias', False)
    return super().read(f)


class IQuestCoder(Llama):
  """Llama under another name."""

  model_type = 'iquestcoder'
  about = About(
    'IQuest-Coder',
    'biases',
    4.9e-06,
    'as `llama`',
  )
  gguf = None
