"""Where the numbers of a run go: metrics.jsonl, TensorBoard, wandb, a trace."""

import hashlib
import json
import os
import pathlib
import time
from typing import Any, Protocol

import jax
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from vtokens import config, errors, writers


class Sink(Protocol):
  """One place that metrics are written to."""

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Notes the values of a step."""

  def close(self) -> None:
    """Brings all of it to where it belongs."""


class Tracker:
  """All places that metrics are written to.

  Args:
    sinks: none on all processes but the first.
  """

  def __init__(self, sinks: list[Sink]):
    self._sinks = sinks

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Notes the values of a step."""
    for sink in self._sinks:
      sink.write(step, values)

  def close(self) -> None:
    """Brings all of it to where it belongs."""
    for sink in self._sinks:
      sink.close()


def open_tracker(
  workdir: str,
  settings: config.Tracking,
  run: dict[str, Any],
  step: int,
  validated: int,
) -> Tracker:
  """Opens what the settings ask for, to go on after a step.

  Args:
    workdir: of the run.
    settings: of the run.
    run: its config, JSON values, for wandb.
    step: see `MetricsWriter`; likewise validated.
    validated: likewise.

  Raises:
    errors.UserError: wandb is not installed, or cannot be used.
  """
  sinks: list[Sink] = [
    MetricsWriter(pathlib.Path(workdir, 'metrics.jsonl'), step, validated)
  ]
  if settings.tensorboard:
    sinks.append(_TensorBoard(os.path.join(workdir, 'tensorboard'), step))
  if settings.wandb_project:
    sinks.append(_Wandb(workdir, settings.wandb_project, run))
  return Tracker(sinks)


class MetricsWriter:
  """Appends one JSON object per line to a file.

  Args:
    path: the file.
    step: lines of later steps, left by a run that was killed after its last
      checkpoint, are dropped, as is a line that was cut off.
    validated: likewise for the lines of validations.
  """

  def __init__(self, path: str | pathlib.Path, step: int, validated: int):
    self._path = pathlib.Path(path)
    kept = [
      row
      for row in read_metrics(path)
      if row['step'] <= (validated if 'validation_loss' in row else step)
    ]
    writers.write_text(path, ''.join(json.dumps(row) + '\n' for row in kept))
    self._file = self._path.open('a', encoding='utf-8')

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Appends the values of a step."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file, its content on disk."""
    os.fsync(self._file.fileno())
    self._file.close()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; none if it does not exist."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break  # Cut off by a kill; only ever the last line.
  return rows


class _TensorBoard:
  """Event files. Without tensorboardX's thread, whose errors none would see."""

  def __init__(self, directory: str, step: int):
    os.makedirs(directory, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      os.path.join(directory, 'events'),
      # Names have only seconds: a file of the same second would be replaced.
      filename_suffix=f'.{step}.{os.getpid()}',
    )
    # Drops later steps, of a run that was killed after its checkpoint.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step + 1, session_log=start)

  def write(self, step: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
      self._write(step, summary=summary.scalar(_tag(name), value))
    self._writer.flush()

  def _write(self, step: int, **content: Any) -> None:
    self._writer.write_event(
      event_pb2.Event(step=step, wall_time=time.time(), **content)
    )

  def close(self) -> None:
    self._writer.close()


class _Wandb:
  """One wandb run for a work directory, however often it is restarted."""

  def __init__(self, workdir: str, project: str, run: dict[str, Any]):
    try:
      import wandb
    except ImportError:
      raise errors.UserError(
        'config.tracking.wandb_project: wandb is not installed; '
        'pip install wandb, or leave it empty'
      ) from None
    name = os.path.basename(os.path.normpath(workdir))
    number = hashlib.sha256(os.path.abspath(workdir).encode()).hexdigest()
    try:
      self._run = wandb.init(
        project=project,
        name=name,
        id=f'{name}-{number[:8]}',
        resume='allow',
        config=run,
        dir=workdir,
      )
    except wandb.errors.Error as e:
      raise errors.UserError(f'config.tracking.wandb_project: {e}') from None

  def write(self, step: int, values: dict[str, Any]) -> None:
    # Not wandb's own step: it takes none twice, and a validation has that of
    # the update before it.
    self._run.log(
      {'step': step, **{_tag(name): value for name, value in values.items()}}
    )

  def close(self) -> None:
    self._run.finish()


def _tag(name: str) -> str:
  """As TensorBoard groups them: train/loss, validation/em."""
  part, _, rest = name.partition('_')
  return f'validation/{rest}' if part == 'validation' else f'train/{name}'


class Profile:
  """A trace of some steps, for TensorBoard's or XProf's profiler.

  Args:
    directory: where it is written.
    steps: the first and the last traced, counted from 1; (0, 0) for none.
  """

  def __init__(self, directory: str, steps: tuple[int, int]):
    self._directory = directory
    self._first, self._last = steps
    self._running = False

  def before(self, step: int) -> None:
    """To be called before a step is begun."""
    if self._first and step == self._first:
      jax.profiler.start_trace(self._directory)
      self._running = True

  def after(self, step: int, state: Any) -> None:
    """To be called with what the step gave."""
    if self._running and step >= self._last:
      jax.block_until_ready(state)
      self.close()
      writers.say(f'trace of steps up to {step}: {self._directory}')

  def close(self) -> None:
    """Ends a trace that is still on, e.g. when the run is stopped."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
