"""Log-probabilities of options, against transformers in torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
import xla_flags

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation import choices
from vtokens.host import errors
from vtokens.models import frozen_base

HEADER = 'The following are multiple choice questions about tides.\n'
# Prompts that begin alike, and one that is only that beginning.
TEXTS = [
  (
    HEADER + 'Question: why?\nAnswer:',
    ['the moon', 'wind', 'the moon and sun'],
  ),
  (HEADER + 'Question: how often each day?\nAnswer:', ['twice', 'x']),
  (HEADER, ['yes', 'no', 'perhaps so', 'é', '½ of it']),
  (HEADER + 'Q', ['a', 'a']),
]
# Another group: nothing in common with the first, and one token long.
ALONE = ('?', ['true', 'false'])


def load(path):
  return frozen_base.load_base(
    config.Base(path=str(path), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


def score(base, items, batch_size=4):
  mesh = partitioning.make_mesh((-1, 1, 1))
  return choices.score(base, mesh, items, batch_size=batch_size, label='')


def reference(model, item):
  """Each option by itself after the whole prompt, in one pass."""
  found = []
  for option in item.options:
    ids = torch.tensor([[*item.prompt.tolist(), *option.tolist()]])
    with torch.no_grad():
      logs = model(ids).logits.double().log_softmax(-1)[0]
    first = len(item.prompt) - 1
    rows = torch.arange(first, first + len(option))
    found.append(logs[rows, ids[0, first + 1 :]].sum().item())
  return np.array(found)


def check(found, expected, items):
  for a, b, item in zip(found, expected, items, strict=True):
    tokens = np.array([len(ids) for ids in item.options])
    assert (np.abs(a - b) <= 2e-4 * tokens + 1e-3 * np.abs(b)).all(), item.id
    # By the option, not its number: the same one may stand there twice.
    picked, expected_pick = item.options[a.argmax()], item.options[b.argmax()]
    np.testing.assert_array_equal(picked, expected_pick)


@pytest.fixture(scope='module')
def base(tiny_dir):
  return load(tiny_dir)


@pytest.fixture(scope='module')
def torch_model(tiny_dir):
  return transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  ).eval()


@pytest.fixture(scope='module')
def items(base):
  pairs = [*TEXTS, ALONE]
  return [
    choices.make_item(
      base.tokenizer, prompt, options, id=str(i), group='b' * (i == 4)
    )
    for i, (prompt, options) in enumerate(pairs)
  ]


def test_equals_torch(base, torch_model, items):
  assert len(items[-1].prompt) == 1
  check(score(base, items), [reference(torch_model, i) for i in items], items)


def test_equal_options_have_equal_scores(base, items):
  a, b = score(base, items)[3]
  assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize('batch_size', [1, 3])
def test_batches_do_not_matter(base, items, batch_size):
  together = score(base, items, 4)
  for one, other in zip(score(base, items, batch_size), together, strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-6)


def test_neighbours_and_order_do_not_matter(base, items):
  together = score(base, items)
  reverse = score(base, items[::-1])[::-1]
  for item, there, back in zip(items, together, reverse, strict=True):
    [alone] = score(base, [item])
    np.testing.assert_allclose(alone, there, rtol=2e-6)
    np.testing.assert_allclose(back, there, rtol=2e-6)


def test_options_do_not_see_one_another(base, items):
  [both] = score(base, [items[0]])
  for number, option in enumerate(items[0].options):
    alone = choices.Item('x', '', items[0].prompt, (option,))
    np.testing.assert_allclose(
      score(base, [alone])[0][0], both[number], rtol=2e-6
    )


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
  assert choices.common_start(arrays) == common


def test_too_long_a_question_is_named(base):
  fitting = choices.make_item(base.tokenizer, 'x' * 507, ['ab'], id='q6')
  long = choices.make_item(base.tokenizer, 'x' * 510, ['ab', 'c'], id='q7')
  assert base.config.longest_sequence == 512
  choices.check_fits(base, [fitting], 'task t')
  with pytest.raises(errors.UserError) as e:
    choices.check_fits(base, [fitting, long], 'task t')
  assert str(e.value) == (
    'task t: question q7 has 513 tokens with its examples and answer, more '
    'than the 512 of the base; fewer shots would help'
  )


# Eight devices on three axes: rows and weights are spread, and 5 questions
# leave rows of padding.
SHARDED = """
import sys
import numpy as np
import vtokens.evaluation.choices as choices
from vtokens import config
from vtokens.devices import partitioning
from vtokens.models import frozen_base as base_lib
mesh = partitioning.make_mesh((2, 2, 2))
base = base_lib.load_base(config.Base(path=sys.argv[1], dtype='float32'), mesh)
items = [
  choices.make_item(base.tokenizer, 'a b ' * n + 'x:', ['one', 'no'], id=str(n))
  for n in range(5)
]
found = choices.score(base, mesh, items, batch_size=3, label='')
np.save(sys.argv[2], found)
"""


@pytest.mark.slow
def test_sharded(base, tiny_dir, tmp_path):
  subprocess.run(
    [sys.executable, '-c', SHARDED, tiny_dir, tmp_path / 'x.npy'],
    env={
      **os.environ,
      'XLA_FLAGS': xla_flags.devices(8),
      'JAX_PLATFORMS': 'cpu',
    },
    check=True,
  )
  items = [
    choices.make_item(
      base.tokenizer, 'a b ' * n + 'x:', ['one', 'no'], id=str(n)
    )
    for n in range(5)
  ]
  np.testing.assert_allclose(
    np.load(tmp_path / 'x.npy'), score(base, items), rtol=1e-5
  )


REAL = [
  (
    'Question: When standing miles away from Mount Rushmore\nChoices:\n'
    'A. the mountains seem very close\nB. the mountains are boring\n'
    'C. the mountains seem smaller than in photographs\nCorrect answer:',
    [
      'the mountains seem very close',
      'the mountains are boring',
      'the mountains seem smaller than in photographs',
    ],
  ),
  (
    'Please answer the following question. Only return true or false.\n'
    'Question: is house tax and property tax are same?\nAnswer:',
    ['true', 'false'],
  ),
  (
    'Question: What do people aim to do at work?\nChoices:\n'
    'A. complete job\nB. kill animals\nC. wear hats\nAnswer:',
    ['complete job', 'kill animals', 'wear hats'],
  ),
]


@pytest.mark.slow
def test_smollm2_equals_torch(smollm2_path):
  base = load(smollm2_path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
  ).eval()
  items = [
    choices.make_item(base.tokenizer, prompt, options, id=str(i))
    for i, (prompt, options) in enumerate(REAL)
  ]
  # As transformers cuts up prompt and option together.
  for item, (prompt, options) in zip(items, REAL, strict=True):
    for ids, option in zip(item.options, options, strict=True):
      whole = base.tokenizer.encode(f'{prompt} {option}')
      assert [*item.prompt, *ids] == whole
  check(score(base, items), [reference(model, i) for i in items], items)
