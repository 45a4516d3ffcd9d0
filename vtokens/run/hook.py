"""What happens around training steps: the interface of the loop's hooks."""

import dataclasses
import typing
from typing import Any

from vtokens.data.pipeline import HostBatch

if typing.TYPE_CHECKING:
  from vtokens.run.loop import Loop


@dataclasses.dataclass(frozen=True)
class DispatchedStep:
  """A step that the device may still compute.

  Attributes:
    number: of the step, counted from 1.
    host: its batch on the host.
    values: its metrics, scalars on the device.
    data_seconds: how long the loop waited for the batch.
  """

  number: int
  host: HostBatch
  values: dict[str, Any]
  data_seconds: float


class Hook:
  """Something to do around training steps; by default, nothing.

  The loop calls each method of all its hooks in their order. All processes of a
  run have the same hooks.
  """

  def begin(self, loop: 'Loop') -> None:
    """Called before the first step of this process."""

  def before_step(self, loop: 'Loop') -> None:
    """Called when the batch of the next step is there."""

  def after_step(self, loop: 'Loop', done: DispatchedStep) -> None:
    """Called when a step has been dispatched."""

  def stopped(self, loop: 'Loop') -> None:
    """Called after a hook has raised `stopping.Stopped`."""

  def end(self, loop: 'Loop') -> None:
    """Called after the last step, if nothing failed."""

  def close(self) -> None:
    """Called last, however the loop ends; in reverse order."""
