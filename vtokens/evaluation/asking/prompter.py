"""Makes prompts: the passages and ids of a question in a prompt variant."""

import dataclasses
from collections.abc import Sequence

from vtokens import config
from vtokens.data import pipeline, prompt_encoder, token_cache
from vtokens.data.assemble import Assembler, Example
from vtokens.data.records import Passage, Record
from vtokens.evaluation.conditions import CONDITIONS, Condition
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors


@dataclasses.dataclass(frozen=True, eq=False)
class PromptVariant:
  """A condition with the virtual tokens that it is asked with.

  Attributes:
    name: unique among variants asked together.
    condition: how to ask.
    tokens: the virtual tokens; None if the condition has none.
    num_active: number of virtual tokens (k); 0 for none.
  """

  name: str
  condition: Condition
  tokens: TrainedTokens | None = None
  num_active: int = 0


def bare_variant(name: str) -> PromptVariant:
  """The variant of a condition without virtual tokens."""
  return PromptVariant(name, CONDITIONS[name])


def tokens_variant(tokens: TrainedTokens, num_active: int) -> PromptVariant:
  """The condition `tokens` with the first `num_active` virtual tokens."""
  return PromptVariant(
    f'tokens_k{num_active}', CONDITIONS['tokens'], tokens, num_active
  )


class Prompter:
  """Makes the examples of prompt variants.

  Args:
    assembler: for variants without virtual tokens.
    shown: which passages are shown.
    seed: seed of the order of passages.

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
    variants: Sequence[PromptVariant],
    *,
    answers: bool = False,
  ) -> None:
    """Checks that all questions can be asked, before hours of answering.

    Args:
      records: the questions.
      variants: the prompt variants.
      answers: whether the loss of the first answers will be computed.

    Raises:
      errors.UserError: a question is too long for a variant, or a variant has
        more virtual tokens than there are.
    """
    for variant in variants:
      tokens = variant.tokens
      if tokens is not None and variant.num_active > len(tokens):
        raise errors.UserError(
          f'{variant.name}: {variant.num_active} virtual tokens asked for, but '
          f'{tokens.name} has {len(tokens)}'
        )
      for record in records:
        answer = self.first_answer(record) if answers else None
        self._assemble(record, variant, (), answer)
        self.passages(record, variant)

  def first_answer(self, record: Record) -> str:
    """The first accepted answer, or the refusal if there is none."""
    templates = self._assembler.encoder.templates
    return prompt_encoder.first_answer(record.answers, templates)

  def passages(
    self, record: Record, variant: PromptVariant
  ) -> tuple[tuple[int, Passage], ...]:
    """The passages that a variant shows, with ranks, in order."""
    return self.shown(record) if variant.condition.passages else ()

  def shown(self, record: Record) -> tuple[tuple[int, Passage], ...]:
    """The passages of variants that show passages, with ranks, in order."""
    return pipeline.shown_passages(record, self._shown, self._seed)

  def example(
    self, record: Record, variant: PromptVariant, answer: str | None = None
  ) -> Example:
    """The ids of a question, and of an answer if given."""
    return self._assemble(
      record, variant, self.passages(record, variant), answer
    )

  def _assemble(
    self,
    record: Record,
    variant: PromptVariant,
    passages: Sequence[tuple[int, Passage]],
    answer: str | None,
  ) -> Example:
    # Without tokens all positions give the same ids. With `middle` the prefix
    # is longest, and variants share it.
    assembler, position = self._assembler, 'middle'
    if variant.tokens is not None:
      assembler = variant.tokens.assembler
      position = variant.condition.position or assembler.position
    has_it: list[bool] = []
    if answer is not None and record.answerable:
      shown = [passage for _, passage in passages]
      has_it = token_cache.has_it(record, shown)
    return assembler(
      passages,
      record.question,
      answer=answer,
      has_it=has_it,
      num_active=variant.num_active,
      prompt=variant.condition.template,
      chat=variant.condition.chat,
      position=position,
      where=f'record {record.id}',
    )

  def length(self, record: Record) -> int:
    """Characters of question and passages, as a measure of the prompt."""
    texts = [passage.text for _, passage in self.shown(record)]
    return sum(map(len, [*texts, record.question]))
