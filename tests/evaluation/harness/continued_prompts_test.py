"""Continuations: what ends them, and rounds, against torch."""

import numpy as np
import pytest
import torch
import transformers

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation.harness import continued_prompts, prompt_batches
from vtokens.evaluation.harness.continued_prompts import OpenPrompt, TokenChoice
from vtokens.host import stopping
from vtokens.models import frozen_base

TEXTS = ['Question: 2 + 3? Answer:', 'Question: 1? Answer:', 'Question: x']
# More than a round.
SIZE = 90


@pytest.fixture(scope='module')
def base(tiny_dir):
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


def run(base, texts=TEXTS, *, size=SIZE, until=(), batch_size=2):
  tasks = [
    OpenPrompt(
      text, np.asarray(base.tokenizer.encode(text), np.int32), tuple(until)
    )
    for text in texts
  ]
  found = dict(
    continued_prompts.continue_prompts(
      base,
      partitioning.make_mesh((-1, 1, 1)),
      tasks,
      TokenChoice(size),
      table=prompt_batches.no_table(base),
      batch_size=batch_size,
      label='',
      stop=stopping.StopRequest(),
    )
  )
  return [found[i] for i in range(len(texts))]


@pytest.fixture(scope='module')
def together(base):
  return run(base)


@pytest.fixture(scope='module')
def expected(tiny_dir, base):
  """Ids that torch writes after each text, the end left out."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  ).eval()
  found = []
  for text in TEXTS:
    ids = torch.tensor([base.tokenizer.encode(text)])
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=SIZE,
      pad_token_id=258,
      eos_token_id=sorted(base.tokenizer.end_ids),
    )[0, ids.shape[1] :].tolist()
    found.append(out)
  return found


def decode(base, ids):
  return base.tokenizer.decode([i for i in ids if i <= 258])


def test_equals_torch_over_rounds(base, together, expected):
  for found, ids in zip(together, expected, strict=True):
    ended = ids[-1] in base.tokenizer.end_ids
    ids = ids[:-1] if ended else ids
    assert found.num_tokens == len(ids)
    assert found.stop == ('end' if ended else 'length')
    assert found.text == decode(base, ids)
  assert any(found.num_tokens == SIZE for found in together)


def test_batches_do_not_matter(base, together):
  assert [run(base, [text])[0] for text in TEXTS] == together
  assert run(base, TEXTS[::-1], batch_size=1)[::-1] == together


@pytest.mark.parametrize('wanted', [range(2, 65), range(65, SIZE + 1)])
def test_a_stop_sequence_ends_a_text(base, together, expected, wanted):
  """In the first round and in the second, whatever tokens it is made of."""
  number = next(i for i, ids in enumerate(expected) if len(ids) == SIZE)
  text, ids = together[number].text, expected[number]
  texts = [decode(base, ids[:n]) for n in range(SIZE + 1)]
  # A part of the text that its first tokens complete, up to one in `wanted`.
  until, whole = next(
    (part, n)
    for size in (3, 2, 1)
    for i in range(len(text) - size)
    if '\ufffd' not in (part := text[i : i + size])
    if (n := next(n for n in range(SIZE + 1) if part in texts[n])) in wanted
  )
  [found] = run(base, [TEXTS[number]], until=['never said', until])
  assert found.stop == 'until'
  assert found.text == text.split(until)[0]
  assert found.num_tokens == whole


@pytest.mark.parametrize('size', [1, 5, 64, 65])
def test_length(base, expected, size):
  number = next(i for i, ids in enumerate(expected) if len(ids) == SIZE)
  [found] = run(base, [TEXTS[number]], size=size)
  assert (found.stop, found.num_tokens) == ('length', size)
  assert found.text == decode(base, expected[number][:size])
