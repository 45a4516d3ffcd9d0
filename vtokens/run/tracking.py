"""Where the numbers of a run go: metrics.jsonl, TensorBoard, wandb, a trace."""

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


class Sink(Protocol):
  """One place that metrics are written to."""

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Notes the values of a step."""

  def flush(self) -> None:
    """Brings all of it to where it belongs."""

  def close(self) -> None:
    """Likewise; nothing is written after it."""


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

  def flush(self) -> None:
    """Brings all of it to where it belongs.

    To be called before a checkpoint is saved, after which nothing before it
    is computed again.
    """
    for sink in self._sinks:
      sink.flush()

  def close(self) -> None:
    """Brings all of it to where it belongs; nothing is written after it."""
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
    MetricsWriter(epath.Path(workdir) / 'metrics.jsonl', step, validated)
  ]
  if settings.wandb_project:
    sinks.append(_Wandb(workdir, settings.wandb_project, run))
  if settings.tensorboard:
    sinks.append(_TensorBoard(epath.Path(workdir) / 'tensorboard', step))
  return Tracker(sinks)


class MetricsWriter:
  """Appends one JSON object per line to a file.

  At once on a disk; by `flush` on an object store, where all is written anew.

  Args:
    path: the file.
    step: lines of later steps, left by a run that was killed after its last
      checkpoint, are dropped, as is a line that was cut off.
    validated: likewise for the lines of validations.
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
    """Appends the values of a step."""
    self._unwritten += json.dumps({'step': step, **values}).encode() + b'\n'
    if not paths.on_object_store(self._path):
      self._write()

  def flush(self) -> None:
    """Brings all lines to the disk or the store."""
    self._write()
    if not paths.on_object_store(self._path):
      writers.sync(self._path)

  def _write(self) -> None:
    if self._unwritten:
      writers.append(self._path, self._size, self._unwritten)
      self._size += len(self._unwritten)
      self._unwritten = b''

  def close(self) -> None:
    """Likewise."""
    self.flush()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
  """The lines of a metrics file; none if it does not exist.

  A last line that a kill has cut off is left out.

  Raises:
    errors.UserError: the file is damaged.
  """
  path = epath.Path(path)
  if not paths.exists(path):
    return []
  advice = 'delete the line, or the file: only the curves of the run need it'
  shape = {'step': int, str: float}
  lines = json_files.read_lines(path, shape, advice, open_end=True)
  return [row for _, row in lines]


class _OnDisk:
  """Where a library that knows only disks may write a directory.

  That directory itself, or a temporary one in place of one that is on an
  object store.

  Attributes:
    path: of what can be written to.
  """

  def __init__(self, directory: epath.Path):
    self._directory = self.path = directory
    if paths.on_object_store(directory):
      self.path = epath.Path(tempfile.mkdtemp(prefix='vtokens-'))
    else:
      directory.mkdir(parents=True, exist_ok=True)

  def copy(self) -> None:
    """Brings what was written to where it belongs."""
    if self.path != self._directory:
      writers.copy_files(self.path, self._directory)

  def move(self) -> None:
    """Likewise; nothing is written after it."""
    self.copy()
    if self.path != self._directory:
      self.path.rmtree()


class _TensorBoard:
  """Event files. Without tensorboardX's thread, whose errors none would see."""

  def __init__(self, directory: epath.Path, step: int):
    self._written = _OnDisk(directory)
    self._writer = event_file_writer.EventsWriter(
      str(self._written.path / 'events'),
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

  def flush(self) -> None:
    self._written.copy()

  def close(self) -> None:
    self._writer.close()
    self._written.move()


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
        # Else ./wandb, which holds nothing that wandb's server has not.
        dir=None if remote else workdir,
      )
    except wandb.errors.Error as e:
      raise errors.UserError(f'config.tracking.wandb_project: {e}') from None

  def write(self, step: int, values: dict[str, Any]) -> None:
    # Not wandb's own step: it takes none twice, and a validation has that of
    # the update before it.
    self._run.log(
      {'step': step, **{_tag(name): value for name, value in values.items()}}
    )

  def flush(self) -> None:
    pass  # Its own process sends what comes in.

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

  def __init__(self, directory: epath.PathLike, steps: tuple[int, int]):
    self._directory = epath.Path(directory)
    self._first, self._last = steps
    self._running: _OnDisk | None = None

  def before(self, step: int) -> None:
    """To be called before a step is begun."""
    if self._first and step == self._first:
      self._running = _OnDisk(self._directory)
      jax.profiler.start_trace(str(self._running.path))

  def after(self, step: int, state: Any) -> None:
    """To be called with what the step gave."""
    if self._running and step >= self._last:
      jax.block_until_ready(state)
      self.close()
      writers.say(f'trace of steps up to {step}: {self._directory}')

  def close(self) -> None:
    """Ends a trace that is still on, e.g. when the run is stopped."""
    if self._running:
      written, self._running = self._running, None
      jax.profiler.stop_trace()
      written.move()
