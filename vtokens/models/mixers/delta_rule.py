"""The gated delta rule (arXiv 2412.06464) by matrix products.

Each head has a state S of A x C numbers. A token with a query q, a key k, a
value v, a decay g <= 0 and a rate b changes it, and reads its output:

  S = exp(g) S        S = S + b k (v - k S)        y = q S

Tokens are taken in chunks. Within a chunk, the changes of all tokens follow
from one triangular system (arXiv 2406.06484); between chunks, the states are
carried on.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models.mixers import packed_segments
from vtokens.models.mixers.packed_segments import SegmentOrder

# Width of blocks that are inverted by products of whole blocks.
_SMALL = 8


def scan(
  q: Float[Array, 'B T R A'],
  k: Float[Array, 'B T R A'],
  v: Float[Array, 'B T N C'],
  decay: Float[Array, 'B T N'],
  rate: Float[Array, 'B T N'],
  order: SegmentOrder,
  initial: Float[Array, 'B P N A C'] | None = None,
  length: int | None = None,
) -> tuple[Float[Array, 'B T N C'], Float[Array, 'B G N A C']]:
  """Runs the recurrence over the tokens of each segment, in float32.

  Args:
    q: queries; the first N / R value heads share the first query and key, and
      so on.
    k: keys.
    v: values.
    decay: logarithms of decays, not positive, float32.
    rate: rates between 0 and 1.
    order: the segments; padding changes no state.
    initial: states of the P earlier segments, float32; None for zeros.
    length: tokens of a chunk, a power of two; None for
      `packed_segments.chunk_length`.

  Returns:
    Outputs, float32, 0 at padding; and the state of each segment after its last
    token, float32.
  """
  rows, tokens, heads, width = v.shape
  groups, size = q.shape[2:]
  each = heads // groups
  chunks = packed_segments.chunks(order, length)
  slots = chunks.length

  def split(values: Array, *shape: int) -> Array:
    """Values of the chunks, with the axis of a chunk's slots behind heads."""
    parts = chunks.split(values.reshape(rows, tokens, -1))
    parts = parts.astype(jnp.float32).reshape(rows, -1, slots, *shape)
    return jnp.moveaxis(parts, 2, -2)

  # 0 in empty slots, which thus change nothing.
  q, k = split(q, groups, size), split(k, groups, size)
  v = split(v, groups, each, width)
  rate = split(rate, groups, each, 1)
  grown = jnp.cumsum(split(decay, groups, each, 1)[..., 0], axis=-1)

  # Differences are masked before the exponential, which could overflow.
  since = grown[..., :, None] - grown[..., None, :]
  weights = jnp.exp(
    jnp.where(jnp.tril(jnp.ones((slots, slots), bool)), since, -jnp.inf)
  )
  alike = jnp.einsum('bmrta,bmrua->bmrtu', k, k)[:, :, :, None]
  solve = _unit_inverse(rate * weights * alike)
  own = jnp.einsum('bmrktu,bmrkuc->bmrktc', solve, rate * v)
  left = jnp.exp(grown)[..., None]
  k = k[:, :, :, None]
  read = jnp.einsum('bmrktu,bmrkua->bmrkta', solve, rate * left * k)
  within = jnp.einsum('bmrta,bmrua->bmrtu', q, k[:, :, :, 0])[:, :, :, None]
  within = within * weights
  asked = q[:, :, :, None] * left
  written = k * jnp.exp(grown[..., -1:] - grown)[..., None]
  whole = jnp.exp(grown[..., -1])[..., None, None]

  count = order.counts.shape[1]
  shape = (rows, count, groups, each, size, width)
  states = jnp.zeros(shape, jnp.float32)
  if initial is not None:
    first = packed_segments.of_parents(initial, order.of_segments)
    states = first.astype(jnp.float32).reshape(shape)

  def step(states: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
    segment, own, read, within, asked, written, whole = chunk
    state = _of_segment(states, segment)
    changes = own - jnp.einsum('brkta,brkac->brktc', read, state)
    y = jnp.einsum('brkta,brkac->brktc', asked, state)
    y = y + jnp.einsum('brktu,brkuc->brktc', within, changes)
    added = jnp.einsum('brkta,brktc->brkac', written, changes)
    return _with_segment(states, segment, whole * state + added), y

  parts = (chunks.segments, own, read, within, asked, written, whole)
  states, y = jax.lax.scan(
    step, states, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), parts)
  )
  y = jnp.moveaxis(y, (0, -2), (1, 2)).reshape(rows, -1, slots, heads * width)
  joined = chunks.join(y).reshape(rows, tokens, heads, width)
  return joined, states.reshape(rows, count, heads, size, width)


@jax.custom_vjp
def _unit_inverse(x: Float[Array, '*B Q Q']) -> Float[Array, '*B Q Q']:
  """The inverse of `I + strictly lower part of x`, for Q a power of two.

  Small blocks of the diagonal are inverted first. Pairs of inverted blocks are
  then joined until there is one block.
  """
  size = x.shape[-1]
  width = min(size, _SMALL)
  found = _small_inverse(_blocks(x, width, 0))
  while width < size:
    above, below = found[..., 0::2, :, :], found[..., 1::2, :, :]
    corner = -_exact(_exact(below, _blocks(x, width, 1)), above)
    found = jnp.concatenate(
      [
        jnp.concatenate([above, jnp.zeros_like(above)], axis=-1),
        jnp.concatenate([corner, below], axis=-1),
      ],
      axis=-2,
    )
    width *= 2
  return found[..., 0, :, :]


def _small_inverse(x: Float[Array, '*B W W']) -> Float[Array, '*B W W']:
  """`_unit_inverse` of small matrices: the same by products of whole ones.

  Arrays of single numbers and of pairs compile slowly, above all for TPUs.
  """
  size = x.shape[-1]
  numbers = jnp.arange(size)
  found = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype), x.shape)
  width = 1
  while width < size:
    block = numbers // width
    odd = block[:, None] % 2 == 1
    corner = odd & (block[:, None] == block[None, :] + 1)
    part = jnp.where(corner, x, 0)
    found = found - (part if width == 1 else _exact(_exact(found, part), found))
    width *= 2
  return found


def _blocks(
  x: Float[Array, '*B Q Q'], width: int, below: int
) -> Float[Array, '*B P W W']:
  """Blocks of the diagonal, or the one below the diagonal of each pair."""
  starts = range(0, x.shape[-1], width * (1 + below))
  return jnp.stack(
    [
      x[..., at + below * width : at + (1 + below) * width, at : at + width]
      for at in starts
    ],
    axis=-3,
  )


def _unit_inverse_forward(x: Array) -> tuple[Array, Array]:
  found = _unit_inverse(x)
  return found, found


def _unit_inverse_backward(found: Array, gradient: Array) -> tuple[Array]:
  # The derivative of an inverse Y is -Y dX Y.
  turned = jnp.swapaxes(found, -1, -2)
  whole = _exact(_exact(turned, gradient), turned)
  return (-jnp.tril(whole, -1),)


_unit_inverse.defvjp(_unit_inverse_forward, _unit_inverse_backward)


def _exact(x: Float[Array, '*B Q Q'], y: Float[Array, '*B Q Q']) -> Array:
  # Small, and errors would grow from block to block.
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _of_segment(
  states: Float[Array, 'B G *C'], segment: Int[Array, 'B']
) -> Float[Array, 'B *C']:
  if states.shape[1] == 1:
    return states[:, 0]
  found: Array = packed_segments.of_parents(states, segment[:, None])[:, 0]
  return found


def _with_segment(
  states: Float[Array, 'B G *C'],
  segment: Int[Array, 'B'],
  state: Float[Array, 'B *C'],
) -> Float[Array, 'B G *C']:
  """The states with one replaced; none if the number is not below G."""
  if states.shape[1] == 1:
    return state[:, None]
  is_it = segment[:, None] == jnp.arange(states.shape[1])
  is_it = is_it.reshape(*is_it.shape, *(1,) * (states.ndim - 2))
  return jnp.where(is_it, state[:, None], states)
