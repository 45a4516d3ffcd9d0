"""The scan of Mamba 2 next to the recurrence, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens.models.mixers import packed_segments, selective_scan

_HEADS, _GROUPS, _WIDTH, _SIZE = 4, 2, 3, 5


def _numbers(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


_DECAY = -np.array([0.3, 1.0, 4.0, 16.0], np.float32)


def _inputs(rows, tokens):
  return (
    _numbers(0, rows, tokens, _HEADS, _WIDTH),
    np.exp(_numbers(1, rows, tokens, _HEADS) - 1),
    _numbers(2, rows, tokens, _GROUPS, _SIZE),
    _numbers(3, rows, tokens, _GROUPS, _SIZE),
  )


def _sequential(x, steps, b, c, state):
  """The outputs and the last state of one sequence."""
  outputs = []
  for t in range(len(x)):
    # Heads of a group are neighbours.
    own_b, own_c = (np.repeat(v[t], _HEADS // _GROUPS, axis=0) for v in (b, c))
    kept = np.exp(steps[t] * _DECAY)[:, None, None] * state
    state = kept + (steps[t][:, None] * x[t])[..., None] * own_b[:, None]
    outputs.append((state * own_c[:, None]).sum(axis=-1))
  return np.array(outputs).reshape(x.shape), state


@jax.jit(static_argnames=('count', 'length'))
def _run(inputs, positions, segments, parents, initial, *, count, length=None):
  order = packed_segments.segment_order(positions, segments, parents, count)
  x, steps, b, c = inputs
  return selective_scan.scan(x, steps, _DECAY, b, c, order, initial, length)


# Segments of 9, 4 and no tokens; then of 1, 5 and 8, which take turns.
_SEGMENTS = np.array(
  [
    [-1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 1, 1, 1, 1, -1],
    [2, 1, 1, 2, 2, 2, -1, 1, 1, -1, 0, 2, 2, 2, 2, 1],
  ],
  np.int32,
)


@pytest.mark.parametrize('length', [1, 4, 16])
@pytest.mark.parametrize('continued', [False, True])
def test_segments_and_padding(length, continued):
  positions = np.where(_SEGMENTS < 0, -1, 5).astype(np.int32)
  inputs = _inputs(*_SEGMENTS.shape)
  for values in inputs:
    values[_SEGMENTS < 0] = np.nan
  before = _numbers(4, 2, 2, _HEADS, _WIDTH, _SIZE)
  parents = np.array([1, 1, 0], np.int32)
  y, last = _run(
    inputs,
    positions,
    _SEGMENTS,
    parents[np.maximum(_SEGMENTS, 0)],
    before if continued else None,
    count=3,
    length=length,
  )
  assert (np.asarray(y)[_SEGMENTS < 0] == 0).all()
  for row in range(2):
    for number in range(3):
      at = _SEGMENTS[row] == number
      state = before[row, parents[number]] * continued
      expected, final = _sequential(*(v[row][at] for v in inputs), state)
      np.testing.assert_allclose(y[row][at], expected, rtol=1e-5, atol=1e-5)
      if at.any():
        np.testing.assert_allclose(last[row, number], final, atol=1e-5)


def test_parts_equal_the_whole():
  """Long parts, single tokens, and a segment without a token in a part."""
  inputs = _inputs(1, 200)
  segments = np.repeat(np.array([[0, 1]], np.int32), 100, axis=1)
  state, parts = None, []
  for start, stop in [(0, 70), (70, 71), (71, 72), (72, 130), (130, 200)]:
    part, state = _run(
      [v[:, start:stop] for v in inputs],
      np.ones((1, stop - start), np.int32),
      segments[:, start:stop],
      None,
      state,
      count=2,
    )
    parts.append(part)
  for number in range(2):
    at = segments[0] == number
    zeros = np.zeros((_HEADS, _WIDTH, _SIZE), np.float32)
    expected, final = _sequential(*(v[0][at] for v in inputs), zeros)
    found = np.concatenate(parts, axis=1)[0, at]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[0, number], final, atol=1e-5)


def test_gradients():
  """They are those of the recurrence."""
  inputs = _inputs(1, 12)
  segments = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 1, 1, 1, -1]], np.int32)
  positions = np.where(segments < 0, -1, 0).astype(np.int32)
  initial = _numbers(5, 1, 2, _HEADS, _WIDTH, _SIZE)
  direction = _numbers(6, *inputs[0].shape)

  def loss(inputs):
    y, _ = _run(inputs, positions, segments, None, initial, count=2, length=4)
    return (y * direction).sum()

  def plain(inputs):
    total = 0.0
    for number in range(2):
      state = jnp.asarray(initial[0, number])
      for t in np.flatnonzero(segments[0] == number):
        x, steps, b, c = (v[0, t] for v in inputs)
        b, c = (jnp.repeat(v, _HEADS // _GROUPS, axis=0) for v in (b, c))
        state = jnp.exp(steps * _DECAY)[:, None, None] * state
        state += (steps[:, None] * x)[..., None] * b[:, None]
        total += ((state * c[:, None]).sum(-1) * direction[0, t]).sum()
    return total

  for one, other in zip(
    jax.grad(loss)(inputs), jax.jit(jax.grad(plain))(inputs), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
