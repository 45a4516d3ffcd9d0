"""Frequencies of rotary embeddings, scaled for long contexts.

Every type follows transformers' `modeling_rope_utils.py`, in float32 and in the
same order of operations. Rounding errors of a frequency grow with the position,
so they must equal the errors of the model's training.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens.models.decoder_config import Rope

TYPES = (
  *('default', 'linear', 'dynamic', 'yarn', 'llama3', 'longrope'),
  'proportional',
)


def frequencies(rope: Rope, dim: int, length: int) -> np.ndarray:
  """Radians per position of each rotated pair.

  The types dynamic and longrope depend on the length of the sequence.
  transformers takes the length of the sequence at hand. Here passages are
  encoded before the length is known, and later tokens must be rotated alike. So
  one length holds for the whole run, as in servers of such models.

  Args:
    rope: type and constants of the embedding.
    dim: rotated values of a head (R).
    length: longest sequence, in tokens, for types dynamic and longrope.

  Returns:
    Array of shape [R / 2], float32.
  """
  exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
  theta = rope.theta
  if rope.type == 'dynamic' and length > rope.original_max_positions:
    # "NTK-aware" scaling by `length`.
    stretch = rope.factor * length / rope.original_max_positions
    theta *= (stretch - (rope.factor - 1)) ** (dim / (dim - 2))
  periods = np.float32(theta) ** exponents
  if rope.type == 'longrope':
    factors = (
      rope.long_factor
      if length > rope.original_max_positions
      else rope.short_factor
    )
    return 1 / (np.asarray(factors, np.float32) * periods)
  plain = 1 / periods
  if rope.type == 'linear':
    return plain / np.float32(rope.factor)
  if rope.type == 'proportional':
    turned = np.arange(dim // 2) < int(rope.share * dim // 2)
    return np.where(turned, plain / np.float32(rope.factor), np.float32(0))
  if rope.type == 'yarn':
    return _yarn(rope, dim, periods)
  if rope.type == 'llama3':
    return _llama3(rope, plain)
  return plain


def check(rope: Rope | None, dim: int) -> None:
  """Raises unless the constants of a rotary embedding give finite frequencies.

  Args:
    rope: type and constants of the embedding; None for no embedding.
    dim: see `frequencies`.

  Raises:
    ValueError: a frequency or the scale is not finite in float32. An example is
      YaRN with theta 1, which divides by the logarithm of theta.
  """
  if rope is None:
    return
  # Types that depend on the length have one form up to the original length and
  # another beyond it.
  lengths = (rope.original_max_positions, rope.original_max_positions + 1)
  try:
    with np.errstate(all='ignore'):
      found = [frequencies(rope, dim, length) for length in lengths]
      found.append(np.asarray(rope.attention_factor, np.float32))
  except (ArithmeticError, ValueError, TypeError) as e:
    found, why = [], f' ({e})'
  else:
    why = ''
  if not found or not all(np.isfinite(x).all() for x in found):
    given = {
      key: value
      for key, value in dataclasses.asdict(rope).items()
      if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    raise ValueError(
      f'rope_type {rope.type!r} gives no finite frequencies{why} with '
      + ', '.join(f'{key}={value}' for key, value in given.items())
    )


def regime(rope: Rope, length: int) -> str | None:
  """Says how the length of a run decides the scaling; None if it does not."""
  if rope.type not in ('dynamic', 'longrope'):
    return None
  long = length > rope.original_max_positions
  what = {
    ('dynamic', True): 'stretched',
    ('dynamic', False): 'not stretched',
    ('longrope', True): 'the long factors',
    ('longrope', False): 'the short factors',
  }[rope.type, long]
  return (
    f'rotary scaling {rope.type}: {what}, at any position, since sequences '
    f'have up to {length:,} tokens, {"" if long else "not "}more than '
    f'{rope.original_max_positions:,}'
  )


def _yarn(rope: Rope, dim: int, periods: np.ndarray) -> np.ndarray:
  """Stretches slow frequencies, keeps fast ones (arXiv 2309.00071, §3.2)."""

  def index_of(rotations: float) -> float:
    turns = rope.original_max_positions / (rotations * 2 * math.pi)
    return dim * math.log(turns) / (2 * math.log(rope.theta))

  low, high = index_of(rope.beta_fast), index_of(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  if low == high:
    high += 0.001
  index = np.arange(dim // 2, dtype=np.float32)
  ramp = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
  kept = 1 - ramp
  stretched = 1 / (np.float32(rope.factor) * periods)
  mixed: np.ndarray = stretched * (1 - kept) + 1 / periods * kept
  return mixed


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Stretches long wavelengths, keeps short ones, interpolates between."""
  wavelengths = np.float32(2 * math.pi) / plain
  longest = rope.original_max_positions / rope.low_freq_factor
  shortest = rope.original_max_positions / rope.high_freq_factor
  factor = np.float32(rope.factor)
  scaled = np.where(wavelengths > longest, plain / factor, plain)
  if rope.high_freq_factor == rope.low_freq_factor:
    return scaled  # Nothing is between them.
  smooth = (
    np.float32(rope.original_max_positions) / wavelengths
    - np.float32(rope.low_freq_factor)
  ) / np.float32(rope.high_freq_factor - rope.low_freq_factor)
  between = (1 - smooth) * scaled / factor + smooth * scaled
  middle = ~(wavelengths < shortest) & ~(wavelengths > longest)
  return np.where(middle, between, scaled)


def angles(
  positions: Int[Array, 'B T'], rope: Rope | None, dim: int, length: int
) -> tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']]:
  """Cosines and sines for `rotate`, float32.

  Args:
    positions: positions of the tokens, int32.
    rope: the rotary embedding; None for no rotation.
    dim: see `frequencies`.
    length: see `frequencies`.
  """
  if rope is None:
    shape = (*positions.shape, 1, dim // 2)
    return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
  turns = positions[..., None, None].astype(jnp.float32) * frequencies(
    rope, dim, length
  )
  scale = rope.attention_factor
  return jnp.cos(turns) * scale, jnp.sin(turns) * scale


def rotate(
  x: Float[Array, 'B T N H'],
  cos_sin: tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']],
  *,
  interleaved: bool = False,
) -> Float[Array, 'B T N H']:
  """Rotates pairs of values of each head by their angles, in float32.

  Values of a head from R on do not change.

  Args:
    x: queries or keys.
    cos_sin: see `angles`.
    interleaved: whether pair i is (2i, 2i + 1) instead of (i, i + R/2).
  """
  cos, sin = cos_sin
  half = cos.shape[-1]
  rotated = x[..., : 2 * half].astype(jnp.float32)
  if interleaved:
    first, second = rotated[..., ::2], rotated[..., 1::2]
  else:
    first, second = rotated[..., :half], rotated[..., half:]
  parts = [first * cos - second * sin, second * cos + first * sin]
  if interleaved:
    turned = jnp.stack(parts, axis=-1).reshape(rotated.shape)
  else:
    turned = jnp.concatenate(parts, axis=-1)
  turned = turned.astype(x.dtype)
  return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)
