"""Lays examples out as the arrays that generation takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vtokens.data.assemble import Example
from vtokens.data.batch import Spans
from vtokens.data.prompt_encoder import Ids
from vtokens.method import generate
from vtokens.method.trainable import Trainable


def prefixes(
  ids: Sequence[Ids], rows: int, length: int
) -> tuple[Int[np.ndarray, 'B P'], Int[np.ndarray, 'B P']]:
  """Ids and positions of prefixes, padded; arrays of shape [B, P], int32."""
  prefix, positions = _full((rows, length), 0), _full((rows, length), -1)
  for r, part in enumerate(ids):
    prefix[r, : len(part)] = part
    positions[r, : len(part)] = np.arange(len(part))
  return prefix, positions


def suffixes(
  examples: Sequence[Sequence[Example]],
  first_ids: Sequence[Sequence[int]],
  trainable: Trainable,
  rows: int,
  length: int,
) -> generate.Suffixes:
  """The suffixes of a batch, in arrays of NumPy.

  Args:
    examples: the branches of each row, without targets; the same number in each
      row.
    first_ids: id of virtual token 0 of each branch of each row.
    trainable: what the virtual tokens are.
    rows: number of rows.
    length: length of a row.
  """
  branches = len(first_ids[0])
  shape, of_branches = (rows, length), (rows, branches)
  ids, positions = _full(shape, 0), _full(shape, -1)
  segments = _full(shape, -1)
  last = _full(of_branches, -1)
  starts, counts = _full(of_branches, 0), _full(of_branches, 0)
  for r, row in enumerate(examples):
    stop = 0
    for number, example in enumerate(row):
      suffix = example.suffix(first_ids[r][number])
      start, stop = stop, stop + len(suffix)
      ids[r, start:stop] = suffix
      positions[r, start:stop] = example.suffix_positions()
      starts[r, number] = example.first_position
      counts[r, number] = example.num_active
      segments[r, start:stop] = number
      last[r, number] = stop - 1
  return generate.Suffixes(
    ids=ids,
    positions=positions,
    segments=segments if branches > 1 else None,
    last=last,
    spans=None if trainable.in_suffix else Spans(starts, counts),
  )


def _full(shape: tuple[int, int], fill: int) -> Any:
  return np.full(shape, fill, np.int32)
