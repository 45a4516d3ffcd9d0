"""Reasoned answers: numbers, ends, and continuations as torch writes them."""

import numpy as np
import pytest
import torch
import transformers

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation import choices, reasoning
from vtokens.models import frozen_base

TEXTS = ['Question: 2 + 3? Answer:', 'Question: 1? Answer:', 'Question: x']


@pytest.fixture(scope='module')
def base(tiny_dir):
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


@pytest.fixture(scope='module')
def prompts(base):
  return [choices.prompt_ids(base.tokenizer, text) for text in TEXTS]


def run(base, prompts, *, max_new_tokens=20, batch_size=2):
  return reasoning.continue_prompts(
    base,
    partitioning.make_mesh((-1, 1, 1)),
    prompts,
    max_new_tokens=max_new_tokens,
    batch_size=batch_size,
    label='',
  )


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('2 + 3 = 5. The answer is: 5', 5.0),
    ('The answer is: 4. No. The answer is: $1,005.50.', 1005.5),
    ('The answer is: unknown', None),
    ('The answer is 5', None),
    ('5', None),
    ('', None),
    ('The answer is: 5\nThe answer is:', None),
    ('The answer is: -2 degrees, 7 less', -2.0),
  ],
)
def test_final_number(text, value):
  assert reasoning.final_number(text) == value


@pytest.mark.parametrize(
  ('value', 'answers', 'right'),
  [
    (18.0, ['18'], True),
    (1234.0, ['1,234'], True),
    (0.5, ['7', '.50'], True),
    (18.0, ['18.01'], False),
    (0.0, ['0'], True),
    (-3.0, ['3'], False),
    (None, ['3'], False),
  ],
)
def test_is_right(value, answers, right):
  assert reasoning.is_right(value, answers) is right


def test_equals_torch_over_rounds(tiny_dir, base, prompts, monkeypatch):
  """Rounds of 8 tokens; 20 are no multiple of it."""
  monkeypatch.setattr(reasoning, '_ROUND', 8)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  ).eval()
  for prompt, found in zip(prompts, run(base, prompts), strict=True):
    ids = torch.tensor(prompt[None].astype(np.int64))
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=20,
      pad_token_id=258,
      eos_token_id=sorted(base.tokenizer.end_ids),
    )[0, len(prompt) :].tolist()
    ended = out[-1] in base.tokenizer.end_ids
    out = out[:-1] if ended else out
    assert found.num_tokens == len(out)
    assert found.stop == ('end' if ended else 'length')
    text = base.tokenizer.decode([i for i in out if i <= 258])
    assert found.text == text.strip()


def test_batches_and_rounds_do_not_matter(base, prompts, monkeypatch):
  together = run(base, prompts)
  assert [run(base, [prompt])[0] for prompt in prompts] == together
  monkeypatch.setattr(reasoning, '_ROUND', 7)
  assert run(base, prompts[::-1], batch_size=1)[::-1] == together


@pytest.mark.parametrize('round_size', [4, 7, 64])
@pytest.mark.parametrize(
  ('forced', 'text', 'stop', 'num_tokens'),
  [
    (
      'It is 5. The answer is: 5\n\nQuestion: x',
      'It is 5. The answer is: 5',
      'question',
      36,
    ),
    ('Question: x', '', 'question', 9),
    ('It is 5.', 'It is 5.', 'end', 8),
    ('x' * 41, 'x' * 40, 'length', 40),
    ('x' * 40, 'x' * 40, 'length', 40),
    ('x' * 39, 'x' * 39, 'end', 39),
  ],
)
def test_what_ends_an_answer(
  base, prompts, monkeypatch, round_size, forced, text, stop, num_tokens
):
  """A model that says what it is told to, then eos."""
  monkeypatch.setattr(reasoning, '_ROUND', round_size)
  script = [*base.tokenizer.encode(forced), base.tokenizer.eos_id]

  def generate(params, table, shared, suffixes, endings, *, graph, **settings):
    size = settings['max_new_tokens']
    last = np.asarray(suffixes.last)[:, 0]
    end = np.take_along_axis(
      np.asarray(suffixes.positions), np.maximum(last, 0)[:, None], 1
    )[:, 0]
    out = np.full((len(last), 1, size), base.tokenizer.eos_id, np.int32)
    for row, at in enumerate(end + 1 - len(prompts[0])):
      part = script[at : at + size] if last[row] >= 0 else []
      out[row, 0, : len(part)] = part
    return out

  monkeypatch.setattr(reasoning.generate, 'generate', generate)
  monkeypatch.setattr(reasoning.distributed, 'fetch', np.asarray)
  [found] = run(base, prompts[:1], max_new_tokens=40)
  assert found.stop == stop
  assert (found.text, found.num_tokens) == (text, num_tokens)
