"""The grid of an evaluation: what is asked of whom, and what came out."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vtokens.data.records import Record


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Cell:
  """One set of questions asked in one way.

  Attributes:
    dataset: whose questions.
    model: name of the base.
    condition: of `conditions.CONDITIONS`.
    table: name of the trained table; '' where no virtual tokens are used.
    num_active: virtual tokens used (k); 0 for none.
    num_passages: most passages shown; 0 for none.
    retriever: whose passages; '' where none are shown, or the records have
      those of only one.
  """

  dataset: str
  model: str
  condition: str
  table: str = ''
  num_active: int = 0
  num_passages: int = 0
  retriever: str = ''


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """What a model said to one question.

  Attributes:
    text: the prediction.
    num_tokens: generated, without the one that ended it.
    stop: what ended it: end (a token that means it), newline, or length.
    shown: ranks of the passages that the prompt had, in order, from 0.
    passages_dropped: others, left out because the prefix was full.
    passages_cut: passages shortened for the same reason.
  """

  text: str
  num_tokens: int
  stop: str
  shown: tuple[int, ...] = ()
  passages_dropped: int = 0
  passages_cut: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class CellResult:
  """The answers of a cell and how good each is.

  Attributes:
    cell: which.
    answers: one for each record of the dataset, in order.
    values: metric -> value of each question, f64, 0 to 1; see
      `vtokens.scoring.metrics`.
  """

  cell: Cell
  answers: Sequence[Answer]
  values: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """All that an evaluation found.

  Attributes:
    records: dataset -> its questions.
    cells: every finished cell.
    conditions: names in the order in which they are reported.
    num_active: of each table, by name, the k at which other axes are varied.
    num_passages: the number of passages at which other axes are varied.
    retriever: likewise.
  """

  records: Mapping[str, Sequence[Record]]
  cells: Mapping[Cell, CellResult]
  conditions: Sequence[str]
  num_active: Mapping[str, int]
  num_passages: int
  retriever: str
