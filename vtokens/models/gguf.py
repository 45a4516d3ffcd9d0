"""Weights of a GGUF file, dequantised and put back in Hugging Face order."""

import pathlib
import re
from typing import Any

import gguf
import numpy as np

from vtokens import errors
from vtokens.models import hf
from vtokens.models.config import DecoderConfig

# GGUF tensor name -> Hugging Face name, `{}` being the layer.
_NAMES = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output.weight': 'lm_head.weight',
  'output_norm.weight': 'model.norm.weight',
  'blk.{}.attn_norm.weight': 'model.layers.{}.input_layernorm.weight',
  'blk.{}.attn_q.weight': 'model.layers.{}.self_attn.q_proj.weight',
  'blk.{}.attn_k.weight': 'model.layers.{}.self_attn.k_proj.weight',
  'blk.{}.attn_v.weight': 'model.layers.{}.self_attn.v_proj.weight',
  'blk.{}.attn_output.weight': 'model.layers.{}.self_attn.o_proj.weight',
  'blk.{}.ffn_norm.weight': 'model.layers.{}.post_attention_layernorm.weight',
  'blk.{}.ffn_gate.weight': 'model.layers.{}.mlp.gate_proj.weight',
  'blk.{}.ffn_up.weight': 'model.layers.{}.mlp.up_proj.weight',
  'blk.{}.ffn_down.weight': 'model.layers.{}.mlp.down_proj.weight',
}
_LAYER = re.compile(r'blk\.(\d+)\.')


class GGUFSource:
  """The tensors of a GGUF file under their Hugging Face names.

  Raises:
    errors.UserError: the file is missing, not GGUF, or of another
      architecture than llama.
  """

  def __init__(self, path: str | pathlib.Path):
    self.where = str(path)
    try:
      self._reader = gguf.GGUFReader(path)
    except FileNotFoundError:
      raise errors.UserError(f'{path}: not found') from None
    # Depending on where a damaged file ends or goes wrong.
    except (OSError, ValueError, IndexError, KeyError) as e:
      raise errors.UserError(
        f'{path}: not a readable GGUF file ({e})'
      ) from None
    if self._reader.endianess != gguf.GGUFEndian.LITTLE:
      raise errors.UserError(f'{path}: big-endian GGUF is not supported')
    self.architecture = self._field('general.architecture')
    if self.architecture != 'llama':
      raise errors.UserError(
        f'{path}: general.architecture is {self.architecture!r}, not '
        'supported; supported: llama'
      )
    self.config = self._read_config()
    self._tensors = {}
    for tensor in self._reader.tensors:
      name = _hf_name(tensor.name)
      # llama.cpp's own table of long-context factors; none for plain RoPE.
      if name is None:
        raise errors.UserError(
          f'{path}: tensor {tensor.name} is not supported for llama'
        )
      self._tensors[name] = tensor

  def _field(self, key: str, default: Any = ...) -> Any:
    field = self._reader.get_field(key)
    if field is None:
      if default is ...:
        raise errors.UserError(f'{self.where}: metadata {key} is missing')
      return default
    try:
      return field.contents()
    except UnicodeDecodeError as e:
      raise errors.UserError(
        f'{self.where}: metadata {key} is no text ({e}): the file is damaged'
      ) from None

  def _number(self, key: str, kind: type = int, default: Any = ...) -> Any:
    value = self._field(key, default)
    # Some architectures have one value per layer; llama has not.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not number or not value > 0:
      raise errors.UserError(
        f'{self.where}: metadata {key} is {value!r}, expected a positive '
        f'{kind.__name__}'
      )
    return kind(value)

  def _check_rope(self, head_dim: int) -> None:
    # llama.cpp takes a factor without a type for linear scaling; 0 and 1
    # mean none.
    for key, plain in (
      ('llama.rope.scaling.type', ('none',)),
      ('llama.rope.scaling.factor', (0, 1)),
      ('llama.rope.scale_linear', (0, 1)),
      ('llama.rope.dimension_count', (head_dim,)),
    ):
      found = self._field(key, plain[0])
      if found not in plain:
        raise errors.UserError(
          f'{self.where}: {key} is {found!r}, not supported; expected '
          f'{plain[-1]!r}'
        )

  def _read_config(self) -> DecoderConfig:
    if self._field('llama.expert_count', 0):
      raise errors.UserError(
        f'{self.where}: mixture-of-experts models are not supported'
      )
    heads = self._number('llama.attention.head_count')
    embed_dim = self._number('llama.embedding_length')
    head_dim = self._number(
      'llama.attention.key_length', default=embed_dim // heads
    )
    self._check_rope(head_dim)
    names = {tensor.name: tensor for tensor in self._reader.tensors}
    if 'token_embd.weight' not in names:
      raise errors.UserError(
        f'{self.where}: tensor token_embd.weight is missing'
      )
    try:
      return DecoderConfig(
        # GGUF lists dimensions fastest first: [D, V].
        vocab_size=int(names['token_embd.weight'].shape[1]),
        embed_dim=embed_dim,
        num_layers=self._number('llama.block_count'),
        num_heads=heads,
        num_kv_heads=self._number(
          'llama.attention.head_count_kv', default=heads
        ),
        head_dim=head_dim,
        mlp_dim=self._number('llama.feed_forward_length'),
        norm_eps=self._number('llama.attention.layer_norm_rms_epsilon', float),
        rope_theta=self._number('llama.rope.freq_base', float, 10_000.0),
        max_positions=self._number('llama.context_length'),
        tie_embeddings='output.weight' not in names,
      )
    except ValueError as e:
      raise errors.UserError(f'{self.where}: {e}') from None

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `hf.TensorSource`."""
    return {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }

  def read(self, name: str) -> np.ndarray:
    """See `hf.TensorSource`; always f32."""
    tensor = self._tensors[name]
    try:
      array = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as e:
      raise errors.UserError(
        f'{self.where}: tensor {tensor.name} is quantised as '
        f'{tensor.tensor_type.name}, which the gguf package cannot read ({e})'
      ) from None
    array = array.reshape(self.shapes()[name])
    if name.endswith('q_proj.weight'):
      return unpermute(array, self.config.num_heads)
    if name.endswith('k_proj.weight'):
      return unpermute(array, self.config.num_kv_heads)
    return array

  def sample(self, name: str) -> bytes:
    """See `hf.TensorSource`."""
    return hf.spread(self._tensors[name].data.reshape(-1).view(np.uint8))


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes llama.cpp's reordering of the rows of q and k.

  Its converter interleaves the two halves of each head (rows 0, H/2, 1,
  H/2 + 1, ...) because it rotates neighbouring pairs; Hugging Face rotates
  row i with row i + H/2. See `LlamaModel.permute` in convert_hf_to_gguf.py.

  Args:
    weight: `[num_heads * H, D]`.
    num_heads: of this matrix.

  Returns:
    `[num_heads * H, D]` in Hugging Face order.
  """
  rows, dim = weight.shape
  pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, dim)
  return pairs.swapaxes(1, 2).reshape(rows, dim)


def _hf_name(name: str) -> str | None:
  layer = _LAYER.match(name)
  if layer is None:
    return _NAMES.get(name)
  generic = _NAMES.get(_LAYER.sub('blk.{}.', name))
  return generic and generic.format(layer[1])
