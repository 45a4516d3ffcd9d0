"""Reads splits with Apache Beam: sources in parallel, ids compared over all.

Workers return bad input as data. The text of exceptions differs between
runners; so the messages are the same as without Beam.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vtokens.data import dataset_names, retrieval_qa
from vtokens.data.build import split_reading
from vtokens.data.build.build_config import Split
from vtokens.data.build.split_reading import SplitCounts
from vtokens.data.records import Record
from vtokens.host import errors

try:
  import apache_beam as beam
  from apache_beam.options import pipeline_options as beam_options
except ImportError as e:
  raise errors.UserError(
    f"runner='beam' needs Apache Beam: pip install 'vtokens[beam]' ({e})"
  ) from e

# Place of a record: index of its source, number in the source from 1.
_Place = tuple[int, int]
_Placed = tuple[_Place, Record]


def pipeline_options(options: Sequence[str]) -> Any:
  """Beam's options for both pipelines of a build."""
  return beam_options.PipelineOptions(list(options))


def read_splits(
  splits: Mapping[str, Split],
  *,
  max_passages: int,
  on_bad_record: str,
  directory: str,
  options: Any,
) -> tuple[dict[str, SplitCounts], dict[str, Any]]:
  """Reads and checks all splits in one pipeline.

  Args:
    splits: the splits.
    max_passages: passages kept of each retriever.
    on_bad_record: error or skip.
    directory: directory for the records until the second pipeline writes the
      dataset; workers must reach it.
    options: see `pipeline_options`.

  Returns:
    The counts of each split; and for each split a PTransform that yields its
    records as `retrieval_qa.keyed_example`.

  Raises:
    errors.UserError: a source cannot be read, or a record is bad and
      `on_bad_record` is error.
  """
  prefixes = {
    name: os.path.join(os.path.abspath(directory), 'read', name)
    for name in splits
  }
  with beam.Pipeline(options=options) as pipeline:
    for name, split in splits.items():
      found = pipeline | f'Read {name}' >> _ReadSplit(split, max_passages)
      _ = (
        found['records']
        | f'Example {name}' >> beam.Map(_to_line)
        | f'Keep {name}' >> beam.io.WriteToText(f'{prefixes[name]}.records')
      )
      _ = (
        found['notes']
        | f'Format {name}' >> beam.Map(json.dumps)
        | f'Note {name}'
        >> beam.io.WriteToText(f'{prefixes[name]}.notes', num_shards=1)
      )
  counts = {
    name: _gather(prefix, splits[name], on_bad_record)
    for name, prefix in prefixes.items()
  }
  return counts, {name: _Kept(prefix) for name, prefix in prefixes.items()}


def _gather(prefix: str, split: Split, on_bad_record: str) -> SplitCounts:
  """Adds up the notes of the workers."""
  counts = SplitCounts()
  skipped: list[tuple[_Place, str]] = []
  directory, stem = os.path.split(f'{prefix}.notes')
  for file in pathlib.Path(directory).glob(f'{stem}*'):
    for line in file.read_text(encoding='utf-8').splitlines():
      note, value = json.loads(line)
      if note == 'fatal':
        raise errors.UserError(value)
      if note == 'skipped':
        skipped.append(((value[0], value[1]), value[2]))
      elif note == 'note':
        counts.notes[value[0]] += value[1]
      elif note == 'dataset':
        counts.datasets[value[0]] += value[1]
      else:
        setattr(counts, note, getattr(counts, note) + value)
  counts.skipped = [message for _, message in sorted(skipped)]
  if counts.skipped and on_bad_record == 'error':
    raise errors.UserError(
      f'{counts.skipped[0]}. {len(counts.skipped):,} records of '
      f'{errors.several(split.sources)} are bad, this is the first. Fix them, '
      'or leave them out with --config.on_bad_record=skip'
    )
  return counts


class _ReadSplit(beam.PTransform[Any, Any]):
  """Reads the records of a split, and notes on what was left out."""

  def __init__(self, split: Split, max_passages: int):
    super().__init__()
    self._split = split
    self._max_passages = max_passages

  def expand(self, pipeline: Any) -> Any:
    split = self._split
    read = (
      pipeline
      | 'Sources' >> beam.Create(list(enumerate(split.sources)))
      | 'Spread' >> beam.Reshuffle()
      | 'Read'
      >> beam.FlatMap(_read_source, split).with_outputs('notes', main='records')
    )
    labels = [name.label for name in dataset_names.of(split.sources)]
    same = (
      read.records
      | 'Ids' >> beam.Map(lambda placed: (placed[1].id, _twin_key(placed)))
      | 'Equal ids' >> beam.GroupByKey()
    )
    repeated = same | 'Repeated' >> beam.FlatMap(_repeated, split, labels)
    clashing = (
      same
      | 'Clashing' >> beam.FlatMap(_clashing, labels)
      | 'Each once' >> beam.Distinct()
      | 'By label' >> beam.Map(lambda label: (label, True))
    )
    first = (
      read.records
      | 'First'
      >> beam.Filter(
        lambda placed, later: placed[0] not in later,
        later=beam.pvalue.AsDict(repeated),
      )
      | 'Tell apart'
      >> beam.Map(_labelled, labels, beam.pvalue.AsDict(clashing))
    )
    answered = first | 'Answered' >> beam.Filter(
      lambda placed: split_reading.has_answer(placed[1], split)
    )
    chosen = answered
    if split.max_records:
      draw = (
        answered
        | 'Hash' >> beam.Map(_draw_hash, split.seed)
        | 'Smallest' >> beam.combiners.Top.Smallest(split.max_records)
      )
      chosen = answered | 'Draw' >> beam.Filter(
        lambda placed, smallest: _draw_hash(placed, split.seed) <= smallest[-1],
        smallest=beam.pvalue.AsSingleton(draw),
      )
    cut = chosen | 'Cut' >> beam.Map(
      lambda placed: split_reading.cut_passages(placed[1], self._max_passages)
    )
    notes = [
      read.notes,
      repeated | beam.Map(lambda item: ('skipped', [*item[0], item[1]])),
      cut
      | 'Datasets' >> beam.Map(lambda item: item[0].dataset)
      | beam.combiners.Count.PerElement()
      | beam.Map(lambda item: ('dataset', item)),
      cut
      | 'Cuts' >> beam.Map(lambda item: item[1])
      | beam.CombineGlobally(sum)
      | 'Cut passages' >> beam.Map(lambda n: ('passages_cut', n)),
      *_left_out('no_answer', first, answered),
      *_left_out('not_drawn', answered, chosen),
    ]
    return {
      'records': cut | 'Records' >> beam.Map(lambda item: item[0]),
      'notes': notes | 'All notes' >> beam.Flatten(),
    }


class _Kept(beam.PTransform[Any, Any]):
  """Reads the records of a split that `read_splits` wrote."""

  def __init__(self, prefix: str):
    super().__init__()
    self._prefix = prefix

  def expand(self, pipeline: Any) -> Any:
    return (
      pipeline
      | beam.io.ReadFromText(f'{self._prefix}.records*')
      | beam.Map(_from_line)
    )


def _to_line(record: Record) -> str:
  key, example = retrieval_qa.keyed_example(record)
  return json.dumps([key.decode(), example])


def _from_line(line: str) -> tuple[bytes, dict[str, Any]]:
  key, example = json.loads(line)
  return key.encode(), example


def _read_source(
  numbered: tuple[int, str], split: Split
) -> Iterator[_Placed | Any]:
  index, source = numbered
  skipped: list[str] = []
  notes: collections.Counter[str] = collections.Counter()
  number = 0
  try:
    for number, record in enumerate(
      split_reading.read_source([source], split, 'skip', skipped, notes),
      start=1,
    ):
      yield (index, number), record
  except errors.UserError as e:
    yield beam.pvalue.TaggedOutput('notes', ('fatal', str(e)))
  for note in notes.items():
    yield beam.pvalue.TaggedOutput('notes', ('note', list(note)))
  for message in skipped:
    yield beam.pvalue.TaggedOutput('notes', ('skipped', [index, 0, message]))


def _twin_key(placed: _Placed) -> tuple[_Place, str, str]:
  """Source, dataset and question of a record, to compare equal ids."""
  place, record = placed
  digest = hashlib.blake2b(record.question.encode(), digest_size=12)
  return place, record.dataset, digest.hexdigest()


def _repeated(
  item: tuple[str, Iterable[tuple[_Place, str, str]]],
  split: Split,
  labels: Sequence[str],
) -> Iterator[tuple[_Place, str]]:
  """Yields records whose id an earlier record has, where no label helps."""
  id_ = item[0]
  kept: list[tuple[_Place, str, str]] = []
  for place, *twin in sorted(item[1]):
    index, number = place
    first = next(
      (
        other
        for other, *others_twin in kept
        if labels[other[0]] == labels[index] or others_twin == twin
      ),
      None,
    )
    if first is None:
      kept.append((place, twin[0], twin[1]))
      continue
    yield (
      place,
      f'{split.sources[index]}: record {number}: id: found {id_}, which '
      f'record {first[1]} of {split.sources[first[0]]} has too, expected an '
      'id of its own',
    )


def _clashing(
  item: tuple[str, Iterable[tuple[_Place, str, str]]], labels: Sequence[str]
) -> set[str]:
  """Labels of the sources that have an id, if there are several."""
  found = {labels[place[0]] for place, *_ in item[1]}
  return found if len(found) > 1 else set()


def _labelled(
  placed: _Placed, labels: Sequence[str], clashing: Mapping[str, bool]
) -> _Placed:
  """Prefixes the source's label to a record's id, if the label is clashing."""
  place, record = placed
  label = labels[place[0]]
  if label in clashing:
    record = dataclasses.replace(record, id=f'{label}/{record.id}')
  return place, record


def _draw_hash(placed: _Placed, seed: int) -> int:
  return split_reading.draw_hash(placed[1].id, seed)


def _left_out(note: str, before: Any, after: Any) -> list[Any]:
  """Notes whose sum is the number of elements that a filter left out."""
  return [
    pcollection
    | f'Count {note} {sign}' >> beam.combiners.Count.Globally()
    | f'Note {note} {sign}' >> beam.Map(lambda n, sign=sign: (note, sign * n))
    for pcollection, sign in ((before, 1), (after, -1))
  ]
