"""Temporary."""

import hashlib

import numpy as np

from vtokens.metrics import normalize_answer


def question_keys(questions):
  return np.array(
    [
      int.from_bytes(
        hashlib.blake2b(normalize_answer(q).encode(), digest_size=8).digest(),
        'big',
      )
      for q in questions
    ],
    np.uint64,
  )
