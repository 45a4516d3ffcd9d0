"""The cells of an evaluation: what is asked, and the answers."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vtokens.data.records import Record
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.scoring.citations import CitationScores

# Coordinates of a cell besides its dataset, in the order of files and reports.
AXES = (
  'model',
  'condition',
  'table',
  'num_active',
  'num_passages',
  'retriever',
)
# Characters of a file name.
_NAME_LENGTH = 120


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Cell:
  """One dataset asked in one way.

  Attributes:
    dataset: name of the dataset; '' in a column of a report, which stands for
      the cells of all datasets.
    model: name of the base.
    condition: a name in `conditions.CONDITIONS`.
    table: name of the trained table; '' without virtual tokens.
    num_active: number of virtual tokens (k); 0 without.
    num_passages: most passages shown; 0 without.
    retriever: whose passages; '' without passages, or if the records have
      passages of one retriever only.
  """

  dataset: str
  model: str
  condition: str
  table: str = ''
  num_active: int = 0
  num_passages: int = 0
  retriever: str = ''

  def applies(self, axis: str) -> bool:
    """Whether an axis of `AXES` can be varied in this cell.

    k can with virtual tokens, m in conditions that show passages, the retriever
    if at least one passage is shown.
    """
    if axis in ('table', 'num_active'):
      return bool(self.table)
    if axis == 'num_passages':
      return CONDITIONS[self.condition].passages
    if axis == 'retriever':
      return self.num_passages > 0
    return True

  def only_what_applies(self) -> 'Cell':
    """The cell without values on axes that do not apply."""
    cell = self
    # In this order: without passages there is no retriever.
    for axis in ('num_active', 'num_passages', 'retriever'):
      if not cell.applies(axis):
        kind = type(getattr(cell, axis))
        cell = dataclasses.replace(cell, **{axis: kind()})
    return cell

  def column(self) -> 'Cell':
    """The cell without its dataset."""
    return dataclasses.replace(self, dataset='')

  def name_parts(self) -> dict[str, str]:
    """What file names say of the coordinates that apply, by coordinate."""
    parts = {'dataset': self.dataset}
    for axis in AXES:
      letter = {'num_active': 'k', 'num_passages': 'm'}.get(axis, '')
      if self.applies(axis):
        parts[axis] = f'{letter}{getattr(self, axis)}'
    return parts

  def file_name(self) -> str:
    """A file name without its ending, for people; with a hash if it was cut.

    Names can be equal but for the case of letters; see `file_names`.
    """
    parts = {'num_passages': 'm0'} | self.name_parts()
    order = ('dataset', *AXES)
    text = '.'.join(parts[key] for key in order if parts.get(key))
    name = re.sub(r'[^\w.+=-]', '_', text, flags=re.ASCII).lstrip('.')
    if name == text and len(name) <= _NAME_LENGTH:
      return name
    return self.hashed_name(name)

  def hashed_name(self, name: str) -> str:
    """A file name that no other cell has: cut, and with a hash of the cell."""
    digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
    return f'{name[: _NAME_LENGTH - 9]}.{digest}'


def file_names(cells: Sequence[Cell]) -> dict[Cell, str]:
  """The `file_name` of each cell, with a hash where two would be one file."""
  names = {cell: cell.file_name() for cell in cells}
  taken = [name.lower() for name in names.values()]
  return {
    cell: name if taken.count(name.lower()) == 1 else cell.hashed_name(name)
    for cell, name in names.items()
  }


@dataclasses.dataclass(frozen=True)
class MainValues:
  """The value of each axis at which the other axes are varied.

  Attributes:
    num_active: by name of the table.
    num_passages: number of passages.
    retriever: name of the retriever.
  """

  num_active: Mapping[str, int]
  num_passages: int
  retriever: str

  def hold(self, cell: Cell, *, without: str = '') -> bool:
    """Whether a cell has the main value on every axis that applies to it.

    Args:
      cell: the cell.
      without: an axis that is not compared.
    """
    values = {
      'num_active': self.num_active.get(cell.table),
      'num_passages': self.num_passages,
      'retriever': self.retriever,
    }
    return all(
      getattr(cell, axis) == value
      for axis, value in values.items()
      if axis != without and cell.applies(axis)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """What a model answered to one question.

  Attributes:
    text: the prediction.
    num_tokens: tokens generated, without the one that ended the answer.
    stop: what ended it: end (a token for it), newline, or length.
    shown: ranks of the passages in the prompt, in their order, from 0.
    passages_dropped: passages left out because the prefix was full.
    passages_cut: passages shortened for the same reason.
    confidence: mean log-probability of the generated tokens under the model, in
      nats, with the token that ended the answer; at most 0. None if an earlier
      version of vtokens, which did not compute it, wrote the answer. Not
      compared: its last digits depend on the batch.
    refusal_margin: logit of the token that begins the refusal, without
      `decode.refusal_bias`, minus the largest other logit
      (`generate.Generated.margins`). None if the virtual tokens were not
      trained to refuse, or if a token before that place is not blank. Not
      compared either.
  """

  text: str
  num_tokens: int
  stop: str
  shown: tuple[int, ...] = ()
  passages_dropped: int = 0
  passages_cut: int = 0
  confidence: float | None = dataclasses.field(default=None, compare=False)
  refusal_margin: float | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class CellResult:
  """The answers of a cell and their scores.

  Attributes:
    cell: the cell.
    answers: one for each record of the dataset, in order.
    values: value of each question by metric, arrays of shape [n], float64, from
      0 to 1; see `vtokens.scoring.metrics`. NaN for a question without an
      answer.
    refused: whether each answer is the refusal; array of shape [n], bool.
    texts: the answers without their citations; None if they have none.
    cited: the number that each answer cites, if any; None likewise.
    citations: scores of the citations; None likewise, or without passages.
  """

  cell: Cell
  answers: Sequence[Answer]
  values: Mapping[str, np.ndarray]
  refused: np.ndarray
  texts: Sequence[str] | None = None
  cited: Sequence[int | None] | None = None
  citations: CitationScores | None = None

  def scored(self, metric: str) -> np.ndarray:
    """The values of the questions with an answer."""
    values = self.values[metric]
    found: np.ndarray = values[~np.isnan(values)]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """All results of an evaluation.

  Attributes:
    records: questions by dataset.
    cells: every finished cell.
    conditions: names in the order of the report.
    main: main values of the axes.
    refusal_bias: `decode.refusal_bias` of the answers; None if their tokens
      were drawn (`decode.temperature`), since the draws then decide, too.
  """

  records: Mapping[str, Sequence[Record]]
  cells: Mapping[Cell, CellResult]
  conditions: Sequence[str]
  main: MainValues
  refusal_bias: float | None = 0.0
