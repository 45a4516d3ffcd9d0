"""Reads the records of a split, with counts."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vtokens.data import formats
from vtokens.data.build.build_config import Split
from vtokens.data.checks import BadRecords
from vtokens.data.records import Record


@dataclasses.dataclass
class SplitCounts:
  """Numbers of records of a split that are kept and left out.

  Attributes:
    skipped: a message for each bad record that was left out.
    no_answer: records left out for `drop_answers`.
    not_drawn: records left out for `max_records`.
    passages_cut: passages left out for `max_passages`.
    datasets: records kept, by dataset.
    notes: counts of other events that users should know.
  """

  skipped: list[str] = dataclasses.field(default_factory=list)
  no_answer: int = 0
  not_drawn: int = 0
  passages_cut: int = 0
  datasets: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  notes: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  @property
  def kept(self) -> int:
    """Number of records kept."""
    return self.datasets.total()


def read_source(
  sources: Sequence[str],
  split: Split,
  on_bad_record: str,
  skipped: list[str],
  notes: collections.Counter[str],
) -> Iterator[Record]:
  """Yields the records of sources.

  Args:
    sources: some or all of `split.sources`. If some, ids that other sources
      share do not get a label.
    split: how to read them.
    on_bad_record: error or skip.
    skipped: list to append a message to for each skipped record.
    notes: counter of other events to add to.

  Raises:
    errors.UserError: a file cannot be read, or a record is bad.
  """
  report = BadRecords(
    on_bad_record,
    on_unanswerable=split.unanswerable,
    max_text_bytes=split.max_text_bytes,
    flag='--config.on_bad_record=skip',
  )
  yield from formats.read_records(
    sources,
    report=report,
    corpus=split.corpus,
    dataset=split.dataset,
    turns=split.turns,
    among=split.sources,
  )
  skipped += report.messages
  notes.update(report.notes)


def read_split(
  split: Split, *, max_passages: int, on_bad_record: str, counts: SplitCounts
) -> Iterator[Record]:
  """Yields the records of a split, in the order of its sources.

  Args:
    split: the split; its sources are read twice if it has `max_records`.
    max_passages: passages kept of each retriever.
    on_bad_record: error or skip.
    counts: updated while reading.

  Raises:
    errors.UserError: see `read_source`.
  """
  chosen: Callable[[str], bool] = bool
  if split.max_records:
    ids = (
      record.id
      for record in read_source(
        split.sources, split, on_bad_record, [], collections.Counter()
      )
      if has_answer(record, split)
    )
    chosen = IdSample.of(ids, split)
  for record in read_source(
    split.sources, split, on_bad_record, counts.skipped, counts.notes
  ):
    if not has_answer(record, split):
      counts.no_answer += 1
    elif not chosen(record.id):
      counts.not_drawn += 1
    else:
      counts.datasets[record.dataset] += 1
      record, cut = cut_passages(record, max_passages)
      counts.passages_cut += cut
      yield record


def has_answer(record: Record, split: Split) -> bool:
  """Whether a record is kept: not all of its answers are in `drop_answers`."""
  return not record.answerable or any(
    answer not in split.drop_answers for answer in record.answers
  )


def cut_passages(record: Record, max_passages: int) -> tuple[Record, int]:
  """Keeps the first passages of each retriever; returns the number cut, too."""
  cut = sum(
    max(0, len(ranked) - max_passages) for ranked in record.passages.values()
  )
  if cut:
    record = dataclasses.replace(
      record,
      passages={
        name: ranked[:max_passages] for name, ranked in record.passages.items()
      },
    )
  return record, cut


@dataclasses.dataclass(frozen=True)
class IdSample:
  """A random choice of ids that does not depend on their order.

  An id is chosen if its hash, of 63 bits, is among the smallest.

  Attributes:
    seed: see `Split`.
    largest: the largest hash chosen.
  """

  seed: int
  largest: int

  @classmethod
  def of(cls, ids: Iterable[str], split: Split) -> 'IdSample':
    """Chooses `split.max_records` of these, or all if there are not more."""
    hashes = np.fromiter(
      (draw_hash(id_, split.seed) for id_ in ids), dtype=np.uint64
    )
    if len(hashes) <= split.max_records:
      return cls(split.seed, 2**63 - 1)
    last = split.max_records - 1
    return cls(split.seed, int(np.partition(hashes, last)[last]))

  def __call__(self, id_: str) -> bool:
    return draw_hash(id_, self.seed) <= self.largest


def draw_hash(id_: str, seed: int) -> int:
  """A pseudorandom hash of 63 bits."""
  digest = hashlib.blake2b(f'{seed}:{id_}'.encode(), digest_size=8)
  # Beam's integers are signed.
  return int.from_bytes(digest.digest(), 'big') >> 1
