"""Scores of queries over one part of the keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models import layers
from vtokens.models.kv_cache import KVCache

# The score of a key that a query does not see. Finite instead of -inf: a
# padding query sees no key, and its (unused) softmax must not become NaN.
UNSEEN = float(jnp.finfo(jnp.float32).min)


def masked_scores(
  q: Float[Array, 'B K T G H'],
  positions: Int[Array, 'B T'],
  segments: Int[Array, 'B T'] | None,
  cache: KVCache,
  *,
  scale: float,
  softcap: float | None,
  window: Int[Array, ''] | int | None,
) -> Float[Array, 'B K T G S']:
  """Computes scores, `UNSEEN` where a query does not see a slot.

  Queries may be wider than keys: in latent attention, values are a part of the
  keys. The rest of a query is then multiplied with the values.

  Args:
    q: rotated queries, grouped by key-value head.
    positions: positions of the queries.
    segments: segments of the queries, numbered as in the cache.
    cache: the keys.
    scale: see `attention.attend`.
    softcap: see `attention.attend`.
    window: see `attention.attend`.

  Returns:
    Scores, float32.
  """
  width = cache.k.shape[-2]
  scores = jnp.einsum(
    'bktgh,bkhs->bktgs',
    q[..., :width],
    cache.k,
    preferred_element_type=jnp.float32,
  )
  if q.shape[-1] > width:
    scores += jnp.einsum(
      'bktgh,bksh->bktgs',
      q[..., width:],
      cache.v,
      preferred_element_type=jnp.float32,
    )
  scores = layers.softcap(scores * scale, softcap)
  slot = cache.positions[:, None, None, None, :]
  query = positions[:, None, :, None, None]
  seen = (slot >= 0) & (slot <= query)
  if window is not None:
    seen &= slot > query - window
  if segments is not None and cache.segments is not None:
    seen &= (
      cache.segments[:, None, None, None, :] == segments[:, None, :, None, None]
    )
  return jnp.where(seen, scores, UNSEEN)
