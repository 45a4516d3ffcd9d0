"""Predictions and scores of a training run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation import predictions
from vtokens.evaluation.asking.cells import Answer
from vtokens.scoring import coverage, metrics, refusals


def write_predictions(
  path: epath.PathLike,
  records: Sequence[Record],
  answers: Sequence[Answer],
  refusal: str,
) -> None:
  """Writes the predictions with EM and F1; see `predictions.write`.

  Args:
    path: the file.
    records: the questions.
    answers: one for each record.
    refusal: config.templates.refusal.
  """
  predictions.write(
    path,
    records,
    answers,
    _values(records, answers),
    refused=_refused(answers, refusal),
  )


def _values(
  records: Sequence[Record], answers: Sequence[Answer]
) -> dict[str, list[float]]:
  """EM and F1 of each question, 0 to 1; NaN for one without an answer."""
  pairs = [(a.text, r.answers) for r, a in zip(records, answers, strict=True)]
  return {
    name: [score(*pair) if pair[1] else np.nan for pair in pairs]
    for name, score in (
      ('em', metrics.exact_match),
      ('f1', metrics.token_f1),
    )
  }


def _refused(answers: Sequence[Answer], refusal: str) -> list[bool]:
  return [refusals.is_refusal(answer.text, refusal) for answer in answers]


def scores_of(
  records: Sequence[Record], answers: Sequence[Answer]
) -> metrics.Scores:
  """EM and F1 of the answers to questions that have one."""
  pairs = [
    (answer.text, record.answers)
    for record, answer in zip(records, answers, strict=True)
    if record.answerable
  ]
  return metrics.score(*map(list, zip(*pairs, strict=True)))


def refusals_of(
  records: Sequence[Record], answers: Sequence[Answer], refusal: str
) -> refusals.RefusalScores | None:
  """Scores of refusals; None if all questions have an answer."""
  return refusals.score(
    _refused(answers, refusal), [record.answerable for record in records]
  )


def all_scores(
  records: Sequence[Record], answers: Sequence[Answer], refusal: str
) -> dict[str, Any]:
  """All that a run's summary says of answers.

  Args:
    records: the questions.
    answers: one for each record, with confidence.
    refusal: config.templates.refusal.

  Returns:
    em, f1, n of the questions with an answer; mean confidence; risk_area, the
    area of `coverage.coverage_risk`, None if all were refused; and refusals, if
    a question has no answer.
  """
  confidence = np.array([answer.confidence for answer in answers], float)
  curve = coverage.coverage_risk(
    confidence,
    np.nan_to_num(_values(records, answers)['em']),
    np.array(_refused(answers, refusal)),
  )
  found = refusals_of(records, answers, refusal)
  return {
    **scores_of(records, answers).as_dict(),
    'confidence': float(confidence.mean()),
    'risk_area': curve and curve.area,
    **({} if found is None else {'refusals': found.as_dict()}),
  }
