"""Training texts that virtual tokens may start as."""

from collections.abc import Iterator
from typing import NoReturn

import numpy as np
from jaxtyping import Int

from vtokens.data.mixture import ExampleDraw, Member, TrainingMixture
from vtokens.data.prompt_encoder import Ids
from vtokens.host import errors

# Examples that are looked at before there is said to be nothing.
_TRIES = 10_000


def passage_ids(
  mixture: TrainingMixture, number: int, rng: np.random.Generator
) -> Int[np.ndarray, 'P']:
  """Draws passages that training shows, one after the other.

  Args:
    mixture: the training examples.
    number: ids wanted; the last passage is cut.
    rng: draws the examples.

  Returns:
    Ids, int32.

  Raises:
    errors.UserError: no example shows a passage.
  """
  found: list[Ids] = []
  for _, draw in _draws(mixture, rng):
    for shown in draw.passages[:1]:
      found.append(mixture.passage(shown).body)
    if sum(map(len, found)) >= number:
      break
  if not found:
    _refuse('passages', 'that show passages')
  return np.resize(np.concatenate(found), number)


def answer_ids(
  mixture: TrainingMixture, number: int, rng: np.random.Generator
) -> list[Ids]:
  """Draws different answers of the training examples.

  Args:
    mixture: the training examples.
    number: answers wanted.
    rng: draws the examples.

  Returns:
    Ids of each answer without its end, int32. If there are fewer answers, they
    come again.

  Raises:
    errors.UserError: no answer has a token.
  """
  found: dict[bytes, Ids] = {}
  for member, draw in _draws(mixture, rng):
    # The last id ends the answer.
    ids = mixture.answer(member, draw.answer)[:-1]
    if len(ids):
      found.setdefault(ids.tobytes(), ids)
    if len(found) == number:
      break
  if not found:
    _refuse('answers', 'whose answers have tokens')
  answers = list(found.values())
  return [answers[i % len(answers)] for i in range(number)]


def _draws(
  mixture: TrainingMixture, rng: np.random.Generator
) -> Iterator[tuple[Member, ExampleDraw]]:
  """Random examples, each dataset by its weight, as training would see them."""
  for _ in range(_TRIES):
    dataset = int(rng.choice(len(mixture.sizes), p=mixture.weights))
    index = int(rng.integers(mixture.sizes[dataset]))
    yield mixture.member(dataset, index), mixture.draw(dataset, 0, index)


def _refuse(init: str, needed: str) -> NoReturn:
  raise errors.UserError(
    f'config.virtual_tokens.init: {init} needs training examples {needed}; '
    f'none of {_TRIES:,} drawn ones is such. Choose another init'
  )
