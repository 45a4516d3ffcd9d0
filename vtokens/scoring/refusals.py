"""Scores of refusals: answers that say that the question cannot be answered."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vtokens.scoring import metrics


@dataclasses.dataclass(frozen=True, slots=True)
class RefusalScores:
  """How well refusals tell unanswerable questions from others.

  Attributes:
    precision: share of the refused questions that are unanswerable, in percent;
      0 if none was refused.
    recall: share of the unanswerable questions that were refused, in percent.
    f1: harmonic mean of the two, in percent.
    refused: number of questions refused.
    unanswerable: number of unanswerable questions.
    n: number of all questions.
  """

  precision: float
  recall: float
  f1: float
  refused: int
  unanswerable: int
  n: int

  def as_dict(self) -> dict[str, Any]:
    """Returns the fields by name, for writers and reports."""
    return dataclasses.asdict(self)


def is_refusal(prediction: str, refusal: str) -> bool:
  """Whether an answer is the refusal: equal after normalisation.

  Args:
    prediction: the answer.
    refusal: config.templates.refusal of training.
  """
  return metrics.exact_match(prediction, [refusal]) == 1


def score(
  refused: Sequence[bool], answerable: Sequence[bool]
) -> RefusalScores | None:
  """Scores the refusals among the answers to some questions.

  Args:
    refused: for each question whether it was refused.
    answerable: for each question, in the same order, whether it has an answer.

  Returns:
    The scores; None if all questions have an answer.

  Raises:
    ValueError: the two differ in length.
  """
  pairs = list(zip(refused, answerable, strict=True))
  unanswerable = sum(not has_answer for _, has_answer in pairs)
  if not unanswerable:
    return None
  num_refused = sum(map(bool, refused))
  right = sum(was and not has_answer for was, has_answer in pairs)
  return RefusalScores(
    precision=100.0 * right / max(num_refused, 1),
    recall=100.0 * right / unanswerable,
    # 2PR / (P + R), which is defined also if nothing was refused.
    f1=200.0 * right / (num_refused + unanswerable),
    refused=num_refused,
    unanswerable=unanswerable,
    n=len(pairs),
  )
