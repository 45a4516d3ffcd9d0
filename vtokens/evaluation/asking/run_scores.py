"""Predictions and scores of a training run."""

from collections.abc import Sequence

from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation import predictions
from vtokens.evaluation.asking.cells import Answer
from vtokens.scoring import metrics


def write_predictions(
  path: epath.PathLike,
  records: Sequence[Record],
  answers: Sequence[Answer],
) -> None:
  """Writes the predictions with EM and F1; see `predictions.write`."""
  pairs = [(a.text, r.answers) for r, a in zip(records, answers, strict=True)]
  values = {
    'em': [metrics.exact_match(*pair) for pair in pairs],
    'f1': [metrics.token_f1(*pair) for pair in pairs],
  }
  predictions.write(path, records, answers, values)


def scores_of(
  records: Sequence[Record], answers: Sequence[Answer]
) -> metrics.Scores:
  """EM and F1 of answers."""
  return metrics.score(
    [answer.text for answer in answers],
    [record.answers for record in records],
  )
