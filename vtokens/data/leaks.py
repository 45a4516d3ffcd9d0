"""Finds training questions that are also in validation or test sets.

Compares 64-bit hashes: a million questions take 8 MB. The probability that two
of 10^6 different questions share a hash is 3e-8.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np

from vtokens.scoring import metrics


def question_key(question: str) -> str:
  """Normalises a question; equal keys mean the same question.

  The steps are: Unicode NFKC (width, ligatures, superscripts); case folding;
  dropping Unicode punctuation (categories P*); `metrics.normalize_answer`,
  which lowers case, drops ASCII punctuation and symbols and the words a, an and
  the, and joins words by one space. Accents, word order and other words stay.
  If nothing is left, the key is the case-folded NFKC form without white space
  at its ends.
  """
  folded = unicodedata.normalize('NFKC', question).casefold()
  words = folded
  if not folded.isascii():  # normalize_answer drops ASCII punctuation.
    words = ''.join(
      c for c in folded if not unicodedata.category(c).startswith('P')
    )
  return metrics.normalize_answer(words) or folded.strip()


def hash_questions(questions: Iterable[str]) -> np.ndarray:
  """BLAKE2b of each question's key in UTF-8, uint64 array of shape [n]."""
  return np.fromiter(
    (
      int.from_bytes(
        hashlib.blake2b(
          question_key(question).encode(), digest_size=8
        ).digest(),
        'little',
      )
      for question in questions
    ),
    dtype=np.uint64,
  )


@dataclasses.dataclass(frozen=True)
class Leaks:
  """Which training questions are held out.

  Attributes:
    counts: (training set, held-out set) -> number of rows of the training set
      whose question is in the held-out set, for every pair. A row can count
      for several held-out sets.
    remove: training set -> bool array of shape [rows], true where the question
      is in any held-out set.
  """

  counts: Mapping[tuple[str, str], int]
  remove: Mapping[str, np.ndarray]


def find_leaks(
  train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]
) -> Leaks:
  """Compares every training set with every held-out set.

  Args:
    train: `hash_questions` by name of the training set, in the order of its
      rows.
    held_out: `hash_questions` by name of the validation or test set.
  """
  unique = {name: np.unique(hashes) for name, hashes in held_out.items()}
  counts, remove = {}, {}
  for train_name, hashes in train.items():
    remove[train_name] = np.zeros(len(hashes), dtype=bool)
    for name, others in unique.items():
      found = np.isin(hashes, others)
      counts[train_name, name] = int(found.sum())
      remove[train_name] |= found
  return Leaks(counts, remove)


def format_leaks(leaks: Leaks) -> str:
  """Formats a table with a line for each pair with leaks, and totals."""
  names = list(leaks.remove)
  pairs = {pair: n for pair, n in leaks.counts.items() if n}
  if not pairs:
    held_out = len({name for _, name in leaks.counts})
    questions = sum(len(mask) for mask in leaks.remove.values())
    return (
      f'no question of {held_out} held-out set{"s" * (held_out != 1)} is '
      f'among {questions:,} training questions'
    )
  rows = [('training set', 'held-out set', 'questions', 'of')]
  for name in names:
    total = len(leaks.remove[name])
    found = {other: n for (train, other), n in pairs.items() if train == name}
    rows += [
      (name, other, f'{n:,}', f'{total:,}') for other, n in found.items()
    ]
    if len(found) > 1:
      removed = int(leaks.remove[name].sum())
      rows.append((name, 'any', f'{removed:,}', f'{total:,}'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    f'{train:{widths[0]}}  {other:{widths[1]}}  {n:>{widths[2]}}  '
    f'{total:>{widths[3]}}'
    for train, other, n, total in rows
  )
