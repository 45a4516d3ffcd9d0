"""Short convolutions: segments, padding, and one call after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vtokens.models.mixers import causal_conv, packed_segments

_KERNEL, _CHANNELS = 4, 3


def _numbers(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


_WEIGHT = _numbers(1, _CHANNELS, _KERNEL)
_BIAS = _numbers(2, _CHANNELS)


def _torch(inputs):
  """The outputs of one sequence, an array of shape [T, C]."""
  y = torch.nn.functional.conv1d(
    torch.from_numpy(inputs.T[None].copy()),
    torch.from_numpy(_WEIGHT[:, None]),
    torch.from_numpy(_BIAS),
    padding=_KERNEL - 1,
    groups=_CHANNELS,
  )
  return y[0].T.numpy()[: len(inputs)]


@jax.jit
def _run(x, positions, segments, parents, initial):
  order = packed_segments.segment_order(positions, segments, parents, 3)
  return causal_conv.convolve(x, _WEIGHT, order, bias=_BIAS, initial=initial)


# Segments of 5, 2 and 1 tokens; padding before, between, within and after; the
# last row is one of two segments whose tokens take turns.
_SEGMENTS = np.array(
  [
    [-1, 0, 0, 0, 0, -1, 0, 1, 1, -1, 2, -1],
    [0, 0, -1, 0, 0, 0, 1, -1, 1, 2, -1, -1],
    [0, 1, 0, 0, 1, -1, 0, -1, 0, -1, 2, -1],
  ],
  np.int32,
)
_POSITIONS = np.where(_SEGMENTS < 0, -1, 7).astype(np.int32)


def _sequences(row, x):
  return [x[row][_SEGMENTS[row] == number] for number in range(3)]


@pytest.mark.parametrize('continued', [None, 'own', 'others'])
def test_segments_and_padding(continued):
  """Each segment is a sequence of its own, after the one it continues."""
  x = _numbers(0, *_SEGMENTS.shape, _CHANNELS)
  x[_SEGMENTS < 0] = np.nan
  before = _numbers(3, 3, 3, _KERNEL - 1, _CHANNELS)
  own = np.arange(3)
  parents = {None: own, 'own': own, 'others': np.array([1, 1, 0])}[continued]
  y, last = _run(
    x,
    _POSITIONS,
    _SEGMENTS,
    parents[np.maximum(_SEGMENTS, 0)] if continued == 'others' else None,
    before if continued else None,
  )
  assert (np.asarray(y)[_SEGMENTS < 0] == 0).all()
  for row in range(3):
    for number, new in enumerate(_sequences(row, x)):
      old = before[row, parents[number]]
      inputs = np.concatenate([old if continued else 0 * old, new])
      np.testing.assert_allclose(
        np.asarray(y)[row][_SEGMENTS[row] == number],
        _torch(inputs)[_KERNEL - 1 :],
        rtol=0,
        atol=1e-6,
      )
      np.testing.assert_array_equal(last[row, number], inputs[1 - _KERNEL :])


def test_parts_equal_the_whole():
  """One row, in two parts and then a token at a time."""
  x = _numbers(0, 2, 12, _CHANNELS)
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
  whole, last = _run(x, positions, None, None, None)
  initial, parts = None, []
  for start, stop in [(0, 1), (1, 7), (7, 8), (8, 9), (9, 12)]:
    part, initial = _run(
      x[:, start:stop], positions[:, start:stop], None, None, initial
    )
    parts.append(part)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)
  np.testing.assert_array_equal(initial[:, 0], last[:, 0])
  np.testing.assert_allclose(whole[0], _torch(x[0]), rtol=0, atol=1e-6)


def test_gradients():
  """They are those of a product with the matrix of the whole row."""
  x = np.nan_to_num(_numbers(0, *_SEGMENTS.shape, _CHANNELS))
  before = _numbers(3, 3, 3, _KERNEL - 1, _CHANNELS)
  direction = _numbers(4, *x.shape)

  def loss(x, weight):
    order = packed_segments.segment_order(_POSITIONS, _SEGMENTS, None, 3)
    y, last = causal_conv.convolve(x, weight, order, initial=before)
    return (y * direction).sum() + jnp.square(last).sum()

  def plain(x, weight):
    total = 0.0
    for row in range(3):
      for number in range(3):
        at = np.flatnonzero(_SEGMENTS[row] == number)
        inputs = jnp.concatenate([before[row, number], x[row, at]])
        total += jnp.square(inputs[1 - _KERNEL :]).sum()
        for i, token in enumerate(at):
          y = (inputs[i : i + _KERNEL] * weight.T).sum(axis=0)
          total += (y * direction[row, token]).sum()
    return total

  found = jax.jit(jax.grad(loss, (0, 1)))(x, _WEIGHT)
  for one, other in zip(
    found, jax.grad(plain, (0, 1))(x, _WEIGHT), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
