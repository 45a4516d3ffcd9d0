"""Where metrics of a run go: metrics.jsonl, TensorBoard, wandb, a trace."""

import hashlib
import json
import os
import tempfile
import time
from typing import Any, Protocol

import jax
from etils import epath
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from vtokens import config
from vtokens.host import errors, json_files, paths, writers
from vtokens.run.loop import DispatchedStep, Hook, Loop


class Sink(Protocol):
  """One place that metrics are written to."""

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Takes the values of a step."""

  def flush(self) -> None:
    """Writes what was taken to its final place."""

  def close(self) -> None:
    """Flushes, and takes nothing more."""


class Tracker:
  """All places that metrics are written to, as one.

  Args:
    sinks: the places; the first process alone has any.
  """

  def __init__(self, sinks: list[Sink]):
    self._sinks = sinks

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Takes the values of a step."""
    for sink in self._sinks:
      sink.write(step, values)

  def flush(self) -> None:
    """Writes what was taken to its final place.

    Call it before a checkpoint is saved: a run that continues from there does
    not compute earlier steps again.
    """
    for sink in self._sinks:
      sink.flush()

  def close(self) -> None:
    """Flushes, and takes nothing more."""
    for sink in self._sinks:
      sink.close()


def open_tracker(
  workdir: str,
  settings: config.Tracking,
  run: dict[str, Any],
  step: int,
  validated: int,
) -> Tracker:
  """Opens the sinks that the settings ask for, to continue after a step.

  Args:
    workdir: of the run.
    settings: of the run.
    run: the run's config, JSON values, for wandb.
    step: the last step done; see `MetricsWriter`.
    validated: the last step validated.

  Raises:
    errors.UserError: wandb is not installed, or cannot be used.
  """
  sinks: list[Sink] = [
    MetricsWriter(epath.Path(workdir) / 'metrics.jsonl', step, validated)
  ]
  if settings.wandb_project:
    sinks.append(_Wandb(workdir, settings.wandb_project, run))
  if settings.tensorboard:
    sinks.append(_TensorBoard(epath.Path(workdir) / 'tensorboard', step))
  return Tracker(sinks)


class MetricsWriter:
  """Appends one JSON object per line to a file.

  On a disk, lines are written at once. On an object store, `flush` writes the
  whole file anew.

  Args:
    path: the file. Lines of later steps, left by a run that was killed after
      its last checkpoint, are dropped, as is a line that was cut off.
    step: the last step whose line is kept.
    validated: the last step whose validation is kept.
  """

  def __init__(self, path: epath.PathLike, step: int, validated: int):
    self._path = epath.Path(path)
    kept = [
      row
      for row in read_metrics(path)
      if row['step'] <= (validated if 'validation_loss' in row else step)
    ]
    data = ''.join(json.dumps(row) + '\n' for row in kept).encode()
    writers.write_bytes(path, data)
    self._size = len(data)
    self._unwritten = b''

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Appends a line with the values of a step."""
    self._unwritten += json.dumps({'step': step, **values}).encode() + b'\n'
    if not paths.on_object_store(self._path):
      self._write()

  def flush(self) -> None:
    """Writes all lines through to the disk or the store."""
    self._write()
    if not paths.on_object_store(self._path):
      writers.sync(self._path)

  def _write(self) -> None:
    if self._unwritten:
      writers.append(self._path, self._size, self._unwritten)
      self._size += len(self._unwritten)
      self._unwritten = b''

  def close(self) -> None:
    """Flushes."""
    self.flush()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the lines of a metrics file; none if it does not exist.

  A last line that a kill cut off is left out.

  Raises:
    errors.UserError: the file is damaged.
  """
  path = epath.Path(path)
  if not paths.exists(path):
    return []
  advice = 'delete the line, or the file: only the curves of the run need it'
  shape = {'step': int, str: float}
  lines = json_files.read_lines(path, shape, advice, open_end='try')
  return [row for _, row in lines]


class _OnDisk:
  """A directory on a disk, for a library that can write nowhere else.

  For a directory on an object store, it is a temporary one whose files are
  copied there.

  Attributes:
    path: the directory on the disk.
  """

  def __init__(self, directory: epath.Path):
    self._directory = self.path = directory
    if paths.on_object_store(directory):
      self.path = epath.Path(tempfile.mkdtemp(prefix='vtokens-'))
    else:
      directory.mkdir(parents=True, exist_ok=True)

  def copy(self) -> None:
    """Copies the files to the object store, if that is their place."""
    if self.path != self._directory:
      writers.copy_files(self.path, self._directory)

  def move(self) -> None:
    """Copies, and removes the temporary directory."""
    self.copy()
    if self.path != self._directory:
      self.path.rmtree()


class _TensorBoard:
  """Event files, without tensorboardX's thread, which hides its errors."""

  def __init__(self, directory: epath.Path, step: int):
    self._written = _OnDisk(directory)
    self._writer = event_file_writer.EventsWriter(
      str(self._written.path / 'events'),
      # A file name has a time in seconds: one of the same second would be
      # replaced.
      filename_suffix=f'.{step}.{os.getpid()}',
    )
    # Makes readers drop later steps, of a run killed after its checkpoint.
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

  def flush(self) -> None:
    self._written.copy()

  def close(self) -> None:
    self._writer.close()
    self._written.move()


class _Wandb:
  """One wandb run per work directory, however often it is restarted."""

  def __init__(self, workdir: str, project: str, run: dict[str, Any]):
    try:
      import wandb
    except ImportError:
      raise errors.UserError(
        'config.tracking.wandb_project: wandb is not installed; '
        'pip install wandb, or leave it empty'
      ) from None
    remote = paths.on_object_store(workdir)
    name = os.path.basename(os.path.normpath(workdir))
    place = workdir if remote else os.path.abspath(workdir)
    number = hashlib.sha256(place.encode()).hexdigest()
    try:
      self._run = wandb.init(
        project=project,
        name=name,
        id=f'{name}-{number[:8]}',
        resume='allow',
        config=run,
        # None is ./wandb, whose content the server of wandb has too.
        dir=None if remote else workdir,
      )
    except wandb.errors.Error as e:
      raise errors.UserError(f'config.tracking.wandb_project: {e}') from None

  def write(self, step: int, values: dict[str, Any]) -> None:
    # wandb takes each step of its own only once, but a validation has the step
    # of the update before it.
    self._run.log(
      {'step': step, **{_tag(name): value for name, value in values.items()}}
    )

  def flush(self) -> None:
    pass  # The process of wandb sends lines as they come.

  def close(self) -> None:
    self._run.finish()


def _tag(name: str) -> str:
  """Names a metric as TensorBoard groups it: train/loss, validation/em."""
  part, _, rest = name.partition('_')
  return f'validation/{rest}' if part == 'validation' else f'train/{name}'


class Profile(Hook):
  """A trace of some steps, for TensorBoard's or XProf's profiler.

  Args:
    directory: where it is written.
    steps: the first and the last traced, counted from 1; (0, 0) for none.
  """

  def __init__(self, directory: epath.PathLike, steps: tuple[int, int]):
    self._directory = epath.Path(directory)
    self._first, self._last = steps
    self._running: _OnDisk | None = None

  def before_step(self, loop: Loop) -> None:
    """Starts the trace if the next step is the first one traced."""
    if self._first and loop.step + 1 == self._first:
      self._running = _OnDisk(self._directory)
      jax.profiler.start_trace(str(self._running.path))

  def after_step(self, loop: Loop, done: DispatchedStep) -> None:
    """Ends the trace once the last step traced has been computed."""
    if self._running and done.number >= self._last:
      jax.block_until_ready(done.values)
      self.close()
      writers.say(f'trace of steps up to {done.number}: {self._directory}')

  def close(self) -> None:
    """Ends a trace that is still on, e.g. if the run is stopped."""
    if self._running:
      written, self._running = self._running, None
      jax.profiler.stop_trace()
      written.move()
