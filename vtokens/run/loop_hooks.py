"""Validation, saving and stopping, as hooks of the training loop."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from vtokens.host import stopping, writers
from vtokens.method.steps import TrainState
from vtokens.method.trainable import Values
from vtokens.run import training_state
from vtokens.run.checkpoints import Checkpoints
from vtokens.run.loop import DispatchedStep, DivergedError, Hook, Loop
from vtokens.run.step_log import Progress, StepLog
from vtokens.scoring.metrics import Scores
from vtokens.scoring.refusals import RefusalScores


def resume(
  checkpoints: Checkpoints, initial: TrainState
) -> tuple[TrainState, Progress]:
  """Finds where a run continues.

  Args:
    checkpoints: of the run.
    initial: the state before the first step.

  Returns:
    State and progress of the latest checkpoint, or of a run that begins.
  """
  restored = checkpoints.restore(initial)
  if restored is None:
    return initial, Progress()
  state, metadata = restored
  writers.say(f'continuing after step {metadata["step"]}')
  names = [field.name for field in dataclasses.fields(Progress)]
  return state, Progress(**{name: metadata[name] for name in names})


@dataclasses.dataclass(frozen=True)
class ValidationResult:
  """What a validation found.

  Attributes:
    loss: mean nats per target token.
    scores: of the generated answers.
    num_active: virtual tokens used.
    refusals: scores of refusals; None if all questions have an answer.
  """

  loss: float
  scores: Scores
  num_active: int
  refusals: RefusalScores | None = None


class Validation(Hook):
  """Validates every few steps and after the last one; keeps the best state.

  Args:
    validate: scores trained values.
    every: steps between two validations.
    log: where results go.
    progress: updated with the step.
    checkpoints: keeps the state of the lowest loss.
  """

  def __init__(
    self,
    validate: Callable[[Values], ValidationResult],
    every: int,
    log: StepLog,
    progress: Progress,
    checkpoints: Checkpoints,
  ):
    self._validate = validate
    self._every = every
    self._log = log
    self._progress = progress
    self._checkpoints = checkpoints
    self._best_loss = math.inf

  def begin(self, loop: Loop) -> None:
    """Finds the best loss so far; makes up for an interrupted validation."""
    # Also if there is no latest checkpoint: a kill can come before the first.
    best = self._checkpoints.restore_best(loop.state)
    if best is not None:
      self._best_loss = best[1]['validation_loss']
    self._validate_if_due(loop)

  def after_step(self, loop: Loop, done: DispatchedStep) -> None:
    """Validates if it is time."""
    self._validate_if_due(loop)

  def _validate_if_due(self, loop: Loop) -> None:
    step = loop.step
    due = step % self._every == 0 or loop.is_done
    if not due or self._progress.validated_step == step:
      return
    self._log.report()
    found = self._validate(training_state.fetch_trained(loop.state))
    self._log.restart_clock()
    self._progress.validated_step = step
    if not math.isfinite(found.loss):
      raise DivergedError(
        f'validation loss {found.loss} after step {step}. Try a lower '
        '--config.optim.learning_rate'
      )
    scores = found.scores
    refusals = found.refusals
    writers.say(
      f'step {step}: validation loss {found.loss:.3f}, EM {scores.em:.1f}, F1 '
      f'{scores.f1:.1f} (k={found.num_active}, n={scores.n})'
      + (f', F1 of refusals {refusals.f1:.1f}' if refusals else '')
    )
    self._log.write(
      step,
      {
        'validation_loss': found.loss,
        'validation_em': scores.em,
        'validation_f1': scores.f1,
        **({'validation_refusal_f1': refusals.f1} if refusals else {}),
      },
    )
    if found.loss < self._best_loss:
      self._best_loss = found.loss
      self._checkpoints.save_best(
        loop.state, {'step': step, 'validation_loss': found.loss}
      )


class Saving(Hook):
  """Saves a checkpoint every few steps, after the last one, and on a stop.

  Args:
    checkpoints: of the run.
    every: steps between two checkpoints.
    log: reports the last step before its state is saved.
    progress: saved with the state.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    every: int,
    log: StepLog,
    progress: Progress,
  ):
    self._checkpoints = checkpoints
    self._every = every
    self._log = log
    self._progress = progress

  def after_step(self, loop: Loop, done: DispatchedStep) -> None:
    """Saves if it is time."""
    if loop.step % self._every == 0 or loop.is_done:
      self._save(loop)

  def stopped(self, loop: Loop) -> None:
    """Saves the state that the stop left."""
    self._save(loop)

  def _save(self, loop: Loop) -> None:
    # The loss comes first: a state after NaN must never be saved.
    self._log.report()
    # Nor one that the last update broke, which only the next loss would show.
    # Look on the host: the device may still compute answers that were dropped.
    trained = training_state.fetch_trained(loop.state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(trained)):
      raise DivergedError(
        f'the trained values are not finite after step {loop.step}. The last '
        'checkpoint is from before this step. Try a lower '
        '--config.optim.learning_rate'
      )
    try:
      # First: lines before the checkpoint are never written again.
      self._log.flush()
    finally:
      # Save the state even if flushing the lines fails.
      self._checkpoints.save(
        loop.state,
        {
          'step': loop.step,
          **dataclasses.asdict(self._progress),
          'train_seconds': self._log.train_seconds(),
        },
      )
    self._log.restart_clock()


class StopIfAsked(Hook):
  """Stops after a step if a signal came; not after the last one.

  Args:
    request: of the run.
  """

  def __init__(self, request: stopping.StopRequest):
    self._request = request

  def after_step(self, loop: Loop, done: DispatchedStep) -> None:
    """Raises `stopping.Stopped` on all processes if any was asked to stop."""
    if not loop.is_done:
      self._request.check_together()


def best_values(
  checkpoints: Checkpoints, state: TrainState
) -> tuple[Values, int]:
  """Chooses the trained values that a run ends with.

  Args:
    checkpoints: of the run.
    state: after the last step.

  Returns:
    The values of the best validation, or of the state if there was none, as
    numpy arrays; and their step.
  """
  best = checkpoints.restore_best(state)
  chosen = state if best is None else best[0]
  return training_state.fetch_trained(chosen), int(chosen.step)
