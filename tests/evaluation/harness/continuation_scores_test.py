"""Scores of continuations do not depend on batches, neighbours or devices."""

import os
import subprocess
import sys

import decoder_cases
import numpy as np
import pytest
import tiny_models
import xla_flags

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation.harness import continuation_scores, prompt_batches
from vtokens.evaluation.harness.continuation_scores import Item
from vtokens.host import stopping
from vtokens.models import frozen_base

HEADER = 'The following are multiple choice questions about tides.\n'
# Prompts that begin alike, one that is only that beginning, and a short one.
TEXTS = [
  (HEADER + 'Question: why?\nAnswer:', [' the moon', ' wind', ' moon, sun']),
  (HEADER + 'Question: how often each day?\nAnswer:', [' twice', ' x']),
  (HEADER, ['yes', 'no', 'perhaps so', 'é', '½ of it']),
  (HEADER + 'Q', ['a', 'a']),
  ('?', [' true', ' false']),
]


def make_item(base, prompt, options):
  encode = base.tokenizer.encode
  return Item(
    np.asarray(encode(prompt), np.int32),
    tuple(np.asarray(encode(text), np.int32) for text in options),
  )


def score(base, items, batch_size=4):
  found = [[]] * len(items)
  for index, scores in continuation_scores.score(
    base,
    partitioning.make_mesh((-1, 1, 1)),
    items,
    table=prompt_batches.no_table(base),
    batch_size=batch_size,
    label='',
    stop=stopping.StopRequest(),
  ):
    for i, part in zip(index, scores, strict=True):
      found[i] = [score.log_probability for score in part]
  return found


@pytest.fixture(scope='module')
def base(tiny_dir):
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


@pytest.fixture(scope='module')
def items(base):
  return [make_item(base, prompt, options) for prompt, options in TEXTS]


@pytest.fixture(scope='module')
def together(base, items):
  return score(base, items)


def test_equal_options_have_equal_scores(together):
  a, b = together[3]
  assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize('batch_size', [1, 3])
def test_batches_do_not_matter(base, items, together, batch_size):
  for one, other in zip(score(base, items, batch_size), together, strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-6)


def test_neighbours_and_order_do_not_matter(base, items, together):
  reverse = score(base, items[::-1])[::-1]
  for item, there, back in zip(items, together, reverse, strict=True):
    [alone] = score(base, [item])
    np.testing.assert_allclose(alone, there, rtol=2e-6)
    np.testing.assert_allclose(back, there, rtol=2e-6)


def test_options_do_not_see_one_another(base, items, together):
  for number, option in enumerate(items[0].options):
    [[alone]] = score(base, [Item(items[0].prompt, (option,))])
    np.testing.assert_allclose(alone, together[0][number], rtol=2e-6)


@pytest.mark.exhaustive
def test_options_continue_one_state(tmp_path, items):
  """Of a base with recurrent layers, whose prompts begin alike."""
  tiny_models.save(tmp_path, model_type='qwen3_5_text', **decoder_cases.DELTA)
  base = frozen_base.load_base(
    config.Base(path=str(tmp_path), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )
  together = score(base, items[:2], batch_size=2)
  for item, scores in zip(items, together, strict=False):
    for option, there in zip(item.options, scores, strict=True):
      [[alone]] = score(base, [Item(item.prompt, (option,))])
      np.testing.assert_allclose(alone, there, rtol=1e-5)


@pytest.mark.parametrize(
  ('prompts', 'common'),
  [
    ([[1, 2, 3], [1, 2, 4]], 2),
    ([[1, 2], [1, 2]], 1),
    ([[1, 2], [1, 2, 3]], 1),
    ([[1, 2, 3], [1, 2, 4], [1, 5, 4]], 1),
    ([[1, 2, 3]], 2),
    ([[1], [1, 2]], 0),
    ([[1, 2], [3, 2]], 0),
  ],
)
def test_common_start(prompts, common):
  arrays = [np.array(ids, np.int32) for ids in prompts]
  assert prompt_batches.common_start(arrays) == common


def test_prompts_that_begin_alike_are_a_group():
  def prompts(first, count):
    return [
      np.r_[np.full(128, first), i].astype(np.int32) for i in range(count)
    ]

  found = prompt_batches.groups([*prompts(1, 3), *prompts(2, 4)], 3)
  assert found == [[0, 1, 2], [3, 4, 5, 6]]
  # Too few for a batch.
  found = prompt_batches.groups([*prompts(1, 3), *prompts(2, 4)], 4)
  assert found == [[3, 4, 5, 6], [0, 1, 2]]


def test_lengths_are_padded_to_few_sizes():
  sizes = [prompt_batches.bucket(n, 32) for n in range(2049)]
  assert sorted(set(sizes)) == [
    *[32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
  ]
  assert all(n <= size for n, size in enumerate(sizes))


# Eight devices on three axes: rows and weights are spread, and 5 prompts leave
# rows of padding.
SHARDED = """
import sys
sys.path[:0] = sys.argv[3:]
import numpy as np
import continuation_scores_test as t
from vtokens import config
from vtokens.devices import partitioning
from vtokens.models import frozen_base
mesh = partitioning.make_mesh((2, 2, 2))
base = frozen_base.load_base(
  config.Base(path=sys.argv[1], dtype='float32'), mesh
)
partitioning.make_mesh = lambda shape: mesh
items = [
  t.make_item(base, 'a b ' * n + 'x:', [' one', ' no']) for n in range(5)
]
np.save(sys.argv[2], t.score(base, items, 3))
"""


@pytest.mark.slow
def test_sharded(base, tiny_dir, tmp_path):
  subprocess.run(
    [
      *[sys.executable, '-c', SHARDED, tiny_dir, tmp_path / 'x.npy'],
      os.path.dirname(__file__),
      os.path.dirname(xla_flags.__file__),
    ],
    env={
      **os.environ,
      'XLA_FLAGS': xla_flags.devices(8),
      'JAX_PLATFORMS': 'cpu',
    },
    check=True,
  )
  items = [
    make_item(base, 'a b ' * n + 'x:', [' one', ' no']) for n in range(5)
  ]
  np.testing.assert_allclose(
    np.load(tmp_path / 'x.npy'), score(base, items), rtol=1e-5
  )
