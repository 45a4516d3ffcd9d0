"""Passages and questions as they come: the one place that opens their files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vtokens import errors, paths
from vtokens.data import records


def read_passages(
  files: Sequence[str], *, on_bad_record: str, skipped: list[str]
) -> Iterator[records.Passage]:
  """Streams a corpus of JSON lines {id, title, text}.

  Args:
    files: plain or compressed as their suffix says; see `paths.resolve`.
    on_bad_record: error, or skip.
    skipped: gets a message for each line left out.

  Yields:
    Passages, each with an id, in the order of the files and their lines.

  Raises:
    errors.UserError: a file cannot be read; a line is bad and is not to be
      skipped.
  """

  def parse(line: bytes, place: str) -> records.Passage:
    del place
    passage = records._parse_passage(records._parse_json(line), 'passage')
    if not passage.id:
      raise records._BadLineError('id: missing, expected one')
    return passage

  yield from _read(files, parse, 'corpus', on_bad_record, skipped)


def read_questions(
  files: Sequence[str], *, on_bad_record: str
) -> records.ReadResult:
  """Reads records, which need not have passages.

  Args:
    files: JSON lines; see `records.read_records` for the keys.
    on_bad_record: error, or skip.

  Raises:
    errors.UserError: a file cannot be read; a line is bad, or has the id of
      another, and is not to be skipped; there is no record.
  """
  places: dict[str, str] = {}

  def parse(line: bytes, place: str) -> records.Record:
    file, _, number = place.rpartition(':')
    stem = records._stem(file)
    if b'"passages"' not in line and b'"ret_passages"' not in line:
      head, brace, tail = line.rpartition(b'}')
      line = head + b', "passages": {}' + brace + tail
    record = records._parse_line(
      line, f'{stem}:{number}', stem.split('.')[0] or stem
    )
    if record.id in places:
      raise records._BadLineError(
        f'id: found {record.id!r}, which {places[record.id]} has too, '
        'expected an id of its own'
      )
    places[record.id] = place
    return record

  skipped: list[str] = []
  found = list(_read(files, parse, 'questions', on_bad_record, skipped))
  if not found:
    raise errors.UserError(
      f'config.questions.paths: no question in {", ".join(files)}'
    )
  return records.ReadResult(found, skipped)


def _read(
  files: Sequence[str],
  parse: Callable[[bytes, str], Any],
  section: str,
  on_bad_record: str,
  skipped: list[str],
) -> Iterator[Any]:
  for file in files:
    for number, line in records._numbered_lines(paths.resolve(file)):
      place = f'{file}:{number}'
      try:
        item = parse(line, place)
      except records._BadLineError as e:
        if on_bad_record == 'error':
          raise errors.UserError(
            f'{place}: {e}. Fix the line, or leave out every such line with '
            f'--config.{section}.on_bad_record=skip'
          ) from None
        skipped.append(f'{place}: {e}')
        continue
      yield item
