"""Tests of vtokens.method.optim."""

import jax.numpy as jnp
import numpy as np
import pytest

from vtokens import config
from vtokens.method import optim

_COS = {n: (1 + np.cos(np.pi * n / 4)) / 2 for n in range(4)}


@pytest.mark.parametrize(
  'schedule, warmup, expected',
  [
    ('constant', 0, [1, 1, 1, 1]),
    ('constant', 3, [1 / 4, 2 / 4, 3 / 4, 1, 1]),
    ('linear', 0, [1, 3 / 4, 2 / 4, 1 / 4]),
    ('linear', 1, [1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]),
    ('cosine', 0, [_COS[0], _COS[1], _COS[2], _COS[3]]),
    ('cosine', 2, [1 / 3, 2 / 3, _COS[0], _COS[1], _COS[2], _COS[3]]),
  ],
)
def test_schedule(schedule, warmup, expected):
  peak = 0.3
  settings = config.Optim(
    learning_rate=peak, warmup_steps=warmup, schedule=schedule
  )
  rate = optim.make_schedule(settings, len(expected))
  rates = [float(rate(step)) for step in range(len(expected))]
  np.testing.assert_allclose(rates, np.multiply(peak, expected), rtol=1e-6)
  # A step of rate 0 would be computed for nothing.
  assert min(rates) > 0
  if schedule != 'constant':
    assert float(rate(len(expected))) == pytest.approx(0, abs=1e-8)


def test_no_step_of_a_long_run_has_rate_0():
  settings = config.Optim(learning_rate=1e-3, warmup_steps=100)
  rates = optim.make_schedule(settings, 1000)(np.arange(1000))
  assert float(rates.min()) > 0
  assert float(rates.max()) == pytest.approx(1e-3)
  assert int(rates.argmax()) == 100


def _settings(**overrides):
  return config.Optim(
    **{
      'learning_rate': 0.1,
      'warmup_steps': 0,
      'schedule': 'constant',
      'b1': 0.5,
      'b2': 0.75,
      'eps': 0.5,
      **overrides,
    }
  )


def _update(settings, *grads):
  """The last of the updates for these gradients."""
  optimizer = optim.make_optimizer(settings, 10)
  table = jnp.zeros_like(jnp.asarray(grads[0], jnp.float32))
  state = optimizer.init(table)
  for grad in grads:
    update, state = optimizer.update(
      jnp.asarray(grad, jnp.float32), state, table
    )
  return np.asarray(update)


def test_adam_by_hand():
  # First step, bias corrected: m = g, v = g^2; second: m = (m1/2 + g2/2)/0.75,
  # v = (0.75 * 0.25 g1^2 + 0.25 g2^2) / (1 - 0.75^2).
  first, second = 0.6, -0.2
  update = _update(_settings(clip_norm=0.0), [[first]], [[second]])
  m = (0.5 * 0.5 * first + 0.5 * second) / 0.75
  v = (0.75 * 0.25 * first**2 + 0.25 * second**2) / (1 - 0.75**2)
  np.testing.assert_allclose(
    update, [[-0.1 * m / (np.sqrt(v) + 0.5)]], rtol=1e-5
  )


@pytest.mark.parametrize(
  'clip_norm, factor', [(1.0, 0.2), (2.5, 0.5), (5.0, 1.0), (0.0, 1.0)]
)
def test_clips_by_the_norm_of_the_whole_table(clip_norm, factor):
  grad = np.array([[3.0, 0.0], [0.0, 4.0]])
  seen = factor * grad
  np.testing.assert_allclose(
    _update(_settings(clip_norm=clip_norm), grad),
    -0.1 * seen / (np.abs(seen) + 0.5),
    rtol=1e-5,
  )


def test_rows_without_gradient_stay():
  # Weight decay would move them, and those of a large table most of the time.
  optimizer = optim.make_optimizer(_settings(), 10)
  table = jnp.ones((2, 3))
  grad = jnp.asarray([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
  update, _ = optimizer.update(grad, optimizer.init(table), table)
  assert np.all(np.asarray(update)[0] < 0)
  assert np.all(np.asarray(update)[1] == 0)
