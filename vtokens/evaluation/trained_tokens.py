"""Trained virtual tokens, ready to be put into prompts."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from vtokens.data.assemble import Assembler
from vtokens.method.trainable import Trainable, Values
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedTokens:
  """The virtual tokens of a run and how its prompts are assembled.

  Attributes:
    name: unique in an evaluation.
    values: the trained values; of a table an array of shape [P, D], float32.
    assembler: has the templates and the position of training.
    trainable: what the values are.
    refuses: whether they were trained to refuse (`data.unanswerable=refuse`).
  """

  name: str
  values: Values
  assembler: Assembler
  trainable: Trainable = TABLE
  refuses: bool = False

  def __len__(self) -> int:
    """Number of virtual tokens."""
    return self.trainable.count(self.values)

  @functools.cached_property
  def refusal_token(self) -> tuple[int, int] | None:
    """Place and id of the first token of the refusal that is not blank.

    All answers begin with the blank ones, which are of the template; the rule
    is that of `AnswerReader.is_blank`. None if they were not trained to refuse.
    """
    if not self.refuses:
      return None
    ids = self.assembler.refusal().tolist()
    decode = self.assembler.encoder.tokenizer.decode
    return next((at, i) for at, i in enumerate(ids) if decode([i]).strip())


@dataclasses.dataclass(frozen=True, eq=False)
class BranchTokens:
  """The virtual tokens that some branches of a question share.

  Attributes:
    values: the trained values.
    trainable: what they are.
  """

  values: Values
  trainable: Trainable = TABLE


def refusal_tokens(
  tokens: Sequence[TrainedTokens | None],
) -> list[tuple[int, int] | None]:
  """`TrainedTokens.refusal_token` of each branch; None for one without any."""
  return [None if one is None else one.refusal_token for one in tokens]


def stack(
  tokens: Sequence[TrainedTokens | None], config: DecoderConfig
) -> tuple[list[BranchTokens], list[int]]:
  """Stacks all tables, so that branches with different ones are asked together.

  Args:
    tokens: virtual tokens of each branch; None for a branch without any.
    config: architecture of the base.

  Returns:
    What each branch takes its virtual tokens from, the same object for branches
    that can be asked together; and the id of virtual token 0 of each branch.
  """
  tables: list[np.ndarray] = []
  others: dict[int, BranchTokens] = {}
  starts: dict[int, int] = {}
  for one in tokens:
    if one is None or id(one) in starts or id(one) in others:
      continue
    if one.trainable.in_suffix:
      starts[id(one)] = sum(map(len, tables))
      tables.append(one.values)
    else:
      others[id(one)] = BranchTokens(one.values, one.trainable)
  # Branches without virtual tokens use no row of it.
  rows = tables or [np.zeros((1, config.embed_dim), np.float32)]
  table = BranchTokens(np.concatenate(rows))
  return (
    [others.get(id(one), table) for one in tokens],
    [config.vocab_size + starts.get(id(one), 0) for one in tokens],
  )
