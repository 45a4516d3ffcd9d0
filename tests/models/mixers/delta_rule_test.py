"""Tests of vtokens.models.mixers.delta_rule against the token by token rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens.models.mixers import delta_rule, packed_segments

KEYS, VALUES, A, C = 2, 4, 8, 6


def _inputs(rng, rows, tokens):
  def normal(*shape):
    return rng.normal(size=(rows, tokens, *shape)).astype(np.float32)

  k = normal(KEYS, A) + 1.5  # Alike: the triangular system is far from I.
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  decay = -np.exp(normal(VALUES))
  return normal(KEYS, A), k, normal(VALUES, C), decay, _sigmoid(normal(VALUES))


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _one_by_one(inputs, state, tokens):
  """Outputs at some tokens of one row, and the state after them; float64."""
  outputs = []
  for t in tokens:
    q, k, v, decay, rate = (x[t].astype(np.float64) for x in inputs)
    q, k = (np.repeat(x, VALUES // KEYS, axis=0) for x in (q, k))
    state = np.exp(decay)[:, None, None] * state
    change = rate[:, None] * (v - np.einsum('na,nac->nc', k, state))
    state = state + np.einsum('na,nc->nac', k, change)
    outputs.append(np.einsum('na,nac->nc', q, state))
  return outputs, state


@functools.partial(jax.jit, static_argnames=('count', 'length'))
def _scan(inputs, positions, segments, parents, initial, *, count, length):
  order = packed_segments.segment_order(positions, segments, parents, count)
  return delta_rule.scan(*inputs, order, initial, length)


@pytest.mark.parametrize('length', [1, 16, None])
def test_chunks_equal_the_recurrence(length):
  """Packed rows, padding, segments that continue others, one without tokens."""
  rng = np.random.default_rng(3)
  segments = np.full((2, 70), -1, np.int32)
  segments[0, :40], segments[0, 40:65] = 2, 0
  segments[1, 3:21], segments[1, 21], segments[1, 22:60] = 0, 1, 2
  of = np.array([1, 0, 1])
  parents = np.where(segments < 0, -1, of[segments]).astype(np.int32)
  positions = np.where(segments < 0, -1, 7).astype(np.int32)
  initial = rng.normal(size=(2, 2, VALUES, A, C)).astype(np.float32)
  inputs = _inputs(rng, 2, 70)
  y, states = _scan(
    inputs, positions, segments, parents, initial, count=3, length=length
  )
  for row in range(2):
    for segment in range(3):
      (tokens,) = np.nonzero(segments[row] == segment)
      if not len(tokens):
        continue
      found, state = _one_by_one(
        [x[row] for x in inputs], initial[row, of[segment]], tokens
      )
      np.testing.assert_allclose(y[row, tokens], found, rtol=0, atol=1e-5)
      np.testing.assert_allclose(states[row, segment], state, rtol=0, atol=1e-5)
  assert not np.asarray(y)[segments < 0].any()


def test_padding_gets_no_gradient_and_gives_none():
  rng = np.random.default_rng(4)
  inputs = _inputs(rng, 1, 24)
  positions = np.where(np.arange(24) < 17, 0, -1).astype(np.int32)[None]

  def total(inputs):
    y, states = _scan(inputs, positions, None, None, None, count=1, length=None)
    return (y**2).sum() + (states**2).sum()

  gradients = jax.grad(total)(inputs)
  alone = jax.grad(
    lambda part: sum(
      (x**2).sum()
      for x in _scan(
        part, positions[:, :17], None, None, None, count=1, length=1
      )
    )
  )([jnp.asarray(x[:, :17]) for x in inputs])
  for found, expected in zip(gradients, alone, strict=True):
    assert not np.asarray(found)[:, 17:].any()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
      found[:, :17], expected, rtol=0, atol=1e-5 * max(scale, 1)
    )


@pytest.mark.parametrize('length', [8, 64])
def test_gradients_do_not_depend_on_chunks(length):
  """Chunks of one token have no triangular system."""
  rng = np.random.default_rng(5)
  inputs = [jnp.asarray(x) for x in _inputs(rng, 1, 70)]
  positions = np.zeros((1, 70), np.int32)
  weights = rng.normal(size=(1, 70, VALUES, C)).astype(np.float32)

  def total(inputs, length):
    y, states = _scan(
      inputs, positions, None, None, None, count=1, length=length
    )
    return (weights * y).sum() + (states**2).sum()

  found, expected = (jax.grad(total)(inputs, n) for n in (length, 1))
  for one, other in zip(found, expected, strict=True):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(scale, 1))
