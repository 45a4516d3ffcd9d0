"""Which layers run under one scan.

Layers whose weights have the same shapes are stacked. Where layers differ, a
scan runs over a repeating pattern, so that compile time does not grow with the
number of layers.
"""

import dataclasses
import functools
from collections.abc import Sequence

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
  return _split(tuple(kind.mlp for kind in config.layer_kinds))


def stacks(config: DecoderConfig) -> list[range]:
  """The layers of each stack of weights."""
  return [
    range(run.first + at, run.stop, run.period)
    for run in runs(config)
    for at in range(run.period)
  ]


@functools.cache
def _split(parts: tuple[BlockPart | None, ...]) -> tuple[Run, ...]:
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


def _equal(parts: Sequence[BlockPart | None], period: int) -> list[int]:
  found = [0] * (len(parts) + 1)
  for i in reversed(range(len(parts) - period)):
    found[i] = found[i + 1] + 1 if parts[i] == parts[i + period] else 0
  return found
