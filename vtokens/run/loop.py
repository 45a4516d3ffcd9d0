"""The training loop, and the interface of the hooks around its steps."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vtokens.data.batch import Batch
from vtokens.data.pipeline import HostBatch, TrainBatches
from vtokens.host import errors, stopping
from vtokens.method.steps import TrainState


class DivergedError(errors.UserError):
  """A loss, a gradient or the table is not finite."""


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
    """Called after the last step, if nothing failed; must not stop the run."""

  def close(self) -> None:
    """Called last, however the loop ends; in reverse order."""


class Loop:
  """Trains from the step of a state to the last step.

  Steps are only dispatched here. Hooks read their results, one step late, so
  that the device always has the next step to compute.

  Args:
    step_fn: (state, batch of this process's rows) -> (state, metrics).
    state: where training begins or continues.
    batches: of the training set.
    hooks: what is done around the steps, in this order.

  Attributes:
    state: the current state.
    step: number of steps dispatched.
    num_steps: number of steps in all; set by `run`.
  """

  def __init__(
    self,
    step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    batches: TrainBatches,
    hooks: Sequence[Hook],
  ):
    self.state = state
    self.step = int(state.step)
    self.num_steps = self.step
    self._step_fn = step_fn
    self._batches = batches
    self._hooks = hooks

  @property
  def is_done(self) -> bool:
    """Whether the last step has been dispatched."""
    return self.step == self.num_steps

  def run(self, num_steps: int) -> None:
    """Trains up to a number of steps.

    Raises:
      stopping.Stopped: a hook raised it; the others have been told.
      errors.UserError: a hook found that training cannot go on.
    """
    self.num_steps = num_steps
    with contextlib.ExitStack() as stack:
      for hook in self._hooks:
        stack.callback(hook.close)
      stream = stack.enter_context(self._batches.starting_at(self.step))
      with self._telling_of_stops():
        for hook in self._hooks:
          hook.begin(self)
      while self.step < num_steps:
        began = time.monotonic()
        host = next(stream)
        data_seconds = time.monotonic() - began
        with self._telling_of_stops():
          for hook in self._hooks:
            hook.before_step(self)
        self.state, values = self._step_fn(self.state, host.batch)
        self.step += 1
        done = DispatchedStep(self.step, host, values, data_seconds)
        with self._telling_of_stops():
          for hook in self._hooks:
            hook.after_step(self, done)
      for hook in self._hooks:
        hook.end(self)

  @contextlib.contextmanager
  def _telling_of_stops(self) -> Iterator[None]:
    """Tells all hooks if one of them stops the run."""
    try:
      yield
    except stopping.Stopped:
      for hook in self._hooks:
        hook.stopped(self)
      raise
