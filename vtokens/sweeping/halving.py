"""Successive halving: how many candidates train how far.

All candidates train to the first rung, the best of them to the next one, and so
on, until the last few train to the end (Jamieson and Talwalkar,
arXiv 1502.07943).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from vtokens.settings import schema


@dataclasses.dataclass(frozen=True)
class Rung:
  """A step at which candidates are compared.

  Attributes:
    step: where they stop.
    candidates: how many train so far.
  """

  step: int
  candidates: int


def plan(
  num_candidates: int,
  num_steps: int,
  validate_every: int,
  *,
  eta: int,
  finalists: int,
) -> list[Rung]:
  """Plans the rungs of a sweep.

  One in `eta` candidates, rounded up, goes on to the next rung, which ends
  after `eta` times as many steps. A rung ends at a validation of the run, so
  that comparing does not change it.

  Args:
    num_candidates: at the first rung.
    num_steps: of a whole run, where the last rung ends.
    validate_every: steps between two validations.
    eta: at least 2.
    finalists: candidates that train to the end, at least 1.

  Raises:
    errors.UserError: validations are too rare for so many rungs.
  """
  sizes = [num_candidates]
  while sizes[-1] > finalists:
    sizes.append(max(finalists, math.ceil(sizes[-1] / eta)))
  last = len(sizes) - 1
  ends = [num_steps / eta ** (last - i) for i in range(last)]
  steps = [max(1, round(end / validate_every)) * validate_every for end in ends]
  steps.append(num_steps)
  if any(a >= b for a, b in itertools.pairwise(steps)):
    _refuse(num_candidates, sizes, eta, num_steps, validate_every)
  return [Rung(step, size) for step, size in zip(steps, sizes, strict=True)]


def _refuse(
  num_candidates: int,
  sizes: Sequence[int],
  eta: int,
  num_steps: int,
  validate_every: int,
) -> None:
  least = eta ** (len(sizes) - 1)
  rungs = (
    f'{num_candidates} candidates have {len(sizes)} rungs of '
    f'{", ".join(map(str, sizes))} with --eta={eta}'
  )
  if num_steps < least:
    schema.refuse_value(
      'train.num_steps', num_steps, f'at least {least}, since {rungs}'
    )
  schema.refuse_value(
    'train.validate_every',
    validate_every,
    f'a smaller number, e.g. {num_steps // least}, since {rungs}, each of '
    f'which ends at a validation within {num_steps} steps',
  )
