"""The selective state space of Mamba 2 (arXiv 2405.21060), by matrix products.

Each head has a state of P x S numbers. A token with the inputs x (P numbers), B
and C (S numbers each) and the step size d changes it, and reads its output:

  state = exp(d * A) * state + d * x B^T        y = state C

Tokens are taken in chunks. Within a chunk, outputs are products of matrices as
in attention; between chunks, the states are carried on.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vtokens.models.mixers import packed_segments
from vtokens.models.mixers.packed_segments import Chunks, SegmentOrder


def scan(
  x: Float[Array, 'B T N P'],
  steps: Float[Array, 'B T N'],
  decay: Float[Array, 'N'],
  b: Float[Array, 'B T R S'],
  c: Float[Array, 'B T R S'],
  order: SegmentOrder,
  initial: Float[Array, 'B E N P S'] | None = None,
  length: int | None = None,
) -> tuple[Float[Array, 'B T N P'], Float[Array, 'B G N P S']]:
  """Runs the recurrence over the tokens of each segment, in float32.

  Args:
    x: inputs of each head.
    steps: step sizes, not negative, float32.
    decay: A of each head, negative, float32.
    b: B of each group of heads (R groups).
    c: C of each group of heads.
    order: the segments; padding changes no state.
    initial: states of the E earlier segments, float32; None for zeros.
    length: tokens of a chunk; None for `packed_segments.chunk_length`.

  Returns:
    Outputs, float32, 0 at padding; and the state of each segment after its last
    token, float32.
  """
  rows, tokens, heads, width = x.shape
  groups, size = b.shape[2:]
  chunks = packed_segments.chunks(order, length)
  q = chunks.length

  def split(values: Array, *shape: int) -> Array:
    """Values of the chunks, with the axis of a chunk's slots behind heads."""
    parts = chunks.split(values.reshape(rows, tokens, -1))
    parts = parts.astype(jnp.float32).reshape(rows, -1, q, *shape)
    return jnp.moveaxis(parts, 2, -2)

  # The heads of a group are neighbours: N = R x K.
  k = heads // groups
  x = split(x, groups, k, width)
  b, c = split(b, groups, size), split(c, groups, size)
  # 0 in empty slots, which thus change nothing.
  steps = split(steps, groups, k, 1)[..., 0]
  grown = jnp.cumsum(steps * decay.reshape(groups, k, 1), axis=-1)
  x = x * steps[..., None]

  # Within a chunk. Differences are masked before the exponential, which could
  # overflow otherwise.
  since = grown[..., :, None] - grown[..., None, :]
  earlier = jnp.tril(jnp.ones((q, q), bool))
  weights = jnp.exp(jnp.where(earlier, since, -jnp.inf))
  scores = jnp.einsum('bmrts,bmrus->bmrtu', c, b)
  y = jnp.einsum('bmrktu,bmrkup->bmrktp', scores[:, :, :, None] * weights, x)

  # The state that each chunk adds, and the states before and after each chunk.
  left = jnp.exp(grown[..., -1:] - grown)
  added = jnp.einsum('bmrus,bmrkup->bmrkps', b, x * left[..., None])
  before, after = _states(chunks, grown[..., -1], added, initial)
  read = jnp.einsum('bmrts,bmrkps->bmrktp', c, before)
  y = y + read * jnp.exp(grown)[..., None]
  y = jnp.moveaxis(y, -2, 2)

  final = packed_segments.of_parents(after, chunks.last)
  if initial is not None:
    # A segment without tokens keeps its state.
    kept = jnp.where(chunks.last < 0, order.of_segments, -1)
    final = final.reshape(rows, -1, *initial.shape[2:])
    final = final + packed_segments.of_parents(initial, kept)
  joined = chunks.join(y.reshape(rows, -1, q, heads * width))
  return (
    joined.reshape(rows, tokens, heads, width),
    final.reshape(rows, -1, heads, width, size),
  )


def _states(
  chunks: Chunks,
  grown: Float[Array, 'B M R K'],
  added: Float[Array, 'B M R K P S'],
  initial: Float[Array, 'B E N P S'] | None,
) -> tuple[Float[Array, 'B M R K P S'], Float[Array, 'B M R K P S']]:
  """The states before and after each chunk.

  Args:
    chunks: the chunks.
    grown: logarithm of the factor that each chunk gives to its first state.
    added: what each chunk adds to it.
    initial: see `scan`.
  """
  number = grown.shape[1]
  # Logarithm of the factor between the end of chunk u and the start of chunk t:
  # sums, because differences of sums over a whole row lose digits.
  index = jnp.arange(number)
  between = (index[:, None] > index)[..., None, None]
  same = chunks.segments[:, :, None] == chunks.segments[:, None]
  same = same[..., None, None] & between
  sums = jnp.where(between, grown[:, :, None], 0)
  sums = jnp.cumsum(sums, axis=1)
  # From after chunk u to before chunk t.
  sums = jnp.concatenate([jnp.zeros_like(sums[:, :1]), sums[:, :-1]], axis=1)
  factors = jnp.exp(jnp.where(same, sums, -jnp.inf))
  before = jnp.einsum('bmurk,burkps->bmrkps', factors, added)
  if initial is not None:
    first = packed_segments.of_parents(initial, chunks.parents)
    first = first.reshape(added.shape)
    # From the start of the segment.
    total = jnp.where(same, grown[:, None], 0).sum(axis=2)
    before = before + jnp.exp(total)[..., None, None] * first
  return before, jnp.exp(grown)[..., None, None] * before + added
