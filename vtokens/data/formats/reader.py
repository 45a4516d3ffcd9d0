"""From sources to records: the one way in."""

import dataclasses
from collections.abc import Iterator, Sequence

from vtokens import paths
from vtokens.data import catalogue, checks, files
from vtokens.data import corpus as corpus_lib
from vtokens.data.checks import BadRecord, BadRecords, Kind
from vtokens.data.fields import Fields
from vtokens.data.formats import datasets, documents, drafts, retrieved, rows
from vtokens.data.records import Passage, Record, RecordError

_NO_CORPUS = 'passages left out: named by id alone, and no corpus was given'
_NO_PASSAGES = 'records without passages'

_Places = dict[str, int | str]  # id -> line, or else place


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
  """A file of questions, or a data set of TFDS.

  Attributes:
    path: as in messages.
    stem: what default ids start with.
    shape: how the file holds rows; None for a data set of TFDS.
  """

  path: str
  stem: str
  shape: files.Shape | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
  """What is in one place of a source.

  Attributes:
    place: for messages.
    line: its number, where a place is a line.
    default_id: of the record, if it has no id itself.
    draft: the record so far, or what is wrong with it.
  """

  place: str
  line: int | None
  default_id: str
  draft: drafts.Draft | BadRecord


def read_records(
  sources: Sequence[str],
  *,
  report: BadRecords,
  corpus: Sequence[str] = (),
  dataset: str = '',
  turns: str = 'first',
) -> Iterator[Record]:
  """Yields the records of all sources, one at a time.

  A source is a file (plain, .gz, .xz or .bz2; local or any path that
  etils.epath opens; package:NAME/FILE) or a prepared data set,
  tfds:NAME[/CONFIG][:SPLIT]. Each row's format is told by its keys; see the
  module docstring, and `rows`, `documents` and `retrieved` for what there is.
  Runs, qrels and retrieval caches among the sources apply to the records of
  all others, by id or by question.

  Memory: a row; an id and where it was for each record, some 120 bytes, to
  find ids that occur twice; documents of JSON are loaded whole; of a corpus,
  the passages that records name by their ids. These are collected in a first
  pass over all sources.

  Args:
    sources: see above.
    report: what to do with bad records, and an account of them.
    corpus: files of passages, see `vtokens.data.corpus`. Without it, passages
      that rows name by id alone are left out and counted.
    dataset: the records' data set where rows do not name it; '' for the file
      stem up to its first dot.
    turns: of a conversation, 'first' makes its first question a record,
      'all' every one, with what was said before it.

  Raises:
    RecordError: a record is bad and that is an error; a file cannot be read,
      has no good record, or matches none of the records.
    TypeError: if `sources` or `corpus` is one string.
    ValueError: if `turns` is neither 'first' nor 'all'.
  """
  for name, value in (('sources', sources), ('corpus', corpus)):
    if isinstance(value, str):
      raise TypeError(f'{name} is the string {value!r}, expected a list of it')
  if turns not in ('first', 'all'):
    raise ValueError(f"turns is {turns!r}, expected 'first' or 'all'")
  if not sources:
    raise RecordError('No files of records were given, expected at least one')
  return _read(sources, report, corpus, dataset, turns)


def read_all(
  sources: Sequence[str],
  *,
  report: BadRecords | None = None,
  corpus: Sequence[str] = (),
  dataset: str = '',
  turns: str = 'first',
) -> list[Record]:
  """`read_records` as a list; without a report any bad record is an error."""
  return list(
    read_records(
      sources,
      report=report or BadRecords(),
      corpus=corpus,
      dataset=dataset,
      turns=turns,
    )
  )


def _read(
  sources: Sequence[str],
  report: BadRecords,
  corpus: Sequence[str],
  dataset: str,
  turns: str,
) -> Iterator[Record]:
  questions, retrievals = _sort(sources, report)
  passages: dict[str, Passage] | None = None
  if corpus:
    ids: set[str] = set()
    for source in questions:
      for found in _find(source, turns, report.max_text_bytes, retrievals):
        ids.update(_named(found.draft))
    passages = corpus_lib.lookup(corpus, ids, report)
    for retrieval in retrievals:
      retrieval.num_used = 0
  elif by_id := [retrieval for retrieval in retrievals if retrieval.by_id]:
    raise RecordError(
      f'{by_id[0].path}: found ids of passages, but no corpus was given, '
      'expected the files of the corpus too'
    )
  seen: dict[str, _Places] = {}
  num_good = report.num_good
  for source in questions:
    before, skipped = report.num_good, len(report.skipped)
    for found in _find(source, turns, report.max_text_bytes, retrievals):
      try:
        record = _finish(found, dataset, source, passages, report)
        _check_id(record.id, found, source.path, seen)
      except BadRecord as e:
        report.add(found.place, e)
        continue
      report.num_good += 1
      yield record
    if report.num_good == before:
      why = 'the file is empty'
      if len(report.skipped) > skipped:
        why = f'none is valid; the first: {report.messages[skipped]}'
      raise RecordError(
        f'{source.path}: found no record, expected at least one; {why}'
      )
  for retrieval in retrievals:
    if not retrieval.num_used:
      raise RecordError(
        f'{retrieval.path}: nothing in it is for any of the '
        f'{report.num_good - num_good} records, expected the ids (of runs and '
        'qrels) or the questions (of caches) to be those of the records'
      )


def _sort(
  sources: Sequence[str], report: BadRecords
) -> tuple[list[_Source], list[retrieved.Retrieved]]:
  """Files of questions, and what was retrieved for those."""
  questions, retrievals = [], []
  for source in sources:
    if catalogue.is_source(source):
      questions.append(_Source(source, catalogue.stem(source), None))
      continue
    path = paths.resolve(source)
    shape = files.shape(path)
    if shape is files.Shape.OBJECT_OF_ARRAYS:
      retrievals.append(retrieved.read_cache(path))
    elif shape in (files.Shape.TREC_RUN, files.Shape.TREC_QRELS):
      retrievals.append(retrieved.read_trec(path, shape, report))
    else:
      questions.append(_Source(path, files.stem(path), shape))
  if not questions:
    raise RecordError(
      f'{retrievals[0].path}: found only what was retrieved for questions, '
      'expected a file of the questions too'
    )
  return questions, retrievals


def _rows(source: _Source) -> Iterator[files.Row]:
  if source.shape is None:
    yield from catalogue.rows(source.path)
  elif source.shape is files.Shape.OBJECT:
    document = documents.rows(source.path, files.load_json(source.path))
    for number, (where, value) in enumerate(document, start=1):
      yield files.Row(number, f'{source.path}: {where}', value)
  else:
    yield from files.rows(source.path, source.shape)


def _find(
  source: _Source,
  turns: str,
  max_text_bytes: int,
  retrievals: Sequence[retrieved.Retrieved],
) -> Iterator[_Found]:
  for row in _rows(source):
    line = row.number if row.place == f'{source.path}:{row.number}' else None
    default_id = f'{source.stem}:{row.number}'
    try:
      if isinstance(row.value, BadRecord):
        raise row.value
      rounds = list(datasets.expand(row.value, turns))
    except BadRecord as e:
      yield _Found(row.place, line, default_id, e)
      continue
    for suffix, value in rounds:
      round_id = default_id + suffix
      # A record is in one line, or a conversation's part of it.
      place = (
        row.place if len(rounds) == 1 else f'{row.place}, round {suffix[1:]}'
      )
      draft: drafts.Draft | BadRecord
      try:
        draft = rows.convert(Fields(value, '', max_text_bytes))
        draft = _add(draft, round_id, retrievals, max_text_bytes)
      except BadRecord as e:
        draft = e
      yield _Found(place, line if len(rounds) == 1 else None, round_id, draft)


def _add(
  draft: drafts.Draft,
  default_id: str,
  retrievals: Sequence[retrieved.Retrieved],
  max_text_bytes: int,
) -> drafts.Draft:
  """The draft with what was retrieved for it."""
  for retrieval in retrievals:
    found = retrieval.passages(
      draft.id or default_id, draft.question, max_text_bytes
    )
    for retriever in found.keys() & draft.passages.keys():
      raise BadRecord(
        Kind.MALFORMED,
        f'passages: found those of {checks.printable(retriever)} here and in '
        f'{retrieval.path}, expected them once',
      )
    notes = draft.notes
    if not found:
      notes = (*notes, f'records for which nothing is in {retrieval.path}')
    draft = dataclasses.replace(
      draft, passages={**draft.passages, **found}, notes=notes
    )
  return draft


def _named(draft: drafts.Draft | BadRecord) -> Iterator[str]:
  """Ids of the passages whose texts are in the corpus."""
  if isinstance(draft, BadRecord):
    return
  for listed in draft.passages.values():
    for passage in listed:
      if isinstance(passage, drafts.Ref):
        yield from passage.ids


def _finish(
  found: _Found,
  dataset: str,
  source: _Source,
  corpus: dict[str, Passage] | None,
  report: BadRecords,
) -> Record:
  draft = found.draft
  if isinstance(draft, BadRecord):
    raise draft
  passages, num_left_out = {}, 0
  for retriever, listed in draft.passages.items():
    texts: list[Passage] = []
    for passage in listed:
      if isinstance(passage, Passage):
        texts.append(passage)
      elif corpus is not None:
        texts += _look_up(passage, corpus)
      else:
        num_left_out += 1
    if texts or not listed:
      passages[retriever] = tuple(texts)
  report.notes.update(draft.notes)
  if num_left_out:
    report.notes[_NO_CORPUS] += num_left_out
  if not any(passages.values()):
    report.notes[_NO_PASSAGES] += 1
  return Record(
    id=draft.id or found.default_id,
    dataset=draft.dataset
    or dataset
    or source.stem.split('.')[0]
    or source.stem,
    question=draft.question,
    answers=draft.answers,
    passages=passages,
  )


def _look_up(ref: drafts.Ref, corpus: dict[str, Passage]) -> Iterator[Passage]:
  there = [corpus[i] for i in ref.ids if i in corpus]
  if not there:
    raise BadRecord(
      Kind.MISSING_PASSAGE,
      f'{ref.key}: found the passage id {checks.printable(ref.ids[0])}, which '
      'the corpus does not have, expected it there',
    )
  for passage in there:
    yield dataclasses.replace(passage, score=ref.score)


def _check_id(
  record_id: str, found: _Found, path: str, seen: dict[str, _Places]
) -> None:
  """Takes note of an id; raises if it is not the first."""
  for other, places in seen.items():
    if record_id in places:
      place = places[record_id]
      made = record_id == found.default_id
      raise BadRecord(
        Kind.DUPLICATE_ID,
        f'id: found {checks.printable(record_id)}'
        f'{" (made from file name and line number)" if made else ""}, '
        f'which {f"{other}:{place}" if isinstance(place, int) else place} has '
        'too, expected an id of its own',
      )
  # An int takes less memory than the place written out.
  places = seen.setdefault(path, {})
  places[record_id] = found.place if found.line is None else found.line
