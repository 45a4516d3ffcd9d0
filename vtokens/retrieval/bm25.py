"""BM25 over shards, with the statistics of the whole corpus.

Each shard gets an index of bm25s with its own vocabulary. Document frequencies
and average length are of the whole corpus, so a passage's score does not depend
on the shards.

The score is Lucene's (Kamphuis et al., 2020, "Which BM25 Do You Mean?", ECIR):
the sum over the question's tokens of

    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * l / avg))

Words and grams (see `lexicon`) have separate lengths l. The average length of
grams is over the passages that have any.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import tqdm

from vtokens.data import records
from vtokens.host import claimed_directory, errors, json_files, writers
from vtokens.retrieval import (
  execute,
  lexicon,
  passage_store,
  retrieval_config,
  topk,
)

_BATCH = 4096  # Passages tokenised together.
_COUNTS = 'counts'
_FREQUENCIES = 'frequencies'
_TOTALS = 'totals.json'


@dataclasses.dataclass(frozen=True)
class BM25Method:
  """BM25 with fixed settings; see `search.Method`.

  Attributes:
    settings: settings of BM25.
    wants_grams: whether a question has grams.
  """

  settings: retrieval_config.BM25
  wants_grams: bool = True

  def identity(self) -> dict[str, Any]:
    """The settings that, with the corpus, decide the index."""
    if not lexicon.has_grams(self.settings):
      return self._without_grams()
    return {**self._without_grams(), 'scripts_without_spaces': 'characters'}

  def will_do(self) -> list[dict[str, Any]]:
    """Identities of other indices in which a search gives the same result.

    If no question has grams, an index of words alone will do. Earlier versions
    made such indices.
    """
    return [] if self.wants_grams else [self._without_grams()]

  def _without_grams(self) -> dict[str, Any]:
    versions = {'bm25s': _version('bm25s')}
    if self.settings.stemmer != 'none':
      versions['PyStemmer'] = _version('PyStemmer')
    return {'bm25': dataclasses.asdict(self.settings), 'versions': versions}

  def check(self) -> None:
    """Raises a `UserError` for settings that cannot be used here."""
    lexicon.tokenize(self.settings, ['a'])

  def describe(self) -> str:
    """The settings as text."""
    s = self.settings
    return (
      f'BM25, k1 {s.k1}, b {s.b}, stemmer {s.stemmer}, stopwords '
      f'{s.stopwords}, titles count {s.title_weight}x'
    )

  def build(
    self,
    corpus: passage_store.PassageReader,
    directory: pathlib.Path,
    execution: retrieval_config.Execution,
    label: str,
  ) -> dict[str, Any]:
    """Writes the index of every shard; returns facts about it."""
    shards = range(len(corpus.shard_sizes))
    counts = directory / _COUNTS
    frequencies = directory / _FREQUENCIES
    totals = directory / _TOTALS

    def is_done(shard: int) -> bool:
      return passage_store.shard_directory(directory, shard).exists()

    if not (totals.exists() and all(map(is_done, shards))):
      execute.for_each(
        execution,
        functools.partial(
          _count_shard, self.settings, corpus.directory, counts
        ),
        shards,
        lambda shard: passage_store.shard_directory(counts, shard).exists(),
        f'{label}: count words',
      )
      if not totals.exists() or not all(
        _frequencies(frequencies, shard).exists() for shard in shards
      ):
        _add_up(counts, frequencies, totals, shards, label)
    execute.for_each(
      execution,
      functools.partial(_score_shard, self.settings, directory),
      shards,
      is_done,
      f'{label}: index',
    )
    for leftover in (counts, frequencies):
      claimed_directory.remove(leftover)
    return _read_totals(totals)

  def encode_questions(
    self, questions: Sequence[str], path: pathlib.Path
  ) -> None:
    """Writes the questions' tokens."""
    tokens = lexicon.question_tokens(self.settings, questions)
    with claimed_directory.new_part(path) as part:
      part.write_text(json.dumps(tokens, ensure_ascii=False), 'utf-8')

  def search(
    self,
    directory: pathlib.Path,
    digest: str,
    first_row: int,
    shard: int,
    questions: pathlib.Path,
    k: int,
  ) -> topk.Hits:
    """The best passages of one shard; see `search.Method`."""
    index, vocabulary = _open_shard(
      passage_store.shard_directory(directory, shard), digest
    )
    hits = []
    advice = f'delete {questions} to have it made again'
    for tokens in json_files.read(questions, [[str]], advice):
      ids = vocabulary.ids(tokens)
      # Without a known word, bm25s would score each passage 0, or fail.
      scores = index.get_scores_from_ids(ids) if ids else np.zeros(0)
      hits.append(topk.best(scores, k, first_row))
    return topk.Hits(
      rows=np.stack([rows for rows, _ in hits]),
      scores=np.stack([scores for _, scores in hits]),
    )


def _count_shard(
  settings: retrieval_config.BM25,
  corpus: pathlib.Path,
  counts: pathlib.Path,
  shard: int,
) -> None:
  """Writes the number of times that each word is in each passage of a shard.

  The files `indptr`, `indices` and `tf` are a CSR matrix of shape [words,
  passages].
  """
  passages = passage_store.PassageReader.open(corpus)
  vocabulary: dict[str, int] = {}
  words, lengths = [], []
  grams: list[int] = []
  gram_lengths: list[int] = []
  with tqdm.tqdm(
    total=passages.shard_sizes[shard],
    desc=f'shard {shard}',
    unit=' passages',
    unit_scale=True,
    leave=False,
  ) as bar:
    for start in range(0, passages.shard_sizes[shard], _BATCH):
      batch = passages.shard(shard, start, start + _BATCH)
      texts = [_text(passage, settings.title_weight) for passage in batch]
      ids, own = lexicon.tokenize_ids(settings, texts)
      to_shard = np.array(
        [vocabulary.setdefault(w, len(vocabulary)) for w in own], np.int32
      )
      flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
      words.append(to_shard[flat])
      lengths.append(np.array([len(text) for text in ids], np.int32))
      found = lexicon.grams(settings, texts)
      grams += [
        vocabulary.setdefault(gram, len(vocabulary))
        for gram in itertools.chain.from_iterable(found)
      ]
      gram_lengths += map(len, found)
      bar.update(len(batch))
  # Alphabetical order is the same in each run, unlike that of bm25s.
  ordered = sorted(vocabulary)
  to_rank = np.empty(len(ordered), np.int64)
  to_rank[[vocabulary[word] for word in ordered]] = np.arange(len(ordered))
  length = np.concatenate(lengths)
  rows = np.arange(len(length))
  keys = to_rank[np.concatenate([*words, np.array(grams, np.int32)])] << 32
  keys |= np.concatenate([np.repeat(rows, n) for n in (length, gram_lengths)])
  keys, tf = np.unique(keys, return_counts=True)
  frequencies = np.bincount(keys >> 32, minlength=len(ordered))
  with claimed_directory.new_part(
    passage_store.shard_directory(counts, shard)
  ) as part:
    part.mkdir()
    writers.write_text(
      part / 'words.json', json.dumps(ordered, ensure_ascii=False)
    )
    np.save(part / 'lengths.npy', length)
    np.save(part / 'gram_lengths.npy', np.array(gram_lengths, np.int32))
    np.save(part / 'indptr.npy', np.concatenate([[0], frequencies.cumsum()]))
    np.save(part / 'indices.npy', (keys & 0xFFFFFFFF).astype(np.int32))
    np.save(part / 'tf.npy', tf.astype(np.int32))


def _add_up(
  counts: pathlib.Path,
  frequencies: pathlib.Path,
  totals: pathlib.Path,
  shards: Sequence[int],
  label: str,
) -> None:
  """Adds up the shards; writes the corpus frequencies of each shard's words."""
  df: collections.Counter[str] = collections.Counter()
  num_passages = num_tokens = num_grams = num_with_grams = 0
  for shard in tqdm.tqdm(shards, f'{label}: add up', leave=False):
    directory = passage_store.shard_directory(counts, shard)
    lengths = np.load(directory / 'lengths.npy')
    num_passages += len(lengths)
    num_tokens += int(lengths.sum(dtype=np.int64))
    lengths = np.load(directory / 'gram_lengths.npy')
    num_grams += int(lengths.sum(dtype=np.int64))
    num_with_grams += int((lengths > 0).sum())
    own = np.diff(np.load(directory / 'indptr.npy')).tolist()
    df.update(dict(zip(_words(directory), own, strict=True)))
  if not num_tokens and not num_grams:
    raise errors.UserError(
      'config.retrievers[...].bm25: no passage has a token; see token_pattern '
      'and stopwords'
    )
  for shard in shards:
    if _frequencies(frequencies, shard).exists():
      continue
    words = _words(passage_store.shard_directory(counts, shard))
    with claimed_directory.new_part(_frequencies(frequencies, shard)) as part:
      with part.open('wb') as file:
        np.save(file, np.array([df[word] for word in words], np.int64))
  # Written last: this file marks the step as done.
  with claimed_directory.new_part(totals) as part:
    facts = {
      'num_passages': num_passages,
      'num_tokens': num_tokens,
      'num_words': len(df),
      'num_grams': num_grams,
      'num_passages_with_grams': num_with_grams,
    }
    part.write_text(json.dumps(facts), 'utf-8')


def _frequencies(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / f'{shard:05}.npy'


def _score_shard(
  settings: retrieval_config.BM25, directory: pathlib.Path, shard: int
) -> None:
  """Writes the index of a shard, in the format of bm25s."""
  counts = passage_store.shard_directory(directory / _COUNTS, shard)
  totals = _read_totals(directory / _TOTALS)
  df = np.load(_frequencies(directory / _FREQUENCIES, shard))
  lengths, gram_lengths, indptr, indices, tf = (
    np.load(counts / f'{name}.npy')
    for name in ('lengths', 'gram_lengths', 'indptr', 'indices', 'tf')
  )
  size = totals['num_passages']
  idf = np.log(1 + (size - df + 0.5) / (df + 0.5)).astype(np.float32)
  words = _words(counts)
  # Grams come first.
  num_grams = bisect.bisect_left(words, chr(ord(lexicon.GRAM) + 1))
  cut = indptr[num_grams]
  # In float32, since a large shard has about 10^7 of these.
  scores = tf.astype(np.float32)
  for own, sizes, total, of in (
    (slice(cut), gram_lengths, 'num_grams', 'num_passages_with_grams'),
    (slice(cut, None), lengths, 'num_tokens', 'num_passages'),
  ):
    average = totals[total] / max(totals[of], 1)
    norm = settings.k1 * (1 - settings.b + settings.b * sizes / (average or 1))
    scores[own] /= scores[own] + norm.astype(np.float32)[indices[own]]
  scores *= np.repeat(idf, np.diff(indptr))
  index = lexicon.load_bm25s().BM25(
    k1=settings.k1, b=settings.b, method='lucene'
  )
  index.scores = {
    'data': scores,
    'indices': indices,
    'indptr': indptr,
    'num_docs': len(lengths),
  }
  index.nonoccurrence_array = None
  index.vocab_dict = {word: i for i, word in enumerate(words)}
  with claimed_directory.new_part(
    passage_store.shard_directory(directory, shard)
  ) as part:
    index.save(part, show_progress=False)
    lexicon.Vocabulary.save(part, words)


@functools.cache
def _open_shard(
  directory: pathlib.Path, digest: str
) -> tuple[Any, lexicon.Vocabulary]:
  """A shard's memory-mapped index, and its vocabulary.

  Args:
    directory: directory of the shard.
    digest: digest of the index: part of the cache's key, so that a new index in
      this place is opened again.
  """
  del digest
  index = lexicon.load_bm25s().BM25.load(
    directory, mmap=True, load_vocab=False, show_progress=False
  )
  vocabulary = lexicon.Vocabulary(directory)
  # Ids of another vocabulary would silently find wrong passages.
  words, columns = len(vocabulary), len(index.scores['indptr']) - 1
  if words != columns:
    raise errors.UserError(
      f'{directory}: {words:,} words for {columns:,} columns of scores: not '
      'an index that was written together; rebuild it with '
      '--config.on_stale_index=rebuild'
    )
  return index, vocabulary


def _text(passage: records.Passage, title_weight: int) -> str:
  return '\n'.join([passage.title] * title_weight + [passage.text])


def _words(counts: pathlib.Path) -> list[str]:
  advice = f'delete {counts} to make it again'
  words: list[str] = json_files.read(counts / 'words.json', [str], advice)
  return words


def _read_totals(path: pathlib.Path) -> dict[str, Any]:
  shape = {'num_passages': int, 'num_tokens': int, 'num_words': int}
  advice = f'delete {path.parent} to make it again'
  totals: dict[str, Any] = json_files.read(path, shape, advice)
  return totals


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return 'none'
