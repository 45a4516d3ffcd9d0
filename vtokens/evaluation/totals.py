"""Sums over questions, which shards and processes can add up."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vtokens.evaluation.cells import CellResult


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
  """Sums over some questions.

  Means of shards cannot be averaged unless all shards have equally many
  questions; sums can always be added. Rows that only fill up a batch have no
  question and are never in one.

  Attributes:
    n: the number of questions.
    sums: quantity -> sum over them.
  """

  n: int = 0
  sums: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, values: Mapping[str, Float[np.ndarray, 'n']]) -> 'Totals':
    """Sums quantities that were measured of the same questions.

    Args:
      values: quantity -> value for each question.

    Raises:
      ValueError: no quantities, or of different numbers of questions.
    """
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) != 1:
      raise ValueError(
        f'values of {sizes} questions: expected the same questions for all'
      )
    return cls(
      n=next(iter(sizes.values())),
      sums={name: float(np.sum(value)) for name, value in values.items()},
    )

  @classmethod
  def of_cell(cls, result: CellResult) -> 'Totals':
    """Sums the metrics of a cell, and what was generated.

    Beside the metrics: num_tokens, generated without the one that ended an
    answer; end, newline and length, the answers that each of these ended.
    """
    tokens = np.array([a.num_tokens for a in result.answers], np.float64)
    stops = {
      name: np.array([a.stop == name for a in result.answers], np.float64)
      for name in ('end', 'newline', 'length')
    }
    return cls.of({**result.values, 'num_tokens': tokens, **stops})

  def __add__(self, other: 'Totals') -> 'Totals':
    """Both together; one without questions adds nothing.

    Raises:
      ValueError: the quantities differ.
    """
    if not self.n or not other.n:
      return self if self.n else other
    if self.sums.keys() != other.sums.keys():
      raise ValueError(
        f'sums of {sorted(self.sums)} cannot be added to those of '
        f'{sorted(other.sums)}'
      )
    return Totals(
      n=self.n + other.n,
      sums={name: self.sums[name] + other.sums[name] for name in self.sums},
    )

  def means(self) -> dict[str, float]:
    """Quantity -> mean over the questions.

    Raises:
      ValueError: there are no questions.
    """
    if not self.n:
      raise ValueError('no questions: their mean is undefined')
    return {name: total / self.n for name, total in self.sums.items()}
