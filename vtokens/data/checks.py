"""What can be wrong with records, and what becomes of those."""

import collections
import enum

from etils import epath

from vtokens.data.records import RecordError
from vtokens.host import writers

_UNANSWERABLE = 'questions left out: their source says they have no answer'


class Kind(enum.StrEnum):
  """What can be wrong with a record or a passage."""

  MALFORMED = 'malformed'
  INVALID_UTF8 = 'invalid_utf8'
  MISSING_KEY = 'missing_key'
  WRONG_TYPE = 'wrong_type'
  EMPTY = 'empty'
  UNREAD_KEY = 'unread_key'
  TOO_LONG = 'too_long'
  DUPLICATE_ID = 'duplicate_id'
  MISSING_PASSAGE = 'missing_passage'
  UNANSWERABLE = 'unanswerable'


class BadRecord(Exception):
  """What is wrong with one record, without its place.

  Attributes:
    kind: the sort of mistake, for counting.
  """

  def __init__(self, kind: Kind, message: str):
    super().__init__(message)
    self.kind = kind


class BadRecords:
  """What to do with bad records, and an account of those left out.

  Attributes:
    on_bad_record: 'error' raises at the first; 'skip' counts and goes on.
    on_unanswerable: likewise for questions that their source says have no
      answer, such as those of SQuAD 2.0: they are no mistake.
    max_text_bytes: longest text allowed, in bytes of UTF-8.
    num_good: records (or passages of a corpus) that passed.
    counts: how many were left out, by kind.
    skipped: (place, kind, reason) of each of them, about 300 bytes of memory.
    notes: how often something happened that left nobody out.
  """

  def __init__(
    self,
    on_bad_record: str = 'error',
    *,
    on_unanswerable: str = 'skip',
    max_text_bytes: int = 1 << 20,
    flag: str = '--config.data.on_bad_record=skip',
  ):
    """Starts an empty account.

    Args:
      on_bad_record: see the class.
      on_unanswerable: see the class.
      max_text_bytes: see the class.
      flag: what a user sets so that bad records are skipped, for messages.

    Raises:
      ValueError: a policy is neither 'error' nor 'skip'.
    """
    policies = {
      'on_bad_record': on_bad_record,
      'on_unanswerable': on_unanswerable,
    }
    for name, value in policies.items():
      if value not in ('error', 'skip'):
        raise ValueError(f"{name} is {value!r}, expected 'error' or 'skip'")
    self.on_bad_record = on_bad_record
    self.on_unanswerable = on_unanswerable
    self.max_text_bytes = max_text_bytes
    self.num_good = 0
    self.counts: collections.Counter[Kind] = collections.Counter()
    self.skipped: list[tuple[str, Kind, str]] = []
    self.notes: collections.Counter[str] = collections.Counter()
    self._flag = flag

  def add(self, place: str, bad: BadRecord) -> None:
    """Takes note of a bad record.

    Raises:
      RecordError: if that is the policy; with the place and what to do.
    """
    if bad.kind is Kind.UNANSWERABLE:
      if self.on_unanswerable == 'error':
        raise RecordError(f'{place}: {bad}')
    elif self.on_bad_record == 'error':
      raise RecordError(
        f'{place}: {bad}. Fix the file, or leave out what is bad in it with '
        f'{self._flag}'
      )
    if bad.kind is Kind.UNANSWERABLE:
      self.notes[_UNANSWERABLE] += 1
    self.counts[bad.kind] += 1
    self.skipped.append((place, bad.kind, str(bad)))

  @property
  def messages(self) -> list[str]:
    """One line for each bad record left out; those unanswerable are not bad."""
    return [
      f'{place}: {reason}'
      for place, kind, reason in self.skipped
      if kind is not Kind.UNANSWERABLE
    ]

  def write(self, path: epath.PathLike) -> None:
    """Writes the account as JSON, whole or not at all."""
    writers.write_json(
      path,
      {
        'good': self.num_good,
        'left_out': self.counts.total(),
        'left_out_by_kind': dict(sorted(self.counts.items())),
        'notes': dict(sorted(self.notes.items())),
        'skipped': [
          {'place': place, 'kind': kind, 'reason': reason}
          for place, kind, reason in self.skipped
        ],
      },
    )


def printable(text: str) -> str:
  """Escapes and shortens text from a file, so that a message is one line."""
  text = text if text.isprintable() else ascii(text)
  return text if len(text) <= 40 else text[:37] + '...'
