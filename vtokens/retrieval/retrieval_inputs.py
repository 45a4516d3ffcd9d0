"""Reads the files of passages and questions."""

from collections.abc import Iterator, Sequence

from vtokens.data import corpus, formats
from vtokens.data.checks import BadRecords
from vtokens.data.records import Passage, Record
from vtokens.host import writers


def read_passages(
  files: Sequence[str], *, on_bad_record: str, skipped: list[str]
) -> Iterator[Passage]:
  """Yields the passages of a corpus, in order; see `corpus.read_corpus`.

  Args:
    files: files of the corpus.
    on_bad_record: error or skip.
    skipped: list that gets, at the end, a message for each passage left out.

  Raises:
    errors.UserError: a file cannot be read, or a passage is bad and
      `on_bad_record` is error.
  """
  report = BadRecords(on_bad_record, flag='--config.corpus.on_bad_record=skip')
  yield from corpus.read_corpus(files, report)
  skipped += report.messages
  for note, count in report.notes.items():
    writers.say(f'corpus: {count:,} {note}')


def read_questions(
  files: Sequence[str], *, on_bad_record: str, unanswerable: str = 'skip'
) -> tuple[list[Record], list[str]]:
  """Reads questions, with or without passages.

  Args:
    files: sources of `formats.read_records`.
    on_bad_record: error or skip.
    unanswerable: skip, error or keep; see `retrieval_config.Questions`.

  Returns:
    The questions, and a message for each one left out.

  Raises:
    errors.UserError: a source cannot be read or has no question, or a question
      is bad or has a duplicate id and `on_bad_record` is error.
  """
  report = BadRecords(
    on_bad_record,
    on_unanswerable=unanswerable,
    flag='--config.questions.on_bad_record=skip',
  )
  questions = formats.read_all(files, report=report)
  for note, count in report.notes.items():
    writers.say(f'questions: {count:,} {note}')
  return questions, report.messages
