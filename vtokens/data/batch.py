"""Batches of token ids, as the training step takes them.

Data workers import this module: it needs neither the model nor optax.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

# Metadata of a field that is part of the compiled program.
_STATIC = {'static': True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spans:
  """Where virtual tokens stand that are no tokens of the suffixes.

  Attributes:
    starts: position of the first virtual token of each suffix of a row, int32
      array of shape [R, C].
    counts: number of virtual tokens (k) of each suffix of a row, int32 array of
      shape [R, C]; 0 if the row lacks the suffix.
  """

  starts: Int[Array, 'R C']
  counts: Int[Array, 'R C']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Token ids of a batch of examples, one or several to a row.

  A row has two parts. One holds the prefixes of its examples, one after the
  other; the other holds their suffixes. A prefix can have several suffixes
  (config.virtual_tokens.draws_per_example). Padding is at the end of each part.

  Attributes:
    prefix: ids before any virtual token, int32 array of shape [R, P]: the
      passages, unless virtual tokens stand before them.
    prefix_positions: position of each id in its example, int32 array of shape
      [R, P]; -1 for padding.
    prefix_segments: number of the prefix in the row, int32 array of shape
      [R, P]; None where each row has one prefix.
    suffix: ids from the first virtual token on, int32 array of shape [R, S];
      virtual token i is the id `vocab_size + i`, unless there are `spans`.
    suffix_positions: position of each id in its example, int32 array of shape
      [R, S], counted on from the end of the prefix; -1 for padding.
    suffix_segments: number of the suffix in the row, int32 array of shape
      [R, S]; None where each row has one suffix.
    suffix_parents: number of the prefix before the suffix, int32 array of
      shape [R, S]; None where it equals `suffix_segments` or each row has one
      prefix.
    targets: ids of answers and eos, int32 array of shape [R, A].
    target_index: index in the suffix of the token that predicts each target,
      int32 array of shape [R, A]; -1 for padding.
    teacher_index: number of the target whose distribution each target learns,
      int32 array of shape [R, A]; -1 for none. It counts the targets of
      `teacher`, or, if that is None, of the same row. None without
      distillation.
    teacher: the same rows as the teacher sees them, with T targets each. A
      prefix of length 0 stands for the prefixes of this batch.
    spans: place of the virtual tokens of each suffix; None if they are tokens
      of the suffixes.
    num_prefixes: most prefixes of a row, static; None if it does not matter,
      as for bases without recurrent layers.
    num_suffixes: most suffixes of a row, static; None likewise.
  """

  prefix: Int[Array, 'R P']
  prefix_positions: Int[Array, 'R P']
  prefix_segments: Int[Array, 'R P'] | None = None
  suffix: Int[Array, 'R S']
  suffix_positions: Int[Array, 'R S']
  suffix_segments: Int[Array, 'R S'] | None = None
  suffix_parents: Int[Array, 'R S'] | None = None
  targets: Int[Array, 'R A']
  target_index: Int[Array, 'R A']
  teacher_index: Int[Array, 'R A'] | None = None
  teacher: 'Batch | None' = None
  spans: Spans | None = None
  num_prefixes: int | None = dataclasses.field(default=None, metadata=_STATIC)
  num_suffixes: int | None = dataclasses.field(default=None, metadata=_STATIC)


def make(*, per_row: int, draws: int, **arrays: Any) -> Batch:
  """A batch with the segments that its rows need, and no others.

  The fields that are None decide which program is compiled.

  Args:
    per_row: the most prefixes that a row can have.
    draws: the most suffixes that a prefix can have.
    **arrays: fields of `Batch`, all segments among them.
  """
  packed = per_row > 1
  if not packed:
    arrays['prefix_segments'] = None
  if not packed and draws == 1:
    arrays['suffix_segments'] = None
  if not packed or draws == 1:
    arrays['suffix_parents'] = None
  return Batch(**arrays, num_prefixes=per_row, num_suffixes=per_row * draws)


def without_prefix(batch: Batch) -> Batch:
  """The batch with prefixes of length 0; see `Batch.teacher`."""
  segments = batch.prefix_segments
  return dataclasses.replace(
    batch,
    prefix=batch.prefix[:, :0],
    prefix_positions=batch.prefix_positions[:, :0],
    prefix_segments=None if segments is None else segments[:, :0],
  )
