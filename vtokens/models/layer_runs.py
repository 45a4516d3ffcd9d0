"""Which layers run under one scan.

Layers whose weights have the same shapes are stacked. Where layers differ, a
scan runs over a repeating pattern, so that compile time does not grow with the
number of layers. Without `DecoderConfig.scan_layers` each layer is a run.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from vtokens.models.decoder_config import BlockPart, DecoderConfig

# Longest pattern that is searched for, in layers.
_LONGEST = 16


@dataclasses.dataclass(frozen=True)
class Run:
  """Consecutive layers: a pattern and how often it repeats.

  Attributes:
    first: number of the first layer.
    period: layers of the pattern. Each has a stack of weights.
    repeats: layers of each stack.
  """

  first: int
  period: int
  repeats: int

  @property
  def stop(self) -> int:
    """Number of the layer after the last."""
    return self.first + self.period * self.repeats


def runs(config: DecoderConfig) -> tuple[Run, ...]:
  """The runs of a decoder, from its first layer to its last."""
  if not config.scan_layers:
    return tuple(Run(i, 1, 1) for i in range(config.num_layers))
  return _split(tuple((kind.mixer, kind.mlp) for kind in config.layer_kinds))


def stacks(config: DecoderConfig) -> list[range]:
  """The layers of each stack of weights."""
  return [
    range(run.first + at, run.stop, run.period)
    for run in runs(config)
    for at in range(run.period)
  ]


def part(x: Shaped[Array, 'L *B'], numbers: range) -> Shaped[Array, 'R *B']:
  """The part of a stack of layers of an array of all layers."""
  if len(numbers) == len(x):
    return x
  return x[numbers.start : numbers.stop : numbers.step]


def whole(
  config: DecoderConfig, parts: Sequence[Shaped[Array, 'R *B']]
) -> Shaped[Array, 'L *B']:
  """An array of all layers, from one for each stack of layers."""
  if len(parts) == 1:
    return parts[0]
  order = np.concatenate([np.array(numbers) for numbers in stacks(config)])
  return jnp.concatenate(parts)[np.argsort(order)]


# What decides the shapes of a layer: its token mixer and its MLP.
_Parts = tuple[BlockPart | None, BlockPart | None]


@functools.cache
def _split(parts: tuple[_Parts, ...]) -> tuple[Run, ...]:
  """The runs with the fewest stacks."""
  count = len(parts)
  periods = range(1, min(_LONGEST, count) + 1)
  # For each period and layer: the following layers that equal the layer one
  # period later.
  equal = {period: _equal(parts, period) for period in periods}
  best: list[tuple[int, tuple[Run, ...]]] = [(0, ())] * (count + 1)
  for first in reversed(range(count)):
    options = []
    for period in periods:
      repeats = 1 + equal[period][first] // period
      if repeats > 1 or period == 1:
        run = Run(first, period, repeats)
        stacks, later = best[run.stop]
        options.append((period + stacks, (run, *later)))
    best[first] = min(options, key=lambda option: option[0])
  return best[0][1]


def _equal(parts: Sequence[_Parts], period: int) -> list[int]:
  found = [0] * (len(parts) + 1)
  for i in reversed(range(len(parts) - period)):
    found[i] = found[i + 1] + 1 if parts[i] == parts[i + period] else 0
  return found
