"""Kinds of bad records, and the account of those left out."""

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
  """The message says what is wrong with a record, without its place.

  Attributes:
    kind: the kind of mistake, for counting.
  """

  def __init__(self, kind: Kind, message: str):
    super().__init__(message)
    self.kind = kind


class BadRecords:
  """The policy for bad records, and an account of those left out.

  Attributes:
    on_bad_record: 'error' raises at the first; 'skip' counts it and goes on.
    on_unanswerable: what happens to questions whose source says that they have
      no answer, as in SQuAD 2.0: 'error' and 'skip' as above; 'keep' reads them
      as records without answers. They are not bad.
    max_text_bytes: length limit of a text, in bytes of UTF-8.
    num_good: number of good records, or passages of a corpus.
    counts: number of records left out, by kind.
    skipped: (place, kind, reason) of each record left out; about 300 bytes of
      memory each.
    notes: counts of events after which the record was kept.
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
      flag: flag that skips bad records, for messages.

    Raises:
      ValueError: there is no such policy.
    """
    if on_bad_record not in ('error', 'skip'):
      raise ValueError(
        f"on_bad_record is {on_bad_record!r}, expected 'error' or 'skip'"
      )
    if on_unanswerable not in ('error', 'skip', 'keep'):
      raise ValueError(
        f"on_unanswerable is {on_unanswerable!r}, expected 'error', 'skip' or "
        "'keep'"
      )
    self.on_bad_record = on_bad_record
    self.on_unanswerable = on_unanswerable
    self.max_text_bytes = max_text_bytes
    self.num_good = 0
    self.counts: collections.Counter[Kind] = collections.Counter()
    self.skipped: list[tuple[str, Kind, str]] = []
    self.notes: collections.Counter[str] = collections.Counter()
    self._flag = flag

  def add(self, place: str, bad: BadRecord) -> None:
    """Notes a bad record.

    Raises:
      RecordError: the policy is 'error'. The message has place and advice.
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
  def keeps_unanswerable(self) -> bool:
    """Whether questions without an answer become records."""
    return self.on_unanswerable == 'keep'

  @property
  def messages(self) -> list[str]:
    """A line for each bad record left out, without unanswerable ones."""
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
