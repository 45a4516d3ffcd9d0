"""Files of predictions: one JSON object a line for each question."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vtokens.data.records import Record
from vtokens.evaluation.asking.cells import AXES, Answer, Cell
from vtokens.host import writers


def write(
  path: epath.PathLike,
  records: Sequence[Record],
  answers: Sequence[Answer],
  values: Mapping[str, Sequence[float] | np.ndarray],
  cell: Cell | None = None,
  refused: Sequence[bool] | np.ndarray | None = None,
  texts: Sequence[str] | None = None,
  cited: Sequence[int | None] | None = None,
) -> None:
  """Writes the predictions for some questions, whole or not at all.

  A line has `id`, `dataset`, `question`, `prediction`, `answers` and each
  metric. With a cell it also has the length and the end of the answer, the
  passages shown, and the coordinates of the cell. `confidence` comes last;
  after it `refusal_margin` if an answer has one, `refused` if a question has
  no answer, and `cited` if answers have citations.

  Args:
    path: the file.
    records: the questions.
    answers: one for each record.
    values: value of each question by metric; NaN for one without an answer.
    cell: the cell that was asked, if any.
    refused: whether each answer is the refusal.
    texts: the answers without their citations, if they have any.
    cited: the number of the passage that each of them cites, or None.
  """
  all_answerable = all(record.answerable for record in records)
  has_margins = any(answer.refusal_margin is not None for answer in answers)
  lines = []
  pairs = zip(records, answers, strict=True)
  for i, (record, answer) in enumerate(pairs):
    row: dict[str, Any] = {
      'id': record.id,
      'dataset': record.dataset,
      'question': record.question,
      'prediction': answer.text if texts is None else texts[i],
      'answers': record.answers,
      **{name: _number(column[i]) for name, column in values.items()},
    }
    if cell is not None:
      row |= _details(record, answer, cell)
    row['confidence'] = answer.confidence
    if has_margins:
      row['refusal_margin'] = answer.refusal_margin
    if refused is not None and not all_answerable:
      row['refused'] = bool(refused[i])
    if cited is not None:
      row['cited'] = cited[i]
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  writers.write_text(path, ''.join(lines))


def _number(value: float) -> float | None:
  """The value for JSON, which has no NaN."""
  return None if math.isnan(value) else float(value)


def _details(record: Record, answer: Answer, cell: Cell) -> dict[str, Any]:
  passages = record.ranked(cell.retriever) if answer.shown else ()
  return {
    'num_tokens': answer.num_tokens,
    'stop': answer.stop,
    'passages': [passages[rank].id for rank in answer.shown],
    'ranks': [rank + 1 for rank in answer.shown],
    'passages_dropped': answer.passages_dropped,
    'passages_cut': answer.passages_cut,
    **{axis: getattr(cell, axis) for axis in AXES},
  }
