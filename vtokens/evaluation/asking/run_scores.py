"""Predictions and scores of a training run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation import predictions
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.cells import Answer
from vtokens.scoring import coverage, metrics, refusals


def write_predictions(
  path: epath.PathLike,
  records: Sequence[Record],
  answers: Sequence[Answer],
  form: AnswerTexts,
) -> None:
  """Writes the predictions with EM and F1; see `predictions.write`.

  Args:
    path: the file.
    records: the questions.
    answers: one for each record.
    form: how the texts of answers are read.
  """
  predictions.write(
    path,
    records,
    answers,
    _values(records, answers, form),
    refused=form.refused(answers),
    texts=form.texts(answers) if form.cites else None,
    cited=form.cited(answers) if form.cites else None,
  )


def _values(
  records: Sequence[Record], answers: Sequence[Answer], form: AnswerTexts
) -> dict[str, list[float]]:
  """EM and F1 of each question, 0 to 1; NaN for one without an answer."""
  pairs = [
    (text, record.answers)
    for record, text in zip(records, form.texts(answers), strict=True)
  ]
  return {
    name: [score(*pair) if pair[1] else np.nan for pair in pairs]
    for name, score in (
      ('em', metrics.exact_match),
      ('f1', metrics.token_f1),
    )
  }


def scores_of(
  records: Sequence[Record], answers: Sequence[Answer], form: AnswerTexts
) -> metrics.Scores:
  """EM and F1 of the answers to questions that have one."""
  pairs = [
    (text, record.answers)
    for record, text in zip(records, form.texts(answers), strict=True)
    if record.answerable
  ]
  return metrics.score(*map(list, zip(*pairs, strict=True)))


def refusals_of(
  records: Sequence[Record], answers: Sequence[Answer], form: AnswerTexts
) -> refusals.RefusalScores | None:
  """Scores of refusals; None if all questions have an answer."""
  return refusals.score(
    form.refused(answers), [record.answerable for record in records]
  )


def all_scores(
  records: Sequence[Record],
  answers: Sequence[Answer],
  form: AnswerTexts,
  retriever: str,
) -> dict[str, Any]:
  """All that a run's summary says of answers.

  Args:
    records: the questions.
    answers: one for each record, with confidence.
    form: how the texts of answers are read.
    retriever: whose passages were shown.

  Returns:
    em, f1, n of the questions with an answer; mean confidence; risk_area, the
    area of `coverage.coverage_risk`, None if all were refused; refusals, if a
    question has no answer; and citations, if answers have any.
  """
  confidence = np.array([answer.confidence for answer in answers], float)
  curve = coverage.coverage_risk(
    confidence,
    np.nan_to_num(_values(records, answers, form)['em']),
    np.array(form.refused(answers)),
  )
  found: dict[str, Any] = {
    **scores_of(records, answers, form).as_dict(),
    'confidence': float(confidence.mean()),
    'risk_area': curve and curve.area,
  }
  for name, scores in (
    ('refusals', refusals_of(records, answers, form)),
    ('citations', form.citation_scores(records, answers, retriever)),
  ):
    if scores is not None:
      found[name] = scores.as_dict()
  return found
