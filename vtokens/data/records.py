"""Records: a question, its answers, its passages by retriever.

`vtokens.data.formats` reads them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from vtokens.host import errors

# Under this name lie the passages that annotators marked, if any.
GOLD = 'gold'
# Under this one what a file gives without naming who retrieved it.
GIVEN = 'given'


class RecordError(errors.UserError):
  """A file of records that cannot be used; the message says where and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """A passage of text.

  Attributes:
    id: the corpus id, '' if the file gives none.
    title: the title, '' if the file gives none.
    text: the text; never blank.
    score: the retriever's, finite; None if the file gives none.
  """

  id: str
  title: str
  text: str
  score: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A question with everything needed to train on it or to score it.

  Attributes:
    id: unique over all the files read together.
    dataset: the name that results are grouped by.
    question: never blank.
    answers: at least one, none blank; any one counts.
    passages: by retriever, each in rank order, best first; may be empty.
      Two names have a meaning: `GOLD` and `GIVEN`.
  """

  id: str
  dataset: str
  question: str
  answers: tuple[str, ...]
  passages: Mapping[str, tuple[Passage, ...]]

  def ranked(self, retriever: str = '') -> tuple[Passage, ...]:
    """The passages of one retriever; none if it has none for this question.

    Args:
      retriever: its name; '' for that of `only_retriever`.

    Raises:
      RecordError: `retriever` is '' and there are several.
    """
    return self.passages.get(retriever or self.only_retriever(), ())

  def only_retriever(self) -> str:
    """The only retriever beside `GOLD`; `GOLD` if there is no other.

    Raises:
      RecordError: there are several.
    """
    names = [name for name in self.passages if name != GOLD]
    if len(names) > 1:
      raise RecordError(
        f'record {self.id} has passages of several retrievers, '
        f'{errors.several(names)}; say which to use'
      )
    return names[0] if names else GOLD


def sha256(records: Sequence[Record]) -> str:
  """Hash of the records' content and order, 64 hexadecimal digits."""
  digest = hashlib.sha256()
  for record in records:
    line = json.dumps(dataclasses.asdict(record), sort_keys=True)
    digest.update(line.encode() + b'\n')
  return digest.hexdigest()
