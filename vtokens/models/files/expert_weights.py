"""Stored tensors of experts: one tensor for each expert, or one for all."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from vtokens.models.files.weight_map import TensorSource, Weight


@dataclasses.dataclass(frozen=True)
class SplitExperts(Weight):
  """Each expert has a tensor of its own.

  The names of one layer's tensors follow one another.
  """

  experts: int = 1

  @property
  def layers(self) -> int:
    """See `Weight`."""
    return len(self.names) // self.experts

  def read(
    self,
    source: TensorSource,
    layer: int,
    index: tuple[slice, ...],
    out: np.ndarray,
    progress: Callable[[int], Any],
  ) -> None:
    """See `Weight`."""
    one = self._one()
    for expert, part in zip(_numbers(index[0], self.experts), out, strict=True):
      number = layer * self.experts + expert
      one.read(source, number, index[1:], part, progress)

  def write(self, parameter: Array, tensor: int) -> np.ndarray:
    """See `Weight`."""
    layer, expert = divmod(tensor, self.experts)
    return self._one().rows_of(np.asarray(parameter[layer, expert]))

  def _one(self) -> Weight:
    """The matrix of one expert."""
    return Weight(
      names=self.names,
      stacked=True,
      shape=self.shape[1:],
      stored=self.stored,
      inputs=self.inputs,
      first_row=self.first_row,
      groups=1,
      tensor_rows=self.tensor_rows,
    )


@dataclasses.dataclass(frozen=True)
class JoinedExperts(Weight):
  """One tensor has the matrices of all experts, or their biases.

  It may hold several parameters, side by side along the outputs.

  Attributes:
    input_rows: whether the matrices are stored as [inputs, outputs].
    step: 1 if the outputs of a parameter are neighbours in the tensor; else the
      number of parameters that take turns.
    tensor_shape: shape of the whole tensor.
  """

  input_rows: bool = False
  step: int = 1
  tensor_shape: tuple[int, ...] = ()

  def whole_shape(self) -> tuple[int, ...]:
    """See `Weight`."""
    return self.tensor_shape

  def read(
    self,
    source: TensorSource,
    layer: int,
    index: tuple[slice, ...],
    out: np.ndarray,
    progress: Callable[[int], Any],
  ) -> None:
    """See `Weight`."""
    name = self.names[layer]
    _, *matrix = self.tensor_shape
    # As a matrix: the rows of all experts below one another.
    height = matrix[0] if len(matrix) == 2 else 1
    share = source.nbytes(name) / math.prod(self.tensor_shape)
    for expert, part in zip(
      _numbers(index[0], self.shape[0]), out, strict=True
    ):
      *inputs, outputs = index[1:]
      first = expert * height
      if inputs and not self.input_rows:
        rows = self._outputs(outputs, first)
        block = source.read(name, rows, inputs[0])[:: self.step].T
      else:
        rows = slice(first, first + 1)
        if inputs:
          start, stop, _ = inputs[0].indices(self.shape[1])
          rows = slice(first + start, first + stop)
        block = source.read(name, rows, self._outputs(outputs, 0))
        block = block[:, :: self.step]
      part[...] = block.reshape(part.shape)
      progress(round(share * block.size))

  def _outputs(self, outputs: slice, first: int) -> slice:
    """Where some outputs are along their axis of the tensor."""
    start, stop, _ = outputs.indices(self.shape[-1])
    if self.step == 1:
      first += self.first_row
      return slice(first + start, first + stop)
    first += self.first_row // self.shape[-1]
    return slice(first + start * self.step, first + (stop - 1) * self.step + 1)

  def write(self, parameter: Array, tensor: int) -> np.ndarray:
    """See `Weight`."""
    layer = np.asarray(parameter[tensor])
    if layer.ndim == 3 and not self.input_rows:
      layer = layer.swapaxes(1, 2)
    return np.ascontiguousarray(layer)

  def join(self, parts: list[np.ndarray]) -> np.ndarray:
    """See `Weight`."""
    if len(parts) == 1:
      return parts[0]
    axis = 1 if parts[0].ndim == 3 and not self.input_rows else -1
    if self.step == 1:
      return np.concatenate(parts, axis)
    return np.stack(parts, axis=axis % parts[0].ndim + 1).reshape(
      self.tensor_shape
    )


def _numbers(span: slice, count: int) -> range:
  return range(*span.indices(count))
