"""Reads the text of an answer: its citation, and whether it is a refusal."""

import dataclasses
from collections.abc import Sequence

from vtokens import config
from vtokens.data import token_cache
from vtokens.data.records import Record
from vtokens.evaluation.asking.cells import Answer
from vtokens.scoring import citations, refusals
from vtokens.scoring.citations import CitationScores


@dataclasses.dataclass(frozen=True)
class AnswerTexts:
  """How answers were trained to look.

  Attributes:
    refusal: config.templates.refusal.
    template: template of answers.
  """

  refusal: str
  template: str

  @classmethod
  def of(cls, templates: config.Templates, chat: bool) -> 'AnswerTexts':
    """Answers in a chat, or after plain text."""
    template = templates.chat_answer if chat else templates.answer
    return cls(templates.refusal, template)

  @property
  def cites(self) -> bool:
    """Whether answers have citations."""
    return citations.SOURCE in self.template

  def texts(self, answers: Sequence[Answer]) -> list[str]:
    """The texts of answers without their citations."""
    return [citations.split_answer(a.text, self.template)[0] for a in answers]

  def cited(self, answers: Sequence[Answer]) -> list[int | None]:
    """The number that each answer cites, if any."""
    return [citations.split_answer(a.text, self.template)[1] for a in answers]

  def refused(self, answers: Sequence[Answer]) -> list[bool]:
    """Whether each answer is the refusal."""
    texts = self.texts(answers)
    return [refusals.is_refusal(text, self.refusal) for text in texts]

  def citation_scores(
    self, records: Sequence[Record], answers: Sequence[Answer], retriever: str
  ) -> CitationScores | None:
    """Scores of citations; None if answers have none or saw no passage.

    Args:
      records: the questions.
      answers: one for each record.
      retriever: whose passages were shown.
    """
    if not self.cites or not any(answer.shown for answer in answers):
      return None
    pairs = zip(records, answers, strict=True)
    return citations.score(
      self.cited(answers),
      [_holding(record, answer, retriever) for record, answer in pairs],
    )


def _holding(record: Record, answer: Answer, retriever: str) -> list[int]:
  """Numbers, from 1, of the shown passages that have the answer."""
  if not (record.answerable and answer.shown):
    return []
  ranked = record.ranked(retriever)
  shown = [ranked[rank] for rank in answer.shown]
  return [
    number
    for number, found in enumerate(token_cache.has_it(record, shown), 1)
    if found
  ]
