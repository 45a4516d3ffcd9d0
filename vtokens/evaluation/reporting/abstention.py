"""What a report says of confidence and of refusals."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtokens.evaluation.asking.cells import AXES, Cell, CellResult
from vtokens.scoring import coverage, refusals
from vtokens.scoring.coverage import CoverageRisk
from vtokens.scoring.refusals import RefusalCurve, RefusalScores


@dataclasses.dataclass(frozen=True, eq=False)
class Abstention:
  """Confidence and refusals of a cell.

  Attributes:
    cell: the cell.
    n: number of its questions.
    without: number of its answers without a confidence; see `Answer`.
    confidence: mean confidence of its answers; None if one has none.
    curve: risk by coverage; None if an answer has no confidence, or if all
      questions were refused.
    refusals: their scores; None if all questions have an answer.
  """

  cell: Cell
  n: int
  without: int
  confidence: float | None
  curve: CoverageRisk | None
  refusals: RefusalScores | None

  def as_json(self) -> dict[str, Any]:
    """The object in report.json."""
    curve = self.curve
    return {
      'dataset': self.cell.dataset,
      **{axis: getattr(self.cell, axis) for axis in AXES},
      'n': self.n,
      'without_confidence': self.without,
      'confidence': self.confidence,
      'risk_area': curve and curve.area,
      'coverage': curve and curve.coverage.tolist(),
      'risk': curve and curve.risk.tolist(),
      'refusals': self.refusals and self.refusals.as_dict(),
    }


def of_cell(result: CellResult) -> Abstention:
  """Scores the confidence and the refusals of a cell."""
  em = result.values['em']
  found = [answer.confidence for answer in result.answers]
  known = np.array([value for value in found if value is not None], float)
  whole = len(known) == len(found)
  return Abstention(
    cell=result.cell,
    n=len(found),
    without=len(found) - len(known),
    confidence=float(known.mean()) if whole else None,
    curve=coverage.coverage_risk(known, np.nan_to_num(em), result.refused)
    if whole
    else None,
    refusals=refusals.score(result.refused.tolist(), (~np.isnan(em)).tolist()),
  )


def refusal_curve(
  results: Sequence[CellResult], bias: float
) -> RefusalCurve | None:
  """Refusals by their bias, over the questions of some cells together.

  Args:
    results: of one column.
    bias: of refusals in their answers.

  Returns:
    The curve; None if no answer has a margin, or if all questions have an
    answer or none has.
  """
  margins = np.array(
    [answer.refusal_margin for result in results for answer in result.answers],
    float,
  )
  if np.isnan(margins).all():
    return None
  return refusals.curve(
    margins,
    np.concatenate([result.refused for result in results]),
    np.concatenate([result.values['em'] for result in results]),
    bias,
  )
