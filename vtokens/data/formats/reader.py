"""Reads records from sources."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import NoReturn

from vtokens.data import catalogue, checks, dataset_names, files
from vtokens.data import corpus as corpus_lib
from vtokens.data.checks import BadRecord, BadRecords, Kind
from vtokens.data.fields import RowFields
from vtokens.data.formats import (
  datasets,
  documents,
  drafts,
  retrieved,
  row_formats,
)
from vtokens.data.records import Passage, Record, RecordError
from vtokens.host import paths

_NO_CORPUS = 'passages left out: named by id alone, and no corpus was given'
_NO_PASSAGES = 'records without passages'

_Places = dict[str, int | str]  # id -> line, or else place


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
  """A file of questions, or a TFDS dataset.

  Attributes:
    path: path for messages.
    name: names of the source.
    shape: shape of the file; None for a TFDS dataset.
  """

  path: str
  name: dataset_names.Name
  shape: files.Shape | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
  """The draft at one place of a source.

  Attributes:
    place: place for messages.
    line: line number, if the place is a line.
    default_id: id for a record without one.
    draft: the draft, or what is wrong with it.
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
  among: Sequence[str] = (),
) -> Iterator[Record]:
  """Yields the records of all sources, one at a time.

  A source is a file (plain, .gz, .xz or .bz2; local or any path that
  etils.epath opens; package:NAME/FILE; pypi:...) or a prepared TFDS dataset,
  tfds:NAME[/CONFIG][:SPLIT]. NAME= before it names its dataset; see
  `vtokens.data.dataset_names`. The keys of a row tell its format; see
  `row_formats`, `documents` and `retrieved`. Runs, qrels and retrieval caches
  among the sources apply to the records of all others, by id or by question.

  Ids must be unique in a file, or in the shards of a dataset. If several files
  have the same id, all ids of these files get the file's label as a prefix:
  'nq/train_0'. So several files are read twice, first to compare ids.

  Memory: one row; about 120 bytes for each record, to find duplicate ids; JSON
  documents as a whole; the passages of a corpus that records name by id. Their
  ids are collected in one more pass over all sources.

  Args:
    sources: see above.
    report: policy for bad records, and an account of them.
    corpus: files of passages, see `vtokens.data.corpus`. Without it, passages
      that rows name by id alone are left out and counted.
    dataset: dataset of records whose rows do not name it; '' for the default
      of `vtokens.data.dataset_names`.
    turns: which questions of a conversation become records: 'first', or 'all',
      each with the conversation before it.
    among: all sources, if `sources` are only some of them. Names are chosen
      among all; ids that other sources share do not get a label.

  Raises:
    RecordError: a record is bad and the policy is 'error'; a file cannot be
      read, has no good record, or matches none of the records.
    TypeError: `sources` or `corpus` is one string.
    ValueError: `turns` is neither 'first' nor 'all'.
  """
  for name, value in (('sources', sources), ('corpus', corpus)):
    if isinstance(value, str):
      raise TypeError(f'{name} is the string {value!r}, expected a list of it')
  if turns not in ('first', 'all'):
    raise ValueError(f"turns is {turns!r}, expected 'first' or 'all'")
  if not sources:
    raise RecordError('No files of records were given, expected at least one')
  called = dict(
    zip(among or sources, dataset_names.of(among or sources), strict=True)
  )
  named = [called[source] for source in sources]
  return _read(named, report, corpus, dataset, turns)


def read_all(
  sources: Sequence[str],
  *,
  report: BadRecords | None = None,
  corpus: Sequence[str] = (),
  dataset: str = '',
  turns: str = 'first',
) -> list[Record]:
  """Like `read_records`, as a list. Without a report bad records are errors."""
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
  named: Sequence[dataset_names.Name],
  report: BadRecords,
  corpus: Sequence[str],
  dataset: str,
  turns: str,
) -> Iterator[Record]:
  questions, retrievals = _sort(named, report)
  passages: dict[str, Passage] | None = None
  look = _Look(
    turns, report.max_text_bytes, report.keeps_unanswerable, (), frozenset()
  )
  labelled = _clashing(questions, look)
  look = dataclasses.replace(look, retrievals=retrievals, labelled=labelled)
  if corpus:
    ids: set[str] = set()
    for source in questions:
      for found in _find(source, look):
        ids.update(_named(found.draft))
    passages = corpus_lib.lookup(corpus, ids, report)
    for retrieval in retrievals:
      retrieval.num_used = 0
  elif by_id := [retrieval for retrieval in retrievals if retrieval.by_id]:
    raise RecordError(
      f'{by_id[0].path}: found ids of passages, but no corpus was given, '
      'expected the files of the corpus too'
    )
  seen = _Seen()
  num_good = report.num_good
  for source in questions:
    before, skipped = report.num_good, len(report.skipped)
    for found in _find(source, look):
      try:
        record = _finish(found, dataset, source, passages, report)
        seen.add(record, found, source)
      except BadRecord as e:
        report.add(found.place, e)
        continue
      report.num_good += 1
      yield record
    if report.num_good == before:
      why = 'the file is empty'
      if len(report.skipped) > skipped:
        place, kind, reason = report.skipped[skipped]
        why = f'none is valid; the first: {place}: {reason}'
        if kind is Kind.UNANSWERABLE:
          why += ' (config.data.unanswerable=refuse keeps such questions)'
      raise RecordError(
        f'{source.path}: found no record, expected at least one; {why}'
      )
  for retrieval in retrievals:
    if not retrieval.num_used:
      raise RecordError(
        f'{retrieval.path}: nothing in it is for any of the '
        f'{report.num_good - num_good} records, expected the ids (of runs and '
        'qrels) or the questions (of caches) to be those of the records'
        + _with_labels(labelled)
      )


def _with_labels(labelled: Collection[str]) -> str:
  if not labelled:
    return ''
  return (
    '; several files have equal ids, which are therefore read as '
    f'{min(labelled)}/ID'
  )


def _sort(
  named: Sequence[dataset_names.Name], report: BadRecords
) -> tuple[list[_Source], list[retrieved.Retrieved]]:
  """Separates files of questions from files of retrieved passages."""
  questions, retrievals = [], []
  for name in named:
    if catalogue.is_source(name.location):
      questions.append(_Source(name.location, name, None))
      continue
    path = paths.resolve(name.location)
    shape = files.shape(path)
    if shape is files.Shape.OBJECT_OF_ARRAYS:
      retrievals.append(retrieved.read_cache(path))
    elif shape in (files.Shape.TREC_RUN, files.Shape.TREC_QRELS):
      retrievals.append(retrieved.read_trec(path, shape, report))
    elif shape is files.Shape.COLLECTION:
      raise RecordError(
        f'{path}: found {shape.value}, expected questions with answers; '
        'passages are given as the corpus'
      )
    else:
      questions.append(_Source(path, name, shape))
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


def _clashing(questions: Sequence[_Source], look: '_Look') -> frozenset[str]:
  """Labels of the sources that share an id with another source."""
  if len({source.name.label for source in questions}) < 2:
    return frozenset()
  first: dict[str, str] = {}
  clashing: set[str] = set()
  for source in questions:
    label = source.name.label
    for found in _find(source, look):
      if isinstance(found.draft, BadRecord):
        continue
      other = first.setdefault(found.draft.id or found.default_id, label)
      if other != label:
        clashing |= {other, label}
  return frozenset(clashing)


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
  """How to read sources.

  Attributes:
    turns: see `read_records`.
    max_text_bytes: length limit of a text.
    keep_unanswerable: whether questions without an answer are read.
    retrievals: files of passages retrieved for the records.
    labelled: labels that are prefixed to the ids of their sources.
  """

  turns: str
  max_text_bytes: int
  keep_unanswerable: bool
  retrievals: Sequence[retrieved.Retrieved]
  labelled: Collection[str]


def _find(source: _Source, look: _Look) -> Iterator[_Found]:
  prefix = ''
  if source.name.label in look.labelled:
    prefix = f'{source.name.label}/'
  for row in _rows(source):
    line = row.number if row.place == f'{source.path}:{row.number}' else None
    default_id = f'{prefix}{source.name.stem}:{row.number}'
    try:
      if isinstance(row.value, BadRecord):
        raise row.value
      rounds = list(datasets.expand(row.value, look.turns))
    except BadRecord as e:
      yield _Found(row.place, line, default_id, e)
      continue
    for suffix, value in rounds:
      round_id = default_id + suffix
      # A place is a line, or a round of the conversation in it.
      place = (
        row.place if len(rounds) == 1 else f'{row.place}, round {suffix[1:]}'
      )
      draft: drafts.Draft | BadRecord
      try:
        if isinstance(value, BadRecord):
          raise value
        draft = row_formats.convert(
          RowFields(
            value,
            '',
            look.max_text_bytes,
            keep_unanswerable=look.keep_unanswerable,
          )
        )
        if draft.id and prefix:
          draft = dataclasses.replace(draft, id=prefix + draft.id)
        draft = _add(draft, round_id, look)
      except BadRecord as e:
        draft = e
      yield _Found(place, line if len(rounds) == 1 else None, round_id, draft)


def _add(draft: drafts.Draft, default_id: str, look: _Look) -> drafts.Draft:
  """Adds retrieved passages to a draft."""
  for retrieval in look.retrievals:
    found, notes = retrieval.passages(
      draft.id or default_id, draft, look.max_text_bytes
    )
    for retriever in found.keys() & draft.passages.keys():
      raise BadRecord(
        Kind.MALFORMED,
        f'passages: found those of {checks.printable(retriever)} here and in '
        f'{retrieval.path}, expected them once',
      )
    notes = (*draft.notes, *notes)
    if not found:
      notes = (*notes, f'records for which nothing is in {retrieval.path}')
    draft = dataclasses.replace(
      draft, passages={**draft.passages, **found}, notes=notes
    )
  return draft


def _named(draft: drafts.Draft | BadRecord) -> Iterator[str]:
  """Yields ids of the passages whose texts are in the corpus."""
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
  passages, num_left_out, num_blank = {}, 0, 0
  for retriever, listed in draft.passages.items():
    texts: list[Passage] = []
    before = num_left_out
    for passage in listed:
      if isinstance(passage, Passage):
        texts.append(passage)
      elif corpus is not None:
        there = list(_look_up(passage, corpus))
        texts += [one for one in there if one.text]
        num_blank += sum(not one.text for one in there)
      else:
        num_left_out += 1
    # Without a corpus, drop a list that has only ids.
    if texts or not listed or num_left_out == before:
      passages[retriever] = tuple(texts)
  report.notes.update(draft.notes)
  if num_blank:
    report.notes[drafts.BLANK] += num_blank
  if num_left_out:
    report.notes[_NO_CORPUS] += num_left_out
  if not any(passages.values()):
    report.notes[_NO_PASSAGES] += 1
  return Record(
    id=draft.id or found.default_id,
    dataset=source.name.given
    or draft.dataset
    or dataset
    or source.name.dataset,
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


class _Seen:
  """Ids of the records read, by the label of their source."""

  def __init__(self) -> None:
    self._places: dict[str, dict[str, _Places]] = {}
    # Places of records with a label, by hash of dataset, id and question.
    self._twins: dict[bytes, str] = {}

  def add(self, record: Record, found: _Found, source: _Source) -> None:
    """Adds a record.

    Raises:
      BadRecord: its source has the id already, or another source has the same
        question under this id in the same dataset.
    """
    label = source.name.label
    files_of_label = self._places.setdefault(label, {})
    for other, places in files_of_label.items():
      if record.id in places:
        place = places[record.id]
        self._refuse(
          record.id,
          found,
          f'{other}:{place}' if isinstance(place, int) else place,
        )
    prefix = f'{label}/'
    if record.id.startswith(prefix):
      text = '\0'.join(
        [record.dataset, record.id.removeprefix(prefix), record.question]
      )
      key = hashlib.blake2b(text.encode(), digest_size=12).digest()
      twin = self._twins.setdefault(key, found.place)
      if twin != found.place:
        self._refuse(record.id, found, f'{twin}, with the same question,')
    # A line number takes less memory than the place's text.
    places = files_of_label.setdefault(source.path, {})
    places[record.id] = found.place if found.line is None else found.line

  def _refuse(self, record_id: str, found: _Found, place: str) -> NoReturn:
    made = ''
    if record_id == found.default_id:
      made = ' (made from file name and line number)'
    raise BadRecord(
      Kind.DUPLICATE_ID,
      f'id: found {checks.printable(record_id)}{made}, which {place} has too, '
      'expected an id of its own',
    )
