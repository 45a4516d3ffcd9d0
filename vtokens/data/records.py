"""A record: a question, its answers, and its passages by retriever."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from vtokens.host import errors

# Retriever of the passages that annotators marked.
GOLD = 'gold'
# Retriever of passages for which the file names none.
GIVEN = 'given'


class RecordError(errors.UserError):
  """A file of records is unusable; the message says where and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  """A passage of text.

  Attributes:
    id: id in the corpus; '' if the file gives none.
    title: title; '' if the file gives none.
    text: text; never blank.
    score: the retriever's score, finite; None if the file gives none.
  """

  id: str
  title: str
  text: str
  score: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A question with all that training and scoring need.

  Attributes:
    id: unique among all files that are read together.
    dataset: name that results are grouped by.
    question: never blank.
    answers: none blank; any of them is right. Empty if the source says that
      the question has no answer.
    passages: passages by retriever, best first; may be empty. `GOLD` and
      `GIVEN` are special retrievers.
  """

  id: str
  dataset: str
  question: str
  answers: tuple[str, ...]
  passages: Mapping[str, tuple[Passage, ...]]

  @property
  def answerable(self) -> bool:
    """Whether the question has an answer."""
    return bool(self.answers)

  def ranked(self, retriever: str = '') -> tuple[Passage, ...]:
    """The passages of one retriever; empty if it found none.

    Args:
      retriever: name of the retriever; '' for `only_retriever`.

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
  """SHA-256 of the records' content and order, 64 hexadecimal digits."""
  digest = hashlib.sha256()
  for record in records:
    line = json.dumps(dataclasses.asdict(record), sort_keys=True)
    digest.update(line.encode() + b'\n')
  return digest.hexdigest()
