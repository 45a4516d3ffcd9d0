"""Passages and questions as they come: the one place that opens their files."""

from collections.abc import Iterator, Sequence

from vtokens.data import corpus, formats
from vtokens.data.checks import BadRecords
from vtokens.data.records import Passage, Record
from vtokens.host import writers


def read_passages(
  files: Sequence[str], *, on_bad_record: str, skipped: list[str]
) -> Iterator[Passage]:
  """Streams a corpus; see `corpus.read_corpus` for its formats.

  Args:
    files: of the corpus.
    on_bad_record: error, or skip.
    skipped: gets a message for each passage left out, at the end.

  Yields:
    Passages, each with an id, in the order of the files and their lines.

  Raises:
    errors.UserError: a file cannot be read; a passage is bad and is not to be
      skipped.
  """
  report = BadRecords(on_bad_record, flag='--config.corpus.on_bad_record=skip')
  yield from corpus.read_corpus(files, report)
  skipped += report.messages
  for note, count in report.notes.items():
    writers.say(f'corpus: {count:,} {note}')


def read_questions(
  files: Sequence[str], *, on_bad_record: str
) -> tuple[list[Record], list[str]]:
  """Reads questions, which need not have passages.

  Args:
    files: any sources that `formats.read_records` reads.
    on_bad_record: error, or skip.

  Returns:
    The questions, and a message for each left out.

  Raises:
    errors.UserError: a source cannot be read; a question is bad, or has the id
      of another, and is not to be skipped; there is none.
  """
  report = BadRecords(
    on_bad_record, flag='--config.questions.on_bad_record=skip'
  )
  questions = formats.read_all(files, report=report)
  for note, count in report.notes.items():
    writers.say(f'questions: {count:,} {note}')
  return questions, report.messages
