"""The Pallas kernel, interpreted, against a plain softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens.devices import partitioning
from vtokens.models.kernels import splash
from vtokens.models.kv_cache import KVCache

_B, _N, _K = 2, 4, 2


def _expected(q, k, v, positions, segments, scale, softcap, window, sinks):
  """Array of shape [B, T, N, H], float64; rows of padding are zero."""
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(q.shape[:3]):
    if positions[b, t] < 0:
      continue
    seen = (positions[b] >= 0) & (positions[b] <= positions[b, t])
    seen &= segments[b] == segments[b, t]
    if window is not None:
      seen &= positions[b] > positions[b, t] - window
    kv = n // (_N // _K)
    scores = scale * (k[b, kv, :, seen] @ q[b, t, n].astype(np.float64))
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    sink = -np.inf if sinks is None else sinks[n]
    weights = np.exp(scores - scores.max())
    total = weights.sum() + np.exp(sink - scores.max())
    out[b, t, n] = weights @ v[b, kv, seen] / total
  return out


@pytest.mark.parametrize(
  'length, packed, softcap, window, sinks, width',
  [
    (200, False, None, None, None, 64),
    (200, True, None, None, None, 64),
    (256, True, 2.0, None, None, 64),
    (300, True, None, 30, (-30.0, 0.0, 3.0, 12.0), 64),
    (130, False, 2.0, 7, None, 64),
    # As some layers of Gemma 4.
    (200, True, None, None, None, 512),
  ],
)
def test_against_numpy(length, packed, softcap, window, sinks, width):
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  # Sums of more numbers round more: smaller scores for wide heads.
  q = 128 / width * normal(_B, length, _N, width)
  k, v = normal(_B, _K, width, length), normal(_B, _K, length, width)
  positions = np.full((_B, length), -1, np.int32)
  segments = np.full((_B, length), -1, np.int32)
  parts = [(0, 70, 0), (70, length - 20, 1)] if packed else [(0, length - 9, 0)]
  for start, stop, number in parts:
    positions[:, start:stop] = np.arange(stop - start)
    segments[:, start:stop] = number
  # The second row has less.
  positions[1, parts[-1][1] - 5 :] = -1
  new = KVCache(k, v, positions, segments if packed else None)
  found = jax.jit(
    lambda q, new: splash.attend(
      q,
      new,
      partitioning.make_mesh((1, 1, 1)),
      scale=0.3,
      softcap=softcap,
      window=window,
      sinks=None if sinks is None else jnp.asarray(sinks),
      interpret=True,
    )
  )(jnp.asarray(q), new)
  expected = _expected(
    q, k, v, positions, segments, 0.3, softcap, window, sinks
  )
  there = positions >= 0
  # Scores of up to 60 have a rounding error of 4e-6.
  np.testing.assert_allclose(
    np.asarray(found)[there], expected[there], atol=1e-5
  )
