"""Records (question, answers, passages by retriever) and their JSONL files."""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import errors

_ADVICE = (
  'Fix the line, or leave out every such line with '
  '--config.data.on_bad_record=skip'
)
_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
  '.gz': gzip.open,
  '.xz': lzma.open,
  '.bz2': bz2.open,
}
# Unicode's control characters (category Cc) but for \t \n \r, and surrogates:
# json.loads makes a lone surrogate from '\ud800', and no tokenizer encodes it.
_BAD_CHARACTER = re.compile(r'[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')
_TYPE_NAMES = {
  dict: 'an object',
  list: 'an array',
  str: 'a string',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  type(None): 'null',
}
_DUPLICATE = object()


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
      retriever: its name; '' for the only one that the record has beside
        `GOLD`, or that if there is no other.

    Raises:
      RecordError: `retriever` is '' and there are several.
    """
    if retriever:
      return self.passages.get(retriever, ())
    names = [name for name in self.passages if name != GOLD]
    if len(names) > 1:
      raise RecordError(
        f'record {self.id} has passages of several retrievers, '
        f'{", ".join(names)}; say which to use'
      )
    return self.passages.get(names[0] if names else GOLD, ())


@dataclasses.dataclass(frozen=True, slots=True)
class ReadResult:
  """What `read_records` found.

  Attributes:
    records: the valid records, in the order of the files and their lines.
    skipped: one message, of one line, for each line left out.
  """

  records: list[Record]
  skipped: list[str]


class _BadLineError(Exception):
  """What is wrong with one line, without its file and number."""


def sha256(records: Sequence[Record]) -> str:
  """Hash of the records' content and order, 64 hexadecimal digits."""
  digest = hashlib.sha256()
  for record in records:
    line = json.dumps(dataclasses.asdict(record), sort_keys=True)
    digest.update(line.encode() + b'\n')
  return digest.hexdigest()


def read_records(
  paths: Sequence[str],
  *,
  on_bad_record: str = 'error',
) -> ReadResult:
  r"""Reads and checks JSONL files of records.

  Each line is an object with the keys

      id        optional; default '<file stem>:<line number>'
      dataset   optional; default the file stem up to its first dot
      question  a string
      answers   a string or an array of strings; `target` means the same
      passages  an array, best first, of strings or of objects
                {id?, title?, text, score?}, or an object of such arrays by
                name of the retriever; `ret_passages` means the same

  and any others, which are ignored. The file stem is the name without
  '.gz', '.xz' or '.bz2' and then without its last suffix. Texts are kept as
  they are; control characters other than \t \n \r and lone surrogates are
  refused. Blank lines are allowed at the end of a file only.

  Args:
    paths: files, plain or compressed as their suffix says; local or any path
      that etils.epath opens, such as gs://bucket/train.jsonl.gz.
    on_bad_record: whether a line that breaks a rule is an error or is skipped.
      A file that cannot be read to its end, or that has no valid line, is an
      error in any case.

  Returns:
    The records, and a message for each line skipped.

  Raises:
    RecordError: for a bad file or line, with its path, line number and key.
    TypeError: if `paths` is one string.
    ValueError: if `on_bad_record` is neither 'error' nor 'skip'.
  """
  if isinstance(paths, str):
    raise TypeError(f'paths is the string {paths!r}, expected a list of it')
  if on_bad_record not in ('error', 'skip'):
    raise ValueError(
      f"on_bad_record is {on_bad_record!r}, expected 'error' or 'skip'"
    )
  if not paths:
    raise RecordError('No files of records were given, expected at least one')
  records: list[Record] = []
  skipped: list[str] = []
  places: dict[str, str] = {}  # id -> 'file:line'
  for path in paths:
    stem = _stem(path)
    num_records, num_skipped = len(records), len(skipped)
    for number, line in _numbered_lines(path):
      place = f'{path}:{number}'
      default_id = f'{stem}:{number}'
      try:
        record = _parse_line(line, default_id, stem.split('.')[0] or stem)
        if record.id in places:
          made = record.id == default_id
          raise _BadLineError(
            f'id: found {_printable(record.id)}'
            f'{" (made from file name and line number)" if made else ""}, '
            f'which {places[record.id]} has too, expected an id of its own'
          )
      except _BadLineError as e:
        message = f'{place}: {e}'
        if on_bad_record == 'error':
          raise RecordError(f'{message}. {_ADVICE}') from None
        skipped.append(message)
        continue
      places[record.id] = place
      records.append(record)
    if len(records) == num_records:
      why = 'the file is empty'
      if len(skipped) > num_skipped:
        why = f'no line is valid; the first: {skipped[num_skipped]}'
      raise RecordError(
        f'{path}: found no record, expected at least one; {why}'
      )
  return ReadResult(records, skipped)


def _stem(path: str) -> str:
  name = epath.Path(path).name
  root, suffix = os.path.splitext(name)
  if suffix.lower() in _DECOMPRESSORS:
    name = root
  return os.path.splitext(name)[0]


def _numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line) up to the last line that is not blank."""
  suffix = os.path.splitext(path)[1].lower()
  decompress: Callable[..., Any] = _DECOMPRESSORS.get(
    suffix, contextlib.nullcontext
  )
  blank = []
  try:
    with epath.Path(path).open('rb') as raw, decompress(raw) as file:
      for number, line in enumerate(file, start=1):
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
          blank.append((number, line))
          continue
        yield from blank
        blank.clear()
        yield number, line
  # ImportError: the path is remote and its client (gcsfs, s3fs) is missing.
  except (OSError, EOFError, ImportError, zlib.error, lzma.LZMAError) as e:
    raise RecordError(
      f'{path}: cannot be read to its end: {type(e).__name__}: {e}. '
      'Check the path, or make or copy the file again'
    ) from e


def _parse_line(line: bytes, default_id: str, default_dataset: str) -> Record:
  record = _check_object(_parse_json(line), '')
  answers_key = _only_key(record, 'answers', 'target')
  passages_key = _only_key(record, 'passages', 'ret_passages')
  answers = record[answers_key]
  if isinstance(answers, str):
    answers = (_check_text(answers, answers_key),)
  elif not isinstance(answers, list):
    raise _bad(answers_key, answers, 'a string or an array of strings')
  elif not answers:
    raise _BadLineError(
      f'{answers_key}: found an empty array, expected at least one answer'
    )
  else:
    answers = tuple(
      _check_text(answer, f'{answers_key}[{i}]')
      for i, answer in enumerate(answers)
    )
  passages = record[passages_key]
  if not isinstance(passages, dict):
    passages = {GIVEN: passages}
  else:
    _check_object(passages, f'{passages_key}.')
  return Record(
    id=_check_text(record.get('id', default_id), 'id'),
    dataset=_check_text(record.get('dataset', default_dataset), 'dataset'),
    question=_check_text(record[_only_key(record, 'question')], 'question'),
    answers=answers,
    passages={
      _check_text(name, f'{passages_key}: the name of a retriever'): tuple(
        _parse_passage(passage, f'{key}[{i}]')
        for i, passage in enumerate(_check_array(ranked, key))
      )
      for name, ranked in passages.items()
      for key in [
        passages_key
        if record[passages_key] is ranked
        else f'{passages_key}.{_printable(name)}'
      ]
    },
  )


def _parse_json(line: bytes) -> Any:
  if not line.strip():
    raise _BadLineError(
      'line: found a blank line before the last record, '
      'expected one JSON object'
    )
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as e:
    raise _BadLineError(
      f'line: found byte 0x{line[e.start]:02x} at position {e.start + 1} '
      f'({e.reason}), expected UTF-8'
    ) from None
  try:
    return json.loads(text, object_pairs_hook=_mark_duplicates)
  except json.JSONDecodeError as e:
    raise _BadLineError(
      f'line: found no JSON at column {e.colno} ({e.msg}), '
      'expected one JSON object'
    ) from None
  # Deep nesting, and numbers with more digits than Python converts.
  except (RecursionError, ValueError) as e:
    raise _BadLineError(
      f'line: found JSON that cannot be parsed ({e}), expected one JSON object'
    ) from None


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  # The error is raised later, where the object's place in the line is known.
  result: dict[str, Any] = {}
  for key, value in pairs:
    result[key] = _DUPLICATE if key in result else value
  return result


def _parse_passage(value: Any, key: str) -> Passage:
  if isinstance(value, str):
    return Passage(id='', title='', text=_check_text(value, key))
  if not isinstance(value, dict):
    raise _bad(key, value, 'a string or an object')
  passage = _check_object(value, f'{key}.')
  if 'text' not in passage:
    raise _missing(f'{key}.text', passage)
  return Passage(
    id=_check_text(passage.get('id', ''), f'{key}.id', blank=True),
    title=_check_text(passage.get('title', ''), f'{key}.title', blank=True),
    text=_check_text(passage['text'], f'{key}.text'),
    score=_check_score(passage.get('score'), f'{key}.score'),
  )


def _check_score(value: Any, key: str) -> float | None:
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _bad(key, value, 'a number')
  if not math.isfinite(value):
    raise _bad(key, value, 'a finite number')
  return float(value)


def _check_array(value: Any, key: str) -> list[Any]:
  if not isinstance(value, list):
    raise _bad(key, value, 'an array of passages')
  return value


def _check_object(value: Any, prefix: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise _bad('line', value, 'one JSON object')
  for key, item in value.items():
    if item is _DUPLICATE:
      raise _BadLineError(
        f'{prefix}{_printable(key)}: found more than once, expected once'
      )
  return value


def _check_text(value: Any, key: str, *, blank: bool = False) -> str:
  if not isinstance(value, str):
    raise _bad(key, value, 'a string')
  bad = _BAD_CHARACTER.search(value)
  if bad:
    raise _BadLineError(
      f'{key}: found the character U+{ord(bad[0]):04X} at position '
      f'{bad.start() + 1}, expected text without control characters and '
      'lone surrogates'
    )
  if not blank and not value.strip():
    raise _BadLineError(
      f'{key}: found {"a blank" if value else "an empty"} string, '
      'expected visible text'
    )
  return value


def _only_key(record: dict[str, Any], *names: str) -> str:
  """Returns the one of several equivalent keys that the record has."""
  present = [name for name in names if name in record]
  if not present:
    raise _missing(' or '.join(names), record)
  if len(present) > 1:
    raise _BadLineError(
      f'{" and ".join(present)}: found both, expected one: they mean the same'
    )
  return present[0]


def _missing(key: str, found: dict[str, Any]) -> _BadLineError:
  keys = ', '.join(_printable(name) for name in found) or 'no key'
  return _BadLineError(
    f'{key}: missing, found only {keys}, expected this key too'
  )


def _bad(key: str, value: Any, expected: str) -> _BadLineError:
  found = _TYPE_NAMES[type(value)]
  if isinstance(value, bool | int | float | str):
    found += f' ({_printable(json.dumps(value))})'
  return _BadLineError(f'{key}: found {found}, expected {expected}')


def _printable(text: str) -> str:
  """Escapes and shortens text from a file, so that a message is one line."""
  text = text if text.isprintable() else ascii(text)
  return text if len(text) <= 40 else text[:37] + '...'
