"""Texts as words for BM25, and words as ids on disk."""

import bisect
import functools
import importlib
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtokens import errors
from vtokens.retrieval import config


def tokenize(settings: config.BM25, texts: Sequence[str]) -> list[list[str]]:
  """Tokens of each text: the same function for passages and questions.

  Raises:
    errors.UserError: the stemmer or the stopwords are not known.
  """
  ids, vocabulary = tokenize_ids(settings, texts)
  words = list(vocabulary)  # In the order of their ids.
  return [[words[i] for i in text] for text in ids]


def tokenize_ids(
  settings: config.BM25, texts: Sequence[str]
) -> tuple[list[list[int]], dict[str, int]]:
  """As `tokenize`, but ids of tokens, and the tokens by id from 0 on."""
  bm25s = load_bm25s()
  stopwords = settings.stopwords
  try:
    return bm25s.tokenize(
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


class Vocabulary:
  """Ids of words, looked up on disk: a dict for each shard would be large.

  Args:
    directory: where `save` wrote it.
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
    return self._text[self._ends[index] : self._ends[index + 1]].tobytes()

  def ids(self, words: Sequence[str]) -> list[int]:
    """Ids of those words that are known, in the same order."""
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

  bm25s runs a JAX program as it is imported, if JAX is there, which would take
  hold of an accelerator. What it uses JAX for is done by `topk` here.
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
