"""Batches of prompts that begin alike, in few shapes.

The ids that all prompts of a group begin with, such as solved examples, are
encoded once, in one row. Lengths are padded to few sizes, because each shape is
a program to compile.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens.data.prompt_encoder import Ids
from vtokens.devices import partitioning
from vtokens.host import stopping
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder
from vtokens.models.frozen_base import FrozenBase

# Least padded length of a prompt; see `bucket`.
PROMPT_BUCKET = 64
# Prompts whose first ids, so many, are equal form a group.
_ALIKE = 128


def bucket(size: int, least: int) -> int:
  """The padded length: `least` times 1, 1.5, 2, 3, 4, 6, 8 and so on."""
  doubled = least
  while doubled < size:
    doubled *= 2
  between = doubled * 3 // 4
  return between if doubled > least and size <= between else doubled


def groups(prompts: Sequence[Ids], batch_size: int) -> list[list[int]]:
  """Numbers of the prompts of each group.

  Prompts that begin alike form a group if they fill a batch. All others form
  one group.
  """
  alike: dict[bytes, list[int]] = collections.defaultdict(list)
  for i, ids in enumerate(prompts):
    alike[ids[:_ALIKE].tobytes()].append(i)
  found = [part for part in alike.values() if len(part) >= batch_size]
  others = [
    i for part in alike.values() if len(part) < batch_size for i in part
  ]
  return [*found, others] if others else found


def common_start(prompts: Sequence[Ids]) -> int:
  """How many ids all prompts begin with; at least one of each remains."""
  common = min(map(len, prompts)) - 1
  first = prompts[0]
  for ids in prompts[1:]:
    differ = np.flatnonzero(ids[:common] != first[:common])
    common = int(differ[0]) if len(differ) else common
  return common


@functools.partial(jax.jit, static_argnames='graph')
def _encode(
  base: nnx.State[str, Any],
  table: Float[Array, 'P D'],
  ids: Int[Array, '1 T'],
  positions: Int[Array, '1 T'],
  *,
  graph: nnx.GraphDef[Decoder],
) -> Cache:
  decoder = nnx.merge(graph, base)
  return decoder.encode(TABLE.embed(decoder, table, ids), positions, ids=ids)


def encode_start(
  base: FrozenBase, table: Float[np.ndarray, 'P D'], ids: Ids
) -> Cache:
  """The cache of the ids before every row, itself of one row.

  Args:
    base: the frozen model.
    table: of virtual tokens, float32; their ids follow the vocabulary.
    ids: of a common start, int32; may be empty.
  """
  size = bucket(len(ids), PROMPT_BUCKET)
  padded = np.zeros((1, size), np.int32)
  positions = np.full((1, size), -1, np.int32)
  padded[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(len(ids))
  cache: Cache = _encode(
    base.params, table, padded, positions, graph=base.graph
  )
  return cache


def started_groups(
  base: FrozenBase,
  table: Float[np.ndarray, 'P D'],
  prompts: Sequence[Ids],
  batch_size: int,
  stop: stopping.StopRequest,
) -> Iterator[tuple[list[int], int, Cache]]:
  """Groups prompts and encodes the common start of each group.

  Args:
    base: the frozen model.
    table: of virtual tokens; see `encode_start`.
    prompts: ids of each prompt, int32.
    batch_size: the least size of a group of prompts that begin alike.
    stop: drops the start that is being encoded.

  Yields:
    Numbers of the prompts of a group, the length of their common start, and
    its cache, of one row.
  """
  for group in groups(prompts, batch_size):
    common = common_start([prompts[i] for i in group])
    ids = prompts[group[0]][:common]
    start = stop.run(functools.partial(encode_start, base, table, ids))
    yield group, common, start


def num_rows(mesh: jax.sharding.Mesh, count: int, batch_size: int) -> int:
  """Rows of a batch, a multiple of the devices along data and fsdp.

  Args:
    mesh: the devices.
    count: of all prompts; few prompts need fewer rows, of few sizes.
    batch_size: most rows, up to that multiple.
  """
  size = min(batch_size, 1 << (count - 1).bit_length())
  return partitioning.round_up_rows(mesh, size)


def batches(
  index: Sequence[int], size: int, length: Callable[[int], tuple[int, ...]]
) -> Iterator[list[int]]:
  """Cuts a list into batches of about equal lengths, longest first."""
  order = sorted(index, key=length, reverse=True)
  for start in range(0, len(order), size):
    yield order[start : start + size]


def no_table(base: FrozenBase) -> Float[np.ndarray, '1 D']:
  """A table for programs that take one, where no virtual token is used."""
  return np.zeros((1, base.config.embed_dim), np.float32)
