"""The training loop: steps, reports one step late, validations, checkpoints."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.records import Record
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.conditions import TokenTable
from vtokens.host import errors, stopping, writers
from vtokens.method import steps
from vtokens.run import tracking
from vtokens.run.checkpoints import Checkpoints


class Loop:
  """Trains one table from where its checkpoints left off.

  Args:
    settings: steps, and how often to do what.
    train_step: the jitted step.
    base: weights of the frozen model.
    state: the initial state; replaced by the latest checkpoint, if any.
    batches: of the training set.
    schedule: learning rate by step, for the reports.
    evaluator: for validations.
    validation: records; none for no validation.
    as_table: what the evaluator wants to know of a table besides its rows.
    num_active: virtual tokens used in validations.
    checkpoints: of the run.
    tracker: opens the run's metrics to go on after (step, step last
      validated).
    profile: of some steps.
    flops: that a step needs, by its examples' lengths; see `flops.train_flops`.
    peak_flops: of all devices, per second; None where it is not known.
    stop: looked at after each step.

  Attributes:
    state: the current state.
    step: updates done.
    seconds_before: spent in the loop by earlier processes of the run.
    seconds: spent in the loop in all; known once it has ended.
  """

  def __init__(
    self,
    *,
    settings: config.Train,
    train_step: Callable[..., tuple[steps.TrainState, dict[str, Any]]],
    base: nnx.State,
    state: steps.TrainState,
    mesh: jax.sharding.Mesh,
    batches: pipeline.TrainBatches,
    schedule: optax.Schedule,
    evaluator: Evaluator,
    validation: Sequence[Record],
    as_table: Callable[[np.ndarray], TokenTable],
    num_active: int,
    checkpoints: Checkpoints,
    tracker: Callable[[int, int], tracking.Tracker],
    profile: tracking.Profile,
    flops: Callable[[Sequence[Sequence[int]]], float],
    peak_flops: float | None,
    stop: stopping.StopRequest,
  ):
    self.state = state
    self._settings = settings
    self._train_step = train_step
    self._base = base
    self._mesh = mesh
    self._batches = batches
    # On the host before the first step: reading a rate later would wait for
    # the step that is being computed.
    self._rates = np.asarray(
      jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(
        jnp.arange(settings.num_steps)
      )
    )
    self._evaluator = evaluator
    self._validation = validation
    self._as_table = as_table
    self._num_active = num_active
    self._checkpoints = checkpoints
    self._stop = stop
    self._best_loss = math.inf
    self._validated = 0
    self.seconds_before = 0.0
    self._dropped = self._cut = 0
    restored = checkpoints.restore(state)
    if restored is not None:
      self.state, metadata = restored
      self.seconds_before = metadata['train_seconds']
      self._validated = metadata['validated_step']
      self._dropped = metadata['passages_dropped']
      self._cut = metadata['passages_cut']
      writers.say(f'continuing after step {metadata["step"]}')
    # Also without a latest one: a kill can come before the first.
    best = checkpoints.restore_best(state)
    if best is not None:
      self._best_loss = best[1]['validation_loss']
    self.step = int(self.state.step)
    self._began = self._reported = time.monotonic()
    # Spent since then, waiting for batches and for devices.
    self._data_seconds = self._device_seconds = 0.0
    self._tracker = tracker(self.step, self._validated)
    self._profile = profile
    self._flops = flops
    self._peak_flops = peak_flops
    self._bar = writers.progress(
      total=settings.num_steps,
      initial=self.step,
      desc='training',
      unit='step',
    )
    # Step number, batch and metrics of the step that is still computed.
    self._pending: tuple[int, pipeline.HostBatch, dict] | None = None

  def _spent(self) -> float:
    return self.seconds_before + time.monotonic() - self._began

  def run(self) -> None:
    """Trains to the last step.

    Raises:
      stopping.Stopped: a signal came; the state has been saved.
      errors.UserError: the loss is not finite; the last checkpoint is from
        before.
    """
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._bar)
      stack.callback(self._profile.close)
      stack.callback(self._tracker.close)
      stream = stack.enter_context(self._batches.starting_at(self.step))
      self._run(stream)
      self.seconds = self._spent()

  def _run(self, stream) -> None:
    settings = self._settings
    # A run that was stopped while it validated has this still to do.
    self._validate_if_due()
    while self.step < settings.num_steps:
      began = time.monotonic()
      host = next(stream)
      self._data_seconds += time.monotonic() - began
      self._profile.before(self.step + 1)
      batch = partitioning.shard_batch(
        host.batch, self._mesh, self._batches.batch_rows
      )
      self.state, values = self._train_step(self.state, self._base, batch)
      # Only now wait for the step before: the device is never idle.
      self._report()
      self._pending = (self.step, host, values)
      self.step += 1
      self._profile.after(self.step, values)
      self._validate_if_due()
      last = self.step == settings.num_steps
      if self.step % settings.checkpoint_every == 0 or last:
        self._checkpoint()
      if not last:
        self._stop_if_asked()
    if self._dropped or self._cut:
      writers.say(
        'passages that did not fit config.data.max_prefix_tokens: '
        f'{self._dropped} dropped, {self._cut} cut'
      )

  def _report(self) -> None:
    """Logs the pending step; raises if its loss is not finite."""
    if self._pending is None:
      return
    step, host, device_values = self._pending
    self._pending = None
    began = time.monotonic()
    values = {key: float(value) for key, value in device_values.items()}
    self._device_seconds += time.monotonic() - began
    if not all(map(math.isfinite, values.values())):
      raise errors.UserError(
        f'loss {values["loss"]}, gradient norm {values["grad_norm"]} at step '
        f'{step + 1}; its examples: {errors.several(host.ids)}. The last '
        'checkpoint is from before it. A lower --config.optim.learning_rate '
        'may help'
      )
    self._dropped += host.passages_dropped
    self._cut += host.passages_cut
    rate = float(self._rates[step])
    seconds, times = self._split_time()
    examples_per_second = len(host.ids) / seconds
    flops_per_second = self._flops(host.lengths) / seconds
    if self._peak_flops is not None:
      times['mfu'] = flops_per_second / self._peak_flops
    self._bar.update()
    self._bar.set_postfix_str(
      f'loss {values["loss"]:.3f}, lr {rate:.1e}, '
      f'{examples_per_second:.2f} examples/s'
    )
    if (step + 1) % self._settings.log_every == 0:
      self._tracker.write(
        step + 1,
        {
          **values,
          'learning_rate': rate,
          'examples_per_second': examples_per_second,
          'tflops_per_second': flops_per_second / 1e12,
          **times,
          'padding': 1 - host.real_tokens / host.computed_tokens,
          'passages_dropped': self._dropped,
          'passages_cut': self._cut,
        },
      )

  def _split_time(self) -> tuple[float, dict[str, float]]:
    """Seconds since the last report, and what they were spent on.

    The host waits for the next batch (data) or for a step to end (device), or
    works itself.
    """
    now = time.monotonic()
    seconds = now - self._reported
    times = {
      'data_seconds': self._data_seconds,
      'device_seconds': self._device_seconds,
      'host_seconds': seconds - self._data_seconds - self._device_seconds,
    }
    self._restart_clock()
    return seconds, times

  def _restart_clock(self) -> None:
    self._reported = time.monotonic()
    self._data_seconds = self._device_seconds = 0.0

  def _validate_if_due(self) -> None:
    due = (
      self.step % self._settings.validate_every == 0
      or self.step == self._settings.num_steps
    )
    if not due or not self._validation or self._validated == self.step:
      return
    self._report()
    table = distributed.fetch(self.state.table)
    try:
      loss, answers = self._evaluator.validate(
        self._validation, self._as_table(table), self._num_active
      )
    except stopping.Stopped:
      self._checkpoint()
      raise
    self._restart_clock()
    self._validated = self.step
    if not math.isfinite(loss):
      raise errors.UserError(
        f'validation loss {loss} after step {self.step}. A lower '
        '--config.optim.learning_rate may help'
      )
    found = run_scores.scores_of(self._validation, answers)
    writers.say(
      f'step {self.step}: validation loss {loss:.3f}, EM {found.em:.1f}, F1 '
      f'{found.f1:.1f} (k={self._num_active}, n={found.n})'
    )
    self._tracker.write(
      self.step,
      {
        'validation_loss': loss,
        'validation_em': found.em,
        'validation_f1': found.f1,
      },
    )
    if loss < self._best_loss:
      self._best_loss = loss
      self._checkpoints.save_best(
        self.state, {'step': self.step, 'validation_loss': loss}
      )

  def _stop_if_asked(self) -> None:
    try:
      self._stop.check_together()
    except stopping.Stopped:
      self._checkpoint()
      raise

  def _checkpoint(self) -> None:
    # The loss first: a state after NaN must never be saved, nor one that the
    # last update broke, which only the next loss would show.
    self._report()
    # On the host: a device may be at work on answers that were dropped.
    if not np.isfinite(distributed.fetch(self.state.table)).all():
      raise errors.UserError(
        f'the table is not finite after step {self.step}; the last '
        'checkpoint is from before it. A lower --config.optim.learning_rate '
        'may help'
      )
    try:
      # First: no line before the checkpoint is written again after it.
      self._tracker.flush()
    finally:
      # Whatever became of the lines, the state is worth more.
      self._checkpoints.save(
        self.state,
        {
          'step': self.step,
          'train_seconds': self._spent(),
          'validated_step': self._validated,
          'passages_dropped': self._dropped,
          'passages_cut': self._cut,
        },
      )
    self._restart_clock()
