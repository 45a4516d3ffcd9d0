"""The Pallas kernel for GPUs, interpreted, against `attention.attend`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens import partitioning
from vtokens.models import attention, flash
from vtokens.models.kv_cache import KVCache

_B, _N = 2, 4


def _normal(rng, *shape, dtype=np.float32):
  return jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype)


def _inputs(length, segments, *, kv_heads=2, head_dim=64, dtype=np.float32):
  """Queries and keys of two rows, the second shorter than the first.

  Args:
    length: of a row.
    segments: of the examples in it, their (start, stop); None for one example
      without segments.
    kv_heads: fewer than the queries' heads.
    head_dim: width of a head.
    dtype: of both.
  """
  rng = np.random.default_rng(0)
  q = 2 * _normal(rng, _B, length, _N, head_dim, dtype=dtype)
  k = _normal(rng, _B, kv_heads, head_dim, length, dtype=dtype)
  v = _normal(rng, _B, kv_heads, length, head_dim, dtype=dtype)
  positions = np.full((_B, length), -1, np.int32)
  numbers = np.full((_B, length), -1, np.int32)
  parts = segments or [(0, length - 9)]
  for number, (start, stop) in enumerate(parts):
    positions[:, start:stop] = np.arange(stop - start)
    numbers[:, start:stop] = number
  positions[1, parts[-1][1] - 5 :] = -1
  numbers[1, parts[-1][1] - 5 :] = -1
  return q, KVCache(
    k, v, jnp.asarray(positions), None if segments is None else numbers
  )


def _both(q, new, **settings):
  """What the kernel gives, and what is expected."""
  mesh = partitioning.make_mesh((1, 1, 1))
  settings = {'scale': 0.3, **settings}
  found = jax.jit(
    lambda q, new: flash.attend(q, new, mesh, **settings, interpret=True)
  )(q, new)
  expected = attention.attend(q, new, [], **settings)
  assert found.shape == expected.shape and found.dtype == expected.dtype
  # What padding holds is passed on to the next layer.
  assert np.isfinite(np.asarray(found, np.float32)).all()
  there = np.asarray(new.positions) >= 0
  return [np.asarray(x, np.float32)[there] for x in (found, expected)]


@pytest.mark.parametrize(
  'length, segments, settings',
  [
    (200, None, {}),
    (128, None, {'softcap': 2.0}),
    (200, [(0, 70), (70, 180)], {}),
    # Whole blocks of padding, of one segment, and of several.
    (640, [(0, 3), (3, 4), (4, 300), (300, 310), (310, 420)], {}),
    (256, [(0, 70), (70, 236)], {'softcap': 2.0}),
    (300, [(0, 70), (70, 280)], {'window': 30}),
    (520, None, {'window': 7, 'softcap': 2.0}),
    # One that differs between layers, of which one has none.
    (300, [(0, 70), (70, 280)], {'window': jnp.int32(100)}),
    (300, [(0, 70), (70, 280)], {'window': jnp.int32(2**30)}),
  ],
)
def test_against_einsums(length, segments, settings):
  found, expected = _both(*_inputs(length, segments), **settings)
  # Scores of up to 60 have a rounding error of 4e-6.
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  'kv_heads, head_dim', [(1, 64), (4, 80), (2, 128), (1, 256)]
)
def test_heads(kv_heads, head_dim):
  inputs = _inputs(
    150, [(0, 70), (70, 141)], kv_heads=kv_heads, head_dim=head_dim
  )
  found, expected = _both(*inputs, scale=head_dim**-0.5)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16():
  q, new = _inputs(300, [(0, 70), (70, 280)], dtype=jnp.bfloat16)
  found, expected = _both(q, new, scale=0.1)
  exact, _ = _both(
    q.astype(jnp.float32),
    KVCache(
      new.k.astype(jnp.float32),
      new.v.astype(jnp.float32),
      new.positions,
      new.segments,
    ),
    scale=0.1,
  )
  error, usual = np.abs(found - exact), np.abs(expected - exact)
  assert error.max() < 1.2 * usual.max()
  assert error.mean() < 1.2 * usual.mean()


def test_blocks_that_are_needed():
  positions = np.full((1, 512), -1, np.int32)
  segments = np.full((1, 512), -1, np.int32)
  for number, (start, stop) in enumerate([(0, 130), (130, 300), (300, 380)]):
    positions[0, start:stop] = np.arange(stop - start)
    segments[0, start:stop] = number
  first, last = flash._bounds(positions, segments, None, 128, 64)
  # 130 to 300 begins in the third block of keys.
  assert first.tolist() == [[0, 0, 2, 0]]
  assert last.tolist() == [[2, 4, 6, 0]]
  first, last = flash._bounds(positions, segments, np.int32([10]), 128, 64)
  assert first[0, 0] == 0 and last.tolist() == [[2, 4, 6, 0]]


class _Device:
  platform = 'gpu'

  def __init__(self, kind):
    self.device_kind = kind


class _Mesh:
  def __init__(self, kind):
    self.devices = np.array([_Device(kind)])


@pytest.mark.parametrize(
  'kind, dtype, length, caches, expected',
  [
    ('NVIDIA H100 80GB HBM3', jnp.bfloat16, 128, (), True),
    ('NVIDIA H200', jnp.float16, 5120, (), True),
    ('NVIDIA H100 80GB HBM3', jnp.bfloat16, 127, (), False),
    ('NVIDIA H100 80GB HBM3', jnp.float32, 128, (), False),
    ('NVIDIA H100 80GB HBM3', jnp.bfloat16, 128, ('prefix',), False),
    ('Tesla T4', jnp.bfloat16, 128, (), False),
  ],
)
def test_when_it_is_used(kind, dtype, length, caches, expected):
  q = jax.ShapeDtypeStruct((2, length, 4, 64), dtype)
  assert flash.is_for(_Mesh(kind), q, caches) == expected


def test_not_on_cpus():
  q = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
  assert not flash.is_for(partitioning.make_mesh((1, 1, 1)), q, ())
