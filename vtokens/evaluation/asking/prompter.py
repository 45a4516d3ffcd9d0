"""What is put to a model: passages, ids and their limits, for each arm."""

import dataclasses
from collections.abc import Sequence

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler, Example
from vtokens.data.records import Passage, Record
from vtokens.evaluation.conditions import CONDITIONS, Condition, Table
from vtokens.host import errors


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """What is compared: a condition, with a table and k where it has tokens.

  Attributes:
    name: unique among those asked together.
    condition: how to ask.
    table: the virtual tokens; None where the condition has none.
    num_active: how many of them (k); 0 for none.
  """

  name: str
  condition: Condition
  table: Table | None = None
  num_active: int = 0


def bare_arm(name: str) -> Arm:
  """A condition of the base without virtual tokens."""
  return Arm(name, CONDITIONS[name])


def tokens_arm(table: Table, num_active: int) -> Arm:
  """Passages, the first `num_active` virtual tokens, question."""
  return Arm(f'tokens_k{num_active}', CONDITIONS['tokens'], table, num_active)


class Prompter:
  """Makes the examples of arms.

  Args:
    assembler: of arms without a table.
    shown: which passages.
    seed: of the order of passages.

  Attributes:
    max_targets: longest answer with eos, in tokens.
  """

  def __init__(self, assembler: Assembler, shown: config.Shown, seed: int):
    self._assembler = assembler
    self._shown = shown
    self._seed = seed
    self.max_targets = assembler.limits.targets

  def check_fits(
    self,
    records: Sequence[Record],
    arms: Sequence[Arm],
    *,
    answers: bool = False,
  ) -> None:
    """Raises if a question is too long for an arm, or one is impossible.

    At the start, rather than hours into the run.

    Args:
      records: the questions.
      arms: ways to ask them.
      answers: whether the loss of their first answers will be wanted.

    Raises:
      errors.UserError: naming the record.
    """
    for arm in arms:
      if arm.table is not None and arm.num_active > len(arm.table.rows):
        raise errors.UserError(
          f'{arm.name}: {arm.num_active} virtual tokens asked for, but the '
          f'table {arm.table.name} has {len(arm.table.rows)}'
        )
      for record in records:
        self._assemble(record, arm, (), record.answers[0] if answers else None)
        self.passages(record, arm)

  def passages(
    self, record: Record, arm: Arm
  ) -> tuple[tuple[int, Passage], ...]:
    """The passages that an arm shows, with their ranks, in order."""
    return self.shown(record) if arm.condition.passages else ()

  def shown(self, record: Record) -> tuple[tuple[int, Passage], ...]:
    """The passages that arms with passages show."""
    return pipeline.shown_passages(record, self._shown, self._seed)

  def example(
    self, record: Record, arm: Arm, answer: str | None = None
  ) -> Example:
    """The ids of a question, and of an answer if one is given."""
    return self._assemble(record, arm, self.passages(record, arm), answer)

  def _assemble(
    self,
    record: Record,
    arm: Arm,
    passages: Sequence[tuple[int, Passage]],
    answer: str | None,
  ) -> Example:
    # Without tokens all positions are the same; in the middle prefixes are
    # longest, and shared.
    assembler, position = self._assembler, 'middle'
    if arm.table is not None:
      assembler = arm.table.assembler
      position = arm.condition.position or assembler.position
    return assembler(
      passages,
      record.question,
      answer=answer,
      num_active=arm.num_active,
      prompt=arm.condition.template,
      chat=arm.condition.chat,
      position=position,
      where=f'record {record.id}',
    )

  def length(self, record: Record) -> int:
    """Characters of question and passages: about how long a prompt is."""
    texts = [passage.text for _, passage in self.shown(record)]
    return sum(map(len, [*texts, record.question]))
