"""Scores of refusals: answers that say that the question cannot be answered."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vtokens.scoring import metrics

# Points of a curve that are kept.
_POINTS = 100


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


@dataclasses.dataclass(frozen=True, eq=False)
class RefusalCurve:
  """Refusals and answers by the bias of refusals, from few refusals on.

  All are arrays of shape [N], float64.

  Attributes:
    bias: `decode.refusal_bias`, rising; the first is that of the answers.
    precision: of refusals at this bias, in percent; see `RefusalScores`.
    recall: likewise.
    f1: likewise.
    em: of the questions with an answer, where a refusal is wrong, in percent.
  """

  bias: Float[np.ndarray, 'N']
  precision: Float[np.ndarray, 'N']
  recall: Float[np.ndarray, 'N']
  f1: Float[np.ndarray, 'N']
  em: Float[np.ndarray, 'N']

  def best(self, lost: float) -> int:
    """The point of the highest F1 whose EM is at most so much below the first.

    Args:
      lost: EM that may be lost, in points.
    """
    # Sums of percentages have rounding errors.
    allowed = self.em >= self.em[0] - lost - 1e-9
    return int(np.argmax(np.where(allowed, self.f1, -1.0)))


def curve(
  margins: Float[np.ndarray, 'n'],
  refused: Bool[np.ndarray, 'n'],
  right: Float[np.ndarray, 'n'],
  bias: float,
) -> RefusalCurve | None:
  """Refusals at the bias that was used, and at every larger one.

  With greedy decoding an answer begins like the refusal if its margin and the
  bias are together above 0. The rest of it is taken to be the refusal, too.

  Args:
    margins: logit of the token that begins the refusal, without the bias, minus
      the largest other logit; NaN for an answer that cannot begin so; array of
      shape [n], float64.
    refused: whether the question was refused; array of shape [n], bool.
    right: EM of each answer, 0 to 1; NaN for a question without an answer;
      array of shape [n], float64.
    bias: that was used.

  Returns:
    The curve at no more than 100 points; None if all questions have an answer,
    or none has.
  """
  answerable = ~np.isnan(right)
  if answerable.all() or not answerable.any():
    return None
  # The bias above which each question is refused: infinite for an answer that
  # begins like the refusal already but goes on otherwise.
  at = np.where(-margins > bias, -margins, np.inf)
  at = np.where(refused, bias, at)
  steps = np.unique(np.append(at[np.isfinite(at)], bias))
  # Halfway to the next question, so that rounding decides nothing.
  biases = (steps + np.append(steps[1:], steps[-1] + 2.0)) / 2
  biases[0] = bias
  kept = np.unique(np.linspace(0, len(steps) - 1, _POINTS).astype(int))
  scores, em = [], []
  for step in steps[kept]:
    now = at <= step
    scores.append(score(now.tolist(), answerable.tolist()))
    em.append(100 * np.where(now, 0.0, right)[answerable].mean())
  found = [one for one in scores if one is not None]
  return RefusalCurve(
    bias=biases[kept],
    precision=np.array([one.precision for one in found]),
    recall=np.array([one.recall for one in found]),
    f1=np.array([one.f1 for one in found]),
    em=np.array(em),
  )
