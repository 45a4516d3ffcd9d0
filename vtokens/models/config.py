"""Shape and constants of a decoder, and their Hugging Face form."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vtokens import errors

SUPPORTED_MODEL_TYPES = ('llama',)

# Fields of a Hugging Face config that change the numbers and of which only
# the value given here is implemented. A missing field means this value too:
# these are the defaults of transformers' own LlamaConfig.
_FIXED = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'quantization_config': None,
  # Weights split by rank for inference on several hosts (LLaMA 1 exports);
  # the sum order would differ from ours.
  'pretraining_tp': 1,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture of a Llama-type decoder.

  Attributes:
    vocab_size: rows of the embedding matrix (V); virtual token i has the id
      `vocab_size + i`.
    embed_dim: width of the residual stream (D).
    num_layers: decoder blocks (L).
    num_heads: query heads (N).
    num_kv_heads: key and value heads (K), a divisor of N.
    head_dim: width of a head (H), even.
    mlp_dim: width of the gated MLP (F).
    norm_eps: added to the mean square in RMSNorm.
    rope_theta: base of the rotary frequencies.
    max_positions: longest sequence that the model was trained for, in tokens.
    tie_embeddings: whether the head is the embedding matrix.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  norm_eps: float = 1e-6
  rope_theta: float = 10_000.0
  max_positions: int = 2048
  tie_embeddings: bool = False

  def __post_init__(self):
    # ValueError: who builds it from a file adds the file's name.
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'head_dim={self.head_dim} is odd: rotary embeddings turn pairs'
      )

  @property
  def num_params(self) -> int:
    """Number of weights, a tied head counted once."""
    attention = (
      2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
    )
    layer = attention + 3 * self.embed_dim * self.mlp_dim + 2 * self.embed_dim
    matrices = 1 if self.tie_embeddings else 2
    return (
      matrices * self.vocab_size * self.embed_dim
      + self.num_layers * layer
      + self.embed_dim
    )


def from_hf(
  config: Mapping[str, Any], where: str = 'config.json'
) -> DecoderConfig:
  """Reads a `DecoderConfig` out of a Hugging Face `config.json`.

  Args:
    config: the parsed JSON object.
    where: what to call it in errors, e.g. its path.

  Returns:
    The `DecoderConfig`.

  Raises:
    errors.UserError: a field is missing, or has a value that this decoder
      does not implement. Nothing that changes the numbers is ignored.
  """
  model_type = config.get('model_type')
  if model_type not in SUPPORTED_MODEL_TYPES:
    raise errors.UserError(
      f'{where}: model_type is {model_type!r}, not supported; supported: '
      f'{", ".join(SUPPORTED_MODEL_TYPES)}'
    )
  for field, expected in _FIXED.items():
    found = config.get(field, expected)
    if found != expected:
      raise errors.UserError(
        f'{where}: {field} is {found!r}, not supported; expected {expected!r}'
      )

  values = {'rope_theta': 10_000.0, **config}
  # What transformers 5 and 4 call the same thing; in both the inner theta
  # goes before the outer one.
  for field in ('rope_parameters', 'rope_scaling'):
    rope = config.get(field) or {}
    if not _is_plain_rope(rope):
      raise errors.UserError(
        f'{where}: {field} is {rope!r}, not supported; expected rope_type '
        "'default'"
      )
    if 'rope_theta' in rope:
      values['rope_theta'] = rope['rope_theta']
  tied = config.get('tie_word_embeddings', False)
  if not isinstance(tied, bool):
    raise errors.UserError(
      f'{where}: tie_word_embeddings is {tied!r}, expected bool'
    )

  def get(field: str, kind: type = int, default: int | None = None):
    value = values.get(field)
    # Files write null where a value follows from others.
    value = default if value is None else value
    # bool is an int to Python, and 1 is a valid float.
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if value is None or not number or not value > 0:
      found = 'missing' if value is None else repr(value)
      raise errors.UserError(
        f'{where}: {field} is {found}, expected a positive {kind.__name__}'
      )
    return kind(value)

  num_heads = get('num_attention_heads')
  embed_dim = get('hidden_size')
  try:
    return DecoderConfig(
      vocab_size=get('vocab_size'),
      embed_dim=embed_dim,
      num_layers=get('num_hidden_layers'),
      num_heads=num_heads,
      num_kv_heads=get('num_key_value_heads', default=num_heads),
      head_dim=get('head_dim', default=embed_dim // num_heads),
      mlp_dim=get('intermediate_size'),
      norm_eps=get('rms_norm_eps', float),
      rope_theta=get('rope_theta', float),
      max_positions=get('max_position_embeddings'),
      tie_embeddings=tied,
    )
  except ValueError as e:
    raise errors.UserError(f'{where}: {e}') from None


def _is_plain_rope(rope: Any) -> bool:
  """Whether a rope_scaling or rope_parameters value means no scaling."""
  if not isinstance(rope, Mapping):
    return False
  kind = rope.get('rope_type', rope.get('type', 'default'))
  return kind == 'default' and not set(rope) - {
    'rope_type',
    'type',
    'rope_theta',
  }
