"""The bias of a token where an answer begins."""

import jax
import numpy as np
import pytest

from vtokens import config
from vtokens.devices import partitioning
from vtokens.method import generate, virtual_tokens
from vtokens.models import frozen_base

PREFIX = np.array([[40, 41, 42]], np.int32)
TOKEN = 77


@pytest.fixture(scope='module')
def base(tiny_dir) -> frozen_base.FrozenBase:
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  settings = config.Base(path=str(tiny_dir), dtype='float32')
  return frozen_base.load_base(settings, mesh)


def answer(
  base, place: int | None, *, blank: bool, token=TOKEN, amount=1000.0
) -> generate.Generated:
  """Five tokens after four; all tokens are blank, or none is."""
  inputs = make_inputs(base, place, blank, token, amount)
  return jax.device_get(
    generate.generate(
      inputs.base,
      inputs.trained,
      inputs.cache,
      inputs.suffixes,
      inputs.endings,
      token_bias=inputs.token_bias,
      graph=base.graph,
      max_new_tokens=5,
    )
  )


def make_inputs(base, place, blank, token, amount) -> generate.Inputs:
  none = np.zeros(base.config.vocab_size, bool)
  positions = np.arange(3, dtype=np.int32)[None]
  pair = None if place is None else (place, token)
  return generate.Inputs(
    base.params,
    np.zeros((1, base.config.embed_dim), np.float32),
    generate.encode_prefix(base.params, PREFIX, positions, graph=base.graph),
    generate.Suffixes(
      np.array([[43]], np.int32),
      np.array([[3]], np.int32),
      None,
      np.array([[0]], np.int32),
    ),
    generate.Endings(np.int32(0), none, none, none | blank),
    token_bias=generate.make_token_bias([[pair]], amount),
  )


@pytest.mark.parametrize('place', [0, 1, 3])
def test_a_bias_comes_after_blank_tokens(base, place):
  plain = answer(base, None, blank=True)
  found = answer(base, place, blank=True)
  ids = found.ids[0, 0].tolist()
  assert ids[:place] == plain.ids[0, 0].tolist()[:place]
  assert ids[place] == TOKEN
  assert TOKEN not in plain.ids
  assert np.isnan(plain.margins).all()
  # From the log-probabilities of that token and of the likeliest one.
  difference = found.log_probs[0, 0, place] - plain.log_probs[0, 0, place]
  assert found.margins[0, 0] == pytest.approx(difference, abs=1e-4)
  assert difference < 0


@pytest.mark.parametrize('place', [0, 2])
def test_a_bias_below_0(base, place):
  """It takes the likeliest token away, and notes how far it was ahead."""
  plain = answer(base, None, blank=True)
  first = int(plain.ids[0, 0, place])
  found = answer(base, place, blank=True, token=first, amount=-1000.0)
  assert found.ids[0, 0, place] != first
  difference = plain.log_probs[0, 0, place] - found.log_probs[0, 0, place]
  assert found.margins[0, 0] == pytest.approx(difference, abs=1e-4)
  assert difference > 0


@pytest.mark.parametrize('place', [0, 1, 3])
def test_a_bias_in_parts(base, place):
  expected = answer(base, place, blank=True)
  inputs = make_inputs(base, place, True, TOKEN, 1000.0)
  trainable = virtual_tokens.TABLE
  progress = generate.begin(
    inputs, graph=base.graph, max_new_tokens=5, trainable=trainable
  )
  for last in (2, 5):
    progress = generate.advance(
      inputs,
      progress,
      np.zeros(1, bool),
      np.int32(last),
      graph=base.graph,
      trainable=trainable,
    )
  np.testing.assert_array_equal(progress.out.ids, expected.ids)
  np.testing.assert_allclose(progress.out.margins, expected.margins, rtol=1e-5)


def test_a_bias_comes_after_no_other_token(base):
  plain = answer(base, None, blank=False)
  found = answer(base, 1, blank=False)
  np.testing.assert_array_equal(found.ids, plain.ids)
  assert np.isnan(found.margins).all()
  assert answer(base, 0, blank=False).ids[0, 0, 0] == TOKEN
