"""Text of tokens that come one by one."""

import pytest
import tiny_models

from vtokens import config
from vtokens.answering import Prepared, Request
from vtokens.answering.growing_answer import GrowingAnswer
from vtokens.data.assemble import Example
from vtokens.data.prompt_encoder import as_ids
from vtokens.devices import partitioning
from vtokens.evaluation.asking.endings import AnswerReader
from vtokens.models import frozen_base


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  path = tmp_path_factory.mktemp('base')
  tiny_models.save(path)
  settings = config.Base(path=str(path), dtype='float32')
  return frozen_base.load_base(settings, partitioning.make_mesh((-1, 1, 1)))


def grow(base, ids, *, step=1, tidy=False, at_newline=False, stop=(), most=99):
  none = as_ids([])
  prepared = Prepared(
    Request(prompt='x', stop=stop),
    Example(none, none, 0, as_ids([1]), none),
    None,
    max_new_tokens=most,
    at_newline=at_newline,
    tidy=tidy,
  )
  answer = GrowingAnswer(0, prepared, AnswerReader(base), 0.0)
  parts = []
  for start in range(0, len(ids), step):
    part = ids[start : start + step]
    parts.append(answer.add(part, [-1.0] * len(part)))
  return [part for part in parts if part is not None], answer.completion


@pytest.mark.parametrize('step', [1, 2, 5])
@pytest.mark.parametrize('tidy', [True, False])
def test_whole_characters_only(base, step, tidy):
  text = ' Zürich 東京 🗼 naïve — “q” '
  ids = [*base.tokenizer.encode(text), base.tokenizer.eos_id]
  parts, whole = grow(base, ids, step=step, tidy=tidy)
  expected = text.strip() if tidy else text
  assert whole.text == expected
  assert ''.join(part.text for part in parts) == expected
  assert not any('\ufffd' in part.text for part in parts)
  assert whole.stop == 'end'
  assert whole.ids == tuple(ids[:-1])
  # Some text came before the end.
  assert len([part for part in parts if part.text]) > 1


def test_a_broken_character_stays_at_the_end(base):
  ids = base.tokenizer.encode('a 🗼')[:-1]
  parts, whole = grow(base, ids, most=len(ids))
  assert whole.stop == 'length'
  assert whole.text == base.tokenizer.decode(ids)
  assert ''.join(part.text for part in parts) == whole.text


@pytest.mark.parametrize('step', [1, 3, 50])
def test_part_of_a_stop_text_is_held_back(base, step):
  ids = base.tokenizer.encode('one EN two END three')
  parts, whole = grow(base, ids, step=step, stop=['END', 'zzz'])
  assert (whole.text, whole.stop) == ('one EN two ', 'stop')
  assert ''.join(part.text for part in parts) == whole.text
  told = base.tokenizer.decode(whole.ids)
  assert told.endswith('END')


def test_the_line_ends_a_tidy_answer(base):
  ids = base.tokenizer.encode('\n a b \nc')
  _, whole = grow(base, ids, tidy=True, at_newline=True)
  assert (whole.text, whole.stop) == ('a b', 'newline')


def test_nothing_follows_the_end(base):
  ids = base.tokenizer.encode('ab')
  more = [*ids, base.tokenizer.eos_id, *base.tokenizer.encode('cd')]
  parts, whole = grow(base, more, step=len(more))
  assert (whole.text, whole.ids, len(parts)) == ('ab', tuple(ids), 1)
