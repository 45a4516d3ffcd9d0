"""Citations at the end of answers."""

import random

import pytest

from vtokens.scoring import citations


@pytest.mark.parametrize(
  ('template', 'text', 'expected'),
  [
    (' {answer} [{source}]', 'Paris [2]', ('Paris', 2)),
    (' {answer} [{source}]', 'Paris [2', ('Paris [2', None)),
    (' {answer} [{source}]', 'Paris', ('Paris', None)),
    (' {answer} [{source}]', 'Paris [x]', ('Paris [x]', None)),
    (' {answer} [{source}]', 'in [1] Paris [12]', ('in [1] Paris', 12)),
    (' {answer} [{source}]', '[3]', ('', 3)),
    # The signs of a template are no pattern.
    ('{answer} (.{source}+)', 'Paris (.4+)', ('Paris', 4)),
    ('{answer} (.{source}+)', 'Paris (x44)', ('Paris (x44)', None)),
    ('{answer} {{{source}}}\n', 'Paris {5}', ('Paris', 5)),
    ('{answer}, see {source}.', '1984, see 1.', ('1984', 1)),
    (' {answer}', 'Paris [2]', ('Paris [2]', None)),
  ],
)
def test_an_answer_is_cut_in_two(template, text, expected):
  assert citations.split_answer(text, template) == expected


def test_a_template_is_cut_in_two():
  assert citations.split_template(' {answer} [{source}]') == (
    ' {answer}',
    ' [{source}]',
  )
  assert citations.split_template(' {answer}.') == (' {answer}.', '')


@pytest.mark.parametrize('seed', range(3))
def test_scores_are_counted(seed):
  draw = random.Random(seed)
  cited = [draw.choice([None, 1, 2, 3]) for _ in range(40)]
  holding = [draw.sample([1, 2, 3], draw.randrange(3)) for _ in range(40)]
  right = wrong = missed = 0
  for number, numbers in zip(cited, holding, strict=True):
    right += number in numbers
    wrong += number is not None and number not in numbers
    missed += bool(numbers) and number not in numbers
  found = citations.score(cited, holding)
  precision, recall = right / (right + wrong), right / (right + missed)
  assert found.precision == pytest.approx(100 * precision)
  assert found.recall == pytest.approx(100 * recall)
  expected = 200 * precision * recall / (precision + recall)
  assert found.f1 == pytest.approx(expected)


def test_no_citation_and_nothing_to_cite():
  found = citations.score([None, None], [[], []])
  assert (found.precision, found.recall, found.f1) == (0, 0, 0)
