"""How good the candidates of a sweep are."""

import dataclasses
from typing import Any

from vtokens.host import errors
from vtokens.run import tracking
from vtokens.run.workdir import RunDir
from vtokens.sweeping.candidates import Candidate


@dataclasses.dataclass(frozen=True)
class Score:
  """How good a candidate is at a rung.

  It is the validation of lowest loss so far, since a run ends with that table.

  Attributes:
    step: of the rung.
    best_step: of the validation.
    loss: in nats per target token.
    em: of the generated answers, in percent.
    f1: likewise.
  """

  step: int
  best_step: int
  loss: float
  em: float
  f1: float

  def key(self, by: str) -> tuple[float, float]:
    """What to sort by: the smallest is the best."""
    first = self.loss if by == 'loss' else -getattr(self, by)
    return first, self.loss


@dataclasses.dataclass
class Record:
  """What is known of a candidate.

  Attributes:
    scores: at each of its rungs.
    diverged: message of the loss that was not finite; '' if there is none.
  """

  scores: list[Score] = dataclasses.field(default_factory=list)
  diverged: str = ''

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> 'Record':
    """The inverse of `dataclasses.asdict`."""
    return cls([Score(**one) for one in values['scores']], values['diverged'])

  def at(self, step: int) -> Score | None:
    """The score at a rung's step, if it has come that far."""
    return next((s for s in self.scores if s.step == step), None)


def score_of(candidate: Candidate, step: int) -> Score:
  """Reads how good a candidate is, once it has come to a rung.

  Raises:
    errors.UserError: its metrics.jsonl is damaged, or lacks the validation.
  """
  path = RunDir(candidate.config.workdir).path / 'metrics.jsonl'
  rows = [
    row
    for row in tracking.read_metrics(path)
    if 'validation_loss' in row and row['step'] <= step
  ]
  if not rows or rows[-1]['step'] != step:
    raise errors.UserError(
      f'{path}: has no validation after step {step}; delete '
      f'{candidate.config.workdir} to have the candidate trained again'
    )
  best = min(rows, key=lambda row: row['validation_loss'])
  return Score(
    step=step,
    best_step=best['step'],
    loss=best['validation_loss'],
    em=best['validation_em'],
    f1=best['validation_f1'],
  )
