"""Tokenised records of one source, mapped into memory.

`token_cache` writes them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from vtokens.data.prompt_encoder import Ids, PassageIds

# Bits of the marks of passages.
HAS_ANSWER, IS_GOLD = 1, 2

# Arrays of a set: arrays of the partial files. Joining appends them. For starts
# the partial files have lengths; joining sums them up.
ARRAYS = {
  'tokens': 'tokens',
  'id_bytes': 'id_bytes',
  'dataset': 'dataset',
  'question_key': 'question_key',
  'end_len': 'end_len',
  'last_end_len': 'last_end_len',
  'retriever': 'retriever',
  'flags': 'flags',
  'sequence_start': 'sequence_len',
  'record_sequence': 'record_sequences',
  'record_passage': 'record_passages',
  'id_start': 'id_len',
}


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
  """The passages of a record, in stored order: by retriever, then rank.

  Attributes:
    retriever: index into `TokenSet.retrievers`, uint32 array of shape [N].
    has_answer: whether the text contains an answer, bool array of shape [N].
    is_gold: whether annotators marked it, bool array of shape [N].
  """

  retriever: np.ndarray
  has_answer: np.ndarray
  is_gold: np.ndarray

  @property
  def gold(self) -> np.ndarray:
    """The marked passages, or without any those with an answer; bool [N]."""
    return self.is_gold if self.is_gold.any() else self.has_answer


class TokenSet:
  """Tokenised records of one source, mapped into memory.

  Pickling is cheap: the other process maps the files itself.

  Args:
    path: a directory of a `TokenCache`.

  Attributes:
    datasets: names that records are grouped by.
    retrievers: names of the retrievers.
    dataset: index into `datasets` of each record, uint32 array of shape [N].
    question_key: hash of each question, uint64 array of shape [N]; see
      `leaks.hash_questions`.
    meta: content of meta.json.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.meta = json.loads((path / 'meta.json').read_text(encoding='utf-8'))
    self.datasets: list[str] = self.meta['datasets']
    self.retrievers: list[str] = self.meta['retrievers']
    # Plain arrays: slicing a memmap object takes 20 times as long.
    arrays: dict[str, np.ndarray] = {
      name: np.load(path / f'{name}.npy', mmap_mode='r').view(np.ndarray)
      for name in ARRAYS
    }
    self._tokens = arrays['tokens']
    self._ids = arrays['id_bytes']
    self._id_start = arrays['id_start']
    self._sequence_start = arrays['sequence_start']
    self._record_sequence = arrays['record_sequence']
    self._record_passage = arrays['record_passage']
    self.dataset = arrays['dataset']
    self.question_key = arrays['question_key']
    self._end_len = arrays['end_len']
    self._last_end_len = arrays['last_end_len']
    self._retriever = arrays['retriever']
    self._flags = arrays['flags']

  def __reduce__(self) -> tuple[type, tuple[pathlib.Path]]:
    return type(self), (self._path,)

  def __len__(self) -> int:
    return len(self.dataset)

  def id(self, i: int) -> str:
    """The record's id."""
    start, stop = self._id_start[i : i + 2]
    return self._ids[start:stop].tobytes().decode()

  def prompt(self, i: int) -> Ids:
    """Ids of the question."""
    return self._sequence(self._record_sequence[i])

  def answer(self, i: int, j: int) -> Ids:
    """Ids of the j-th answer and its end."""
    return self._sequence(self._record_sequence[i] + 1 + j)

  def slots(self, i: int) -> Slots:
    """Retriever and marks of the record's passages."""
    start, stop = self._record_passage[i : i + 2]
    flags = self._flags[start:stop]
    return Slots(
      retriever=self._retriever[start:stop],
      has_answer=(flags & HAS_ANSWER) > 0,
      is_gold=(flags & IS_GOLD) > 0,
    )

  def has_passages(self, retrievers: Sequence[int]) -> np.ndarray:
    """Whether each record has passages of one of these retrievers."""
    found = np.isin(self._retriever, retrievers)
    total = np.concatenate([[0], np.cumsum(found)])
    has: np.ndarray = np.diff(total[self._record_passage]) > 0
    return has

  def passage(self, i: int, slot: int) -> PassageIds:
    """Ids of a passage."""
    ids = self._sequence(self._passage_sequence(i, slot))
    end, last = self._ends(i, slot)
    body = len(ids) - end - last
    return PassageIds(
      body=ids[:body], end=ids[body : body + end], last_end=ids[body + end :]
    )

  def passage_lens(self, i: int, slot: int) -> tuple[int, int, int]:
    """Lengths of a passage's body, end and last_end."""
    sequence = self._passage_sequence(i, slot)
    start, stop = self._sequence_start[sequence : sequence + 2]
    end, last = self._ends(i, slot)
    return int(stop - start) - end - last, end, last

  def prompt_len(self, i: int) -> int:
    """Length of the question."""
    return self._len(self._record_sequence[i])

  def has_answers(self, i: int) -> bool:
    """Whether the record has an answer."""
    first, stop = self._record_sequence[i : i + 2]
    return bool(stop - first - 1 > self._num_passages(i))

  def answer_len(self, i: int, j: int) -> int:
    """Length of the j-th answer with its end."""
    return self._len(self._record_sequence[i] + 1 + j)

  def answer_lens(self, i: int) -> np.ndarray:
    """Length of each answer with its end."""
    first, stop = self._record_sequence[i : i + 2]
    stop -= self._num_passages(i)
    return np.diff(self._sequence_start[first + 1 : stop + 1])

  def all_lens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths over all records.

    Returns:
      Lengths of the questions, int array of shape [N]; lengths of the answers,
      int array of shape [M]; the record of each answer, int array of shape [M].
    """
    passages = np.diff(self._record_passage)
    answers = np.diff(self._record_sequence) - 1 - passages
    counts = np.stack([np.ones_like(answers), answers, passages], axis=1)
    kinds = np.repeat(np.tile([0, 1, 2], len(self)), counts.ravel())
    lens = np.diff(self._sequence_start)
    owners = np.repeat(np.arange(len(self)), answers)
    return lens[kinds == 0], lens[kinds == 1], owners

  def _num_passages(self, i: int) -> int:
    start, stop = self._record_passage[i : i + 2]
    return int(stop - start)

  def _passage_sequence(self, i: int, slot: int) -> int:
    stop: int = self._record_sequence[i + 1]
    return stop - self._num_passages(i) + slot

  def _ends(self, i: int, slot: int) -> tuple[int, int]:
    at = self._record_passage[i] + slot
    return int(self._end_len[at]), int(self._last_end_len[at])

  def _len(self, sequence: int) -> int:
    start, stop = self._sequence_start[sequence : sequence + 2]
    return int(stop - start)

  def _sequence(self, sequence: int) -> Ids:
    start, stop = self._sequence_start[sequence : sequence + 2]
    return self._tokens[start:stop].astype(np.int32)
