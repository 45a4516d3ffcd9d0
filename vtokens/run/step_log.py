"""The log of training steps: losses, rates, MFU and counts, one step late."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from vtokens import config
from vtokens.data.pipeline import HostBatch
from vtokens.host import errors, writers
from vtokens.run.loop import DispatchedStep, DivergedError, Hook, Loop
from vtokens.run.tracking import Sink


@dataclasses.dataclass
class Progress:
  """How far a run has come besides its state; kept in each checkpoint.

  Attributes:
    train_seconds: time in the loop, of earlier processes of the run.
    validated_step: step of the last validation.
    passages_dropped: passages left out for want of room, over all steps.
    passages_cut: passages shortened for want of room, over all steps.
  """

  train_seconds: float = 0.0
  validated_step: int = 0
  passages_dropped: int = 0
  passages_cut: int = 0


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What a step costs, to compute rates from.

  Attributes:
    flops: floating point operations of a step, by the lengths of its examples
      and of its teacher's; see `flops.train_flops`.
    peak_flops: operations per second of all devices; None if unknown.
    learning_rates: array of shape [num_steps], float32.
  """

  flops: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], float]
  peak_flops: float | None
  learning_rates: Float[np.ndarray, 'S']


def learning_rates(
  schedule: optax.Schedule, num_steps: int
) -> Float[np.ndarray, 'S']:
  """Computes the learning rate of every step, before the first one.

  Computing it later would wait for the step that the device is at.

  Returns:
    Array of shape [num_steps], float32.
  """
  return np.asarray(
    jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(
      jnp.arange(num_steps)
    )
  )


class StepLog(Hook):
  """Logs each step once the next one has been dispatched.

  Args:
    settings: number of steps, and how often to log.
    cost: of a step.
    tracker: where lines go.
    progress: updated with the passages that did not fit.
    step: number of steps done.
  """

  def __init__(
    self,
    settings: config.Train,
    cost: StepCost,
    tracker: Sink,
    progress: Progress,
    step: int,
  ):
    self._log_every = settings.log_every
    self._cost = cost
    self._tracker = tracker
    self._progress = progress
    self._seconds_before = progress.train_seconds
    self._began = self._reported = time.monotonic()
    # Waiting times for batches and for the device, since the last report.
    self._data_seconds = self._device_seconds = 0.0
    self._pending: DispatchedStep | None = None
    self._bar = writers.progress(
      total=settings.num_steps, initial=step, desc='training', unit='step'
    )

  def train_seconds(self) -> float:
    """Returns the time in the loop, over all processes of the run."""
    return self._seconds_before + time.monotonic() - self._began

  def after_step(self, loop: Loop, done: DispatchedStep) -> None:
    """Reports the step before; the device is at work on this one."""
    self._data_seconds += done.data_seconds
    self.report()
    self._pending = done

  def report(self) -> None:
    """Waits for the step that was dispatched last, and logs it.

    Raises:
      DivergedError: its loss or gradient is not finite.
    """
    if self._pending is None:
      return
    done, self._pending = self._pending, None
    began = time.monotonic()
    values = {key: float(value) for key, value in done.values.items()}
    self._device_seconds += time.monotonic() - began
    if not all(map(math.isfinite, values.values())):
      raise DivergedError(
        f'loss {values["loss"]}, gradient norm {values["grad_norm"]} at step '
        f'{done.number}; its examples: {errors.several(done.host.ids)}. The '
        'last checkpoint is from before this step. Try a lower '
        '--config.optim.learning_rate'
      )
    self._progress.passages_dropped += done.host.passages_dropped
    self._progress.passages_cut += done.host.passages_cut
    learning_rate = float(self._cost.learning_rates[done.number - 1])
    rates = self._rates(done.host)
    self._bar.update()
    self._bar.set_postfix_str(
      f'loss {values["loss"]:.3f}, lr {learning_rate:.1e}, '
      f'{rates["examples_per_second"]:.2f} examples/s'
    )
    if done.number % self._log_every == 0:
      self.write(
        done.number,
        {
          **values,
          'learning_rate': learning_rate,
          **rates,
          'padding': 1 - done.host.real_tokens / done.host.computed_tokens,
          'passages_dropped': self._progress.passages_dropped,
          'passages_cut': self._progress.passages_cut,
        },
      )

  def _rates(self, host: HostBatch) -> dict[str, float]:
    """Computes rates of the reported step, and restarts the clock.

    The time between two reports is spent waiting for the next batch (data),
    waiting for a step to end (device), or working (host).
    """
    seconds = time.monotonic() - self._reported
    flops = self._cost.flops(host.lengths, host.teacher_lengths)
    flops_per_second = flops / seconds
    rates = {
      'examples_per_second': len(host.ids) / seconds,
      'tflops_per_second': flops_per_second / 1e12,
      'data_seconds': self._data_seconds,
      'device_seconds': self._device_seconds,
      'host_seconds': seconds - self._data_seconds - self._device_seconds,
    }
    if self._cost.peak_flops is not None:
      rates['mfu'] = flops_per_second / self._cost.peak_flops
    self.restart_clock()
    return rates

  def restart_clock(self) -> None:
    """Excludes the time up to now, e.g. a validation, from the rates."""
    self._reported = time.monotonic()
    self._data_seconds = self._device_seconds = 0.0

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes a line."""
    self._tracker.write(step, values)

  def flush(self) -> None:
    """Brings all lines to the disk or the store."""
    self._tracker.flush()

  def end(self, loop: Loop) -> None:
    """Tells how many passages did not fit."""
    progress = self._progress
    if progress.passages_dropped or progress.passages_cut:
      writers.say(
        'passages that did not fit config.data.max_prefix_tokens: '
        f'{progress.passages_dropped} dropped, {progress.passages_cut} cut'
      )

  def close(self) -> None:
    """Closes the tracker and the progress bar."""
    try:
      self._tracker.close()
    finally:
      self._bar.close()
