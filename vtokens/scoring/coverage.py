"""Coverage and risk: how many answers to show, by their confidence.

If only the answers above a threshold of confidence are shown, *coverage* is the
share of the questions that get an answer, and *risk* the share of these answers
that are wrong (El-Yaniv and Wiener, 2010, On the foundations of noise-free
selective classification). The area under the curve is Geifman and others'
(2019, arXiv 1805.08206): the mean of the risk over all thresholds.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

# Points of a curve that are kept.
_POINTS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class CoverageRisk:
  """Risk at each coverage, in percent, from the most confident answer on.

  Attributes:
    coverage: share of all questions whose answer is shown, rising; array of
      shape [N], float64. The last one is the share that was not refused.
    risk: share of the shown answers that are wrong; likewise.
    area: mean risk over all numbers of shown answers, in percent.
  """

  coverage: Float[np.ndarray, 'N']
  risk: Float[np.ndarray, 'N']
  area: float


def coverage_risk(
  confidence: Float[np.ndarray, 'n'],
  right: Float[np.ndarray, 'n'],
  refused: Bool[np.ndarray, 'n'],
) -> CoverageRisk | None:
  """Computes the curve.

  A refusal is no answer, so refused questions are never covered. Among answers
  of equal confidence the expectation over their orders counts.

  Args:
    confidence: of each answer; array of shape [n], float64.
    right: how right each answer is, 0 to 1, such as EM; 0 for an answer to an
      unanswerable question; likewise.
    refused: whether the question was refused; array of shape [n], bool.

  Returns:
    The curve at no more than 100 coverages, and the area under all of it; None
    if all questions were refused.
  """
  shown = ~refused
  if not shown.any():
    return None
  # Most confident first; equal ones share their mean.
  _, group = np.unique(-confidence[shown], return_inverse=True)
  mean = np.bincount(group, right[shown]) / np.bincount(group)
  numbers = np.arange(1, len(group) + 1)
  risk = 100 * (1 - np.cumsum(mean[np.sort(group)]) / numbers)
  kept = np.unique(np.ceil(np.linspace(0, 1, _POINTS) * (len(group) - 1)))
  index = kept.astype(int)
  return CoverageRisk(
    coverage=100 * numbers[index] / len(confidence),
    risk=risk[index],
    area=float(risk.mean()),
  )
