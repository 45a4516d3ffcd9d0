"""Citations: which of the shown passages an answer names.

With `templates.answer=' {answer} [{source}]'` an answer ends with the number of
a passage. The *citation* is the end of the template, here ' [{source}]'.
"""

import dataclasses
import re
import string
from collections.abc import Sequence
from typing import Any

SOURCE = '{source}'


@dataclasses.dataclass(frozen=True, slots=True)
class CitationScores:
  """How well citations name a passage that has the answer.

  Attributes:
    precision: share of the citations that name such a passage, in percent; 0
      without citations.
    recall: share of the answers that could name one, since one was shown, and
      do, in percent; 0 if none could.
    f1: harmonic mean of the two, in percent.
    cited: number of answers with a citation.
    citable: number of questions to which such a passage was shown.
  """

  precision: float
  recall: float
  f1: float
  cited: int
  citable: int

  def as_dict(self) -> dict[str, Any]:
    """Returns the fields by name, for writers and reports."""
    return dataclasses.asdict(self)


def split_template(template: str) -> tuple[str, str]:
  """Cuts a template of answers in two: the answer's part, and the citation.

  Returns:
    The template up to the end of {answer}, and the rest; if it has no
    {source}, the whole template and ''.
  """
  if SOURCE not in template:
    return template, ''
  end = 0
  # Doubled braces are text.
  for text, name, *_ in string.Formatter().parse(template):
    end += len(text) + text.count('{') + text.count('}')
    if name is not None:
      end += len('{answer}')
      break
  return template[:end], template[end:]


def split_answer(text: str, template: str) -> tuple[str, int | None]:
  """Cuts an answer in two.

  Args:
    text: the answer of a model.
    template: template of answers in training.

  Returns:
    The answer without its citation, and the number that it names; None if it
    has no citation.
  """
  _, citation = split_template(template)
  if not citation:
    return text, None
  # White space at the end of an answer is dropped.
  before, after = citation.rstrip().split(SOURCE)
  pattern = rf'{_escape(before.lstrip())}(\d{{1,9}}){_escape(after)}$'
  found = re.search(pattern, text)
  if found is None:
    return text, None
  return text[: found.start()].rstrip(), int(found[1])


def _escape(text: str) -> str:
  return re.escape(text.format())  # {{ and }} stand for braces.


def score(
  cited: Sequence[int | None], holding: Sequence[Sequence[int]]
) -> CitationScores:
  """Scores the citations in the answers to some questions.

  Args:
    cited: for each answer the number that it names, or None.
    holding: for each question the numbers, from 1, of the shown passages that
      have the answer.

  Raises:
    ValueError: the two differ in length.
  """
  pairs = list(zip(cited, holding, strict=True))
  num_cited = sum(number is not None for number, _ in pairs)
  citable = sum(bool(numbers) for _, numbers in pairs)
  right = sum(number in numbers for number, numbers in pairs)
  return CitationScores(
    precision=100.0 * right / max(num_cited, 1),
    recall=100.0 * right / max(citable, 1),
    f1=200.0 * right / max(num_cited + citable, 1),
    cited=num_cited,
    citable=citable,
  )
