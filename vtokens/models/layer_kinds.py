"""How the layers of a stack differ, in a form that a scan can carry."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens.models import rope
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope

# See `rope.angles`.
Angles = tuple[Float[Array, 'B T 1 R2'], Float[Array, 'B T 1 R2']]

# A function from a layer's entry to its angles and window; see `LayerKinds`.
Select = Callable[[Any], tuple[Angles, Int[Array, ''] | int | None]]


def windows_vary(kinds: Sequence[LayerKind]) -> bool:
  """Whether the window of a scan over layers is traced."""
  return len({kind.window for kind in kinds}) > 1


class LayerKinds:
  """The differences between the layers of each stack.

  Args:
    config: the architecture.
    positions: positions of the tokens.
  """

  def __init__(self, config: DecoderConfig, positions: Int[Array, 'B T']):
    self._kinds = config.layer_kinds
    length = config.context_length or config.longest_sequence
    # By embedding and width of the rotated part.
    self._angles: dict[tuple[Rope | None, int], Angles] = {}
    self._widths = [config.rotated_width(kind) for kind in self._kinds]
    for kind, width in zip(self._kinds, self._widths, strict=True):
      if (kind.rope, width) not in self._angles:
        cos, sin = rope.angles(positions, kind.rope, width, length)
        turned = cos, -sin if config.turn_back else sin
        self._angles[kind.rope, width] = turned

  def of(self, numbers: range) -> tuple[Select, Int[Array, 'R 2'] | None]:
    """The differences between some layers.

    Args:
      numbers: the layers.

    Returns:
      A function from a layer's entry to its angles (see `rope.angles`) and
      window; and the entries, one for each layer. Entries are traced only if
      layers differ, since XLA optimises constants better.
    """
    kinds = [self._kinds[i] for i in numbers]
    ropes = list(dict.fromkeys(kind.rope for kind in kinds))
    # The layers of a stack have one width.
    width = self._widths[numbers[0]]
    angles = [self._angles[rope, width] for rope in ropes]
    varies = windows_vary(kinds)
    if not varies and len(ropes) == 1:
      return lambda _: (angles[0], kinds[0].window), None
    table = jax.tree.map(lambda *parts: jnp.stack(parts), *angles)
    # Longer than any sequence.
    unlimited = np.iinfo(np.int32).max // 2
    entries = np.array(
      [(ropes.index(kind.rope), kind.window or unlimited) for kind in kinds],
      np.int32,
    )

    def select(
      entry: Int[Array, '2'],
    ) -> tuple[Angles, Int[Array, ''] | int | None]:
      return (
        jax.tree.map(lambda x: x[entry[0]], table),
        entry[1] if varies else kinds[0].window,
      )

    return select, jnp.asarray(entries)
