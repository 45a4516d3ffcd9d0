"""Splits texts into words for BM25, and keeps the words' ids on disk.

A text in scripts without spaces (see `vtokens.scoring.unspaced`) also has
*grams*: its characters, the pairs of neighbouring characters, and words of
other scripts directly beside them, such as CUDA in 'CUDA编程'. Grams begin with
`GRAM`, so no gram equals a word. Grams do not change a text's words: a question
without grams gets the same passages and scores as in an index without them.
"""

import bisect
import functools
import importlib
import itertools
import pathlib
import sys
import threading
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex

from vtokens.host import errors
from vtokens.retrieval import retrieval_config
from vtokens.scoring import unspaced

# Sorts before all words.
GRAM = '\x01'
_RUN = regex.compile(
  rf'(?:{unspaced.CHARACTER}|{unspaced.OTHER_WORD})+', regex.V1
)
_PART = regex.compile(
  rf'(?P<characters>(?:{unspaced.CHARACTER})+)|{unspaced.OTHER_WORD}', regex.V1
)


def tokenize(
  settings: retrieval_config.BM25, texts: Sequence[str]
) -> list[list[str]]:
  """Splits each text, passage or question, into words.

  Raises:
    errors.UserError: the stemmer or the stopwords are unknown.
  """
  ids, vocabulary = tokenize_ids(settings, texts)
  words = list(vocabulary)  # In the order of their ids.
  return [[words[i] for i in text] for text in ids]


def tokenize_ids(
  settings: retrieval_config.BM25, texts: Sequence[str]
) -> tuple[list[list[int]], dict[str, int]]:
  """Like `tokenize`; returns ids of words, from 0, and the ids by word."""
  bm25s = load_bm25s()
  stopwords = settings.stopwords
  try:
    tokenised: tuple[list[list[int]], dict[str, int]] = bm25s.tokenize(
      list(texts),
      lower=settings.lower,
      token_pattern=settings.token_pattern,
      stopwords=[] if stopwords == 'none' else stopwords,
      stemmer=_stemmer(settings.stemmer),
      show_progress=False,
    )
  except ValueError as e:
    raise errors.UserError(
      f'config.retrievers[...].bm25.stopwords={stopwords!r}: {e}'
    ) from e
  return tokenised


def has_grams(settings: retrieval_config.BM25) -> bool:
  """Whether texts get grams: only with the default token_pattern."""
  return settings.token_pattern == retrieval_config.BM25.token_pattern


def grams(
  settings: retrieval_config.BM25, texts: Sequence[str]
) -> list[list[str]]:
  """Grams of each text; none for a text without these scripts."""
  found: list[list[str]] = [[] for _ in texts]
  if not has_grams(settings):
    return found
  others: dict[int, list[str]] = {}
  for number, text in enumerate(texts):
    if not unspaced.has(text):
      continue
    text = unicodedata.normalize('NFC', unspaced.fold_width(text))
    for run in _RUN.findall(text.lower() if settings.lower else text):
      if not unspaced.has(run):
        continue
      for part in _PART.finditer(run):
        if part['characters']:
          own = unspaced.characters(part[0])
          found[number] += own
          found[number] += map(''.join, itertools.pairwise(own))
        else:
          others.setdefault(number, []).append(part[0])
  words = tokenize(settings, [' '.join(parts) for parts in others.values()])
  for number, own in zip(others, words, strict=True):
    found[number] += own
  return [[GRAM + gram for gram in own] for own in found]


def question_tokens(
  settings: retrieval_config.BM25, questions: Sequence[str]
) -> list[list[str]]:
  """Words of each question, and grams if it is written without spaces.

  Its words in other scripts are searched both as words and as grams, since
  passages have them with or without spaces.
  """
  result = tokenize(settings, questions)
  for number, own in enumerate(grams(settings, questions)):
    if not own or not unspaced.is_written(questions[number]):
      continue
    words = [word for word in result[number] if not unspaced.has(word)]
    inner = [gram[1:] for gram in own if not unspaced.has(gram)]
    result[number] = [*words, *inner, *own, *(GRAM + word for word in words)]
  return result


class Vocabulary:
  """Looks up ids of words on disk: a dict for each shard would be large.

  Args:
    directory: directory that `save` wrote.
  """

  def __init__(self, directory: pathlib.Path):
    self._text = np.load(directory / 'words.npy', mmap_mode='r')
    self._ends = np.load(directory / 'word_ends.npy', mmap_mode='r')

  @staticmethod
  def save(directory: pathlib.Path, words: Sequence[str]) -> None:
    """Writes words in alphabetical order; their ids count from 0."""
    encoded = [word.encode() for word in words]
    text = np.frombuffer(b''.join(encoded), np.uint8)
    np.save(directory / 'words.npy', text)
    np.save(
      directory / 'word_ends.npy',
      np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    )

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> bytes:
    return bytes(self._text[self._ends[index] : self._ends[index + 1]])

  def ids(self, words: Sequence[str]) -> list[int]:
    """Ids of the known words, in the same order."""
    found = []
    for word in words:
      key = word.encode()  # Sorts as the text does.
      index = bisect.bisect_left(self, key)
      if index < len(self) and self[index] == key:
        found.append(index)
    return found


@functools.cache
def _stemmer(language: str) -> Any:
  if language == 'none':
    return None
  try:
    import Stemmer
  except ImportError as e:
    raise errors.UserError(
      f'config.retrievers[...].bm25.stemmer={language!r} needs PyStemmer, '
      f'which is not installed ({e}); try: pip install PyStemmer, or set none'
    ) from e
  if language not in Stemmer.algorithms():
    raise errors.UserError(
      f'config.retrievers[...].bm25.stemmer={language!r}: expected none or one '
      f'of {", ".join(Stemmer.algorithms())}'
    )
  return Stemmer.Stemmer(language)


_IMPORTING = threading.Lock()


def load_bm25s() -> Any:
  """Imports bm25s without JAX.

  If JAX is installed, importing bm25s runs a JAX program, which would occupy an
  accelerator. bm25s uses JAX to find the best scores; `topk` does that here.
  """
  with _IMPORTING:
    if 'bm25s' not in sys.modules:
      jax = sys.modules.get('jax')
      sys.modules['jax'] = None  # type: ignore[assignment]
      try:
        importlib.import_module('bm25s')
      finally:
        if jax is None:
          del sys.modules['jax']
        else:
          sys.modules['jax'] = jax
    return sys.modules['bm25s']
