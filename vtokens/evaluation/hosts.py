"""What several processes have to agree on."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped

from vtokens import errors, writers


def fetch(array: Shaped[Array, '...']) -> Shaped[np.ndarray, '...']:
  """A whole array on every process, however it is sharded.

  All processes have to call it, in the same order.
  """
  if array.is_fully_addressable:
    return np.asarray(jax.device_get(array))
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def first_says(value: Any) -> Any:
  """What the first process was given, on all of them.

  Args:
    value: a bool, or an array of the same shape on all processes.
  """
  if jax.process_count() == 1:
    return value
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


@contextlib.contextmanager
def sole_writer(directory: str | pathlib.Path) -> Iterator[None]:
  """`writers.sole_writer` of the first process, the only one that writes.

  Raises:
    errors.UserError: on all processes, if the first cannot be it.
  """
  with contextlib.ExitStack() as stack:
    failure = ''
    if jax.process_index() == 0:
      try:
        stack.enter_context(writers.sole_writer(directory))
      except errors.UserError as e:
        failure = str(e)
    if first_says(bool(failure)):
      raise errors.UserError(
        failure or f'the first process cannot write to {directory}'
      )
    yield
