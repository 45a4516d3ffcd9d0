"""Llama and models of the same form: SmolLM2, Yi, DeepSeek LLM and others."""

from typing import Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family


class Llama(Family):
  """Llama 1 to 3."""

  model_type = 'llama'
  about = About(
    'Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2',
    'RoPE scaling llama3, linear, dynamic; biases',
    2.1e-05,
  )
  architecture = 'LlamaForCausalLM'
  gguf: str | None = 'llama'

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {**f.biases(), 'layer_pattern': (LayerKind(rope_json.read(f)),)}

  def gguf_rows(
    self, config: DecoderConfig, name: str, rows: int
  ) -> np.ndarray | None:
    if '.self_attn.q_proj.' in name:
      return interleaved_rows(rows, config.num_heads)
    if '.self_attn.k_proj.' in name:
      return interleaved_rows(rows, config.num_kv_heads)
    return None


class InternLM3(Llama):
  """Llama under another name."""

  model_type = 'internlm3'
  about = About(
    'InternLM3',
    'head width',
    2.1e-05,
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
  )
  gguf = None


def interleaved_rows(rows: int, num_heads: int) -> np.ndarray:
  """Order in which llama.cpp stores the rows of q and k.

  For architecture llama, llama.cpp rotates neighbouring pairs, so its converter
  interleaves the two halves of each head (rows 0, H/2, 1, H/2 + 1, ...).
  Hugging Face rotates row i with row i + H/2. See `LlamaModel.permute` in
  convert_hf_to_gguf.py.

  Args:
    rows: rows of the matrix, `num_heads * H`.
    num_heads: heads of the matrix.

  Returns:
    For each row in Hugging Face's order, its row in the file.
  """
  pairs = np.arange(rows).reshape(num_heads, rows // num_heads // 2, 2)
  return pairs.swapaxes(1, 2).reshape(rows)
