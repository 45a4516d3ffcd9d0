"""Predictions and scores of a training run."""

import json
from collections.abc import Sequence

from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation.asking.cells import Answer
from vtokens.host import writers
from vtokens.scoring import metrics


def write_predictions(
  path: epath.PathLike,
  records: Sequence[Record],
  answers: Sequence[Answer],
) -> None:
  """Writes one JSON object per question: id, prediction, answers, EM, F1."""
  lines = []
  for record, answer in zip(records, answers, strict=True):
    row = {
      'id': record.id,
      'dataset': record.dataset,
      'question': record.question,
      'prediction': answer.text,
      'answers': record.answers,
      'em': metrics.exact_match(answer.text, record.answers),
      'f1': metrics.token_f1(answer.text, record.answers),
    }
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  writers.write_text(path, ''.join(lines))


def scores_of(
  records: Sequence[Record], answers: Sequence[Answer]
) -> metrics.Scores:
  """EM and F1 of answers."""
  return metrics.score(
    [answer.text for answer in answers],
    [record.answers for record in records],
  )
