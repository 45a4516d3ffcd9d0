"""Saving and restoring the state of training; the base is never saved."""

import contextlib
import gc
import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from etils import epath

from vtokens.devices import distributed
from vtokens.host import errors, json_files, paths, writers
from vtokens.method.steps import TrainState

# SHA-256 of each file of a checkpoint, by its path there. Written last.
_MANIFEST = 'manifest.json'


class Checkpoints:
  """The latest checkpoints of a run and its best one.

  A checkpoint is a few MB: table, optimiser state, step, and JSON metadata.
  Its manifest is written last and makes it whole. At least two checkpoints are
  kept, so that a kill leaves a whole one. Opening the directory removes
  checkpoints without a manifest. A checkpoint that has changed since it was
  written is moved to `unreadable/`, and the one before it is used.

  Args:
    directory: the work directory of the run.
    keep: number of latest checkpoints to keep.
    identity: JSON values that identify the run, added to the metadata of each
      checkpoint.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    keep: int,
    identity: dict[str, Any] | None = None,
  ):
    self._identity = identity or {}
    directory = epath.Path(directory)
    if not paths.on_object_store(directory):
      directory = epath.Path(directory.resolve())
    self._latest = _Series(directory / 'checkpoints', keep)
    self._best = _Series(directory / 'best', 2)

  def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Saves a checkpoint at the state's step and waits until it is written.

    Raises:
      errors.UserError: it cannot be written; earlier ones are unharmed.
    """
    self._latest.save(state, {**self._identity, **metadata})

  def save_best(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Saves a new best checkpoint; see `save`."""
    self._best.save(state, {**self._identity, **metadata})

  def restore(
    self, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the latest whole checkpoint.

    Args:
      like: a state with the shapes, dtypes and shardings wanted.

    Returns:
      The state and its metadata, or None if there is no checkpoint.
    """
    return self._latest.restore(like)

  def restore_best(
    self, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the best checkpoint; see `restore`."""
    return self._best.restore(like)

  def close(self) -> None:
    """Waits for unfinished writes."""
    self._latest.close()
    self._best.close()


def _to_stored(state: TrainState) -> dict[str, Any]:
  """Names the parts of a state as files do; `table` is their earliest name."""
  return {
    'table': state.trained,
    'opt_state': state.opt_state,
    'step': state.step,
  }


def _from_stored(stored: Mapping[str, Any]) -> TrainState:
  return TrainState(
    trained=stored['table'],
    opt_state=stored['opt_state'],
    step=stored['step'],
  )


class _Series:
  """The checkpoints in one directory, named by step."""

  def __init__(self, directory: epath.Path, keep: int):
    self._directory = directory
    self._keep = keep
    for message in distributed.from_first(self._remove_unfinished):
      writers.say(message)
    self._manager = self._open()

  def _remove_unfinished(self) -> list[str]:
    """Removes checkpoints that a kill cut off; returns a message for each."""
    if not self._directory.exists():
      return []
    messages = []
    for path in sorted(self._directory.iterdir()):
      if path.name.isdecimal() and not (path / _MANIFEST).exists():
        path.rmtree()
        messages.append(f'{path}: cut off by a kill; removed')
    return messages

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        # Orbax deletes old ones before the newest has its manifest.
        max_to_keep=max(2, self._keep),
        cleanup_tmp_directories=True,
        # The state is small: an asynchronous copy would not save time.
        enable_async_checkpointing=False,
      ),
    )

  def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
    step = int(state.step)
    if step in self._manager.all_steps():
      if distributed.from_first(lambda: self._keep_if_whole(step)):
        return
      self._reopen()
    _hide_late_reports()
    with _without_logs():
      problem = self._write(step, state, metadata)
      if problem:
        self._fail(step, problem)

  def _write(
    self, step: int, state: TrainState, metadata: dict[str, Any]
  ) -> str:
    """Writes a checkpoint; returns why it cannot be written, or ''."""
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_to_stored(state)),
          metadata=ocp.args.JsonSave(metadata),
        ),
        force=True,
      )
      self._manager.wait_until_finished()
      if distributed.is_first():
        _write_manifest(self._directory / str(step))
    except Exception as e:
      of_a_disk = isinstance(e, (OSError, errors.NotWrittenError))
      if not (of_a_disk or _is_of_tensorstore(e) or paths.is_of_a_store(e)):
        raise
      full = 'No space left' in str(e)
      return 'no space left on the device' if full else str(e) or repr(e)
    return ''

  def _fail(self, step: int, problem: str) -> NoReturn:
    if distributed.is_first():
      self._remove_failed(step)
    # Orbax's failed tasks log their errors when Python frees them.
    gc.collect()
    before = max(
      (s for s in self._manager.all_steps() if s != step), default=None
    )
    kept = '' if before is None else f' after step {before}'
    raise errors.UserError(
      f'{self._directory}: the checkpoint of step {step} cannot be written: '
      f'{problem}. Once it can, the same command continues the run{kept}'
    )

  def _remove_failed(self, step: int) -> None:
    """Frees the space of a checkpoint that could not be written.

    Orbax removes the rest when the series is opened again.
    """
    # Threads of TensorStore go on for a while and make directories anew.
    for _ in range(10):
      with contextlib.suppress(Exception):
        for path in self._directory.iterdir():
          # STEP, or STEP.orbax-checkpoint-tmp.
          is_step = path.name.partition('.')[0] == str(step)
          if is_step and not (path / _MANIFEST).exists():
            path.rmtree(missing_ok=True)
      time.sleep(0.05)

  def restore(
    self, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    # The first process decides for all which checkpoint is whole.
    step, problems = distributed.from_first(self._find_whole)
    for problem in problems:
      writers.say(problem)
    if problems:
      self._reopen()
    if step is None:
      return None
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      _to_stored(like),
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        metadata=ocp.args.JsonRestore(),
      ),
    )
    return _from_stored(restored.state), restored.metadata

  def _reopen(self) -> None:
    """Makes Orbax list the directory again: it remembers the steps."""
    self._manager.close()
    self._manager = self._open()

  def _keep_if_whole(self, step: int) -> bool:
    """Whether a checkpoint is whole; a damaged one is removed."""
    path = self._directory / str(step)
    if _problem(path) is None:
      return True
    # Orbax also lists a step whose directory is gone after a failed save.
    path.rmtree(missing_ok=True)
    return False

  def _find_whole(self) -> tuple[int | None, list[str]]:
    """Finds the latest whole checkpoint; moves damaged later ones away."""
    problems: list[str] = []
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      path = self._directory / str(step)
      problem = _problem(path)
      if problem is None:
        return step, problems
      aside = self._directory.parent / 'unreadable'
      target = aside / f'{self._directory.name}-{step}'
      if target.exists():
        target.rmtree()
      _move(path, target)
      problems.append(
        f'{path}: has changed since it was written ({problem}); moved to '
        f'{target}, and '
        + (
          'there is no earlier checkpoint'
          if step == steps[-1]
          else 'the checkpoint before it is used'
        )
      )
    return None, problems

  def close(self) -> None:
    self._manager.close()


def _is_of_tensorstore(e: Exception) -> bool:
  """Whether TensorStore, which writes the files, raised it: with a status.

  As `ValueError('RESOURCE_EXHAUSTED: Error opening ...')`.
  """
  return isinstance(e, ValueError) and bool(re.match(r'[A-Z_]+: ', str(e)))


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
  """Hides logs with tracebacks, since one error says what they say.

  Orbax logs what it raises, and asyncio the failed tasks that nobody waits for.
  """

  def drop(record: logging.LogRecord) -> bool:
    del record
    return False

  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  try:
    for logger in loggers:
      logger.addFilter(drop)
    yield
  finally:
    for logger in loggers:
      logger.removeFilter(drop)


class _LateReports:
  """A hook for exceptions that nobody can catch, without TensorStore's.

  Its threads go on after a failed write, for an unknown time. They report
  further failures to an event loop that is closed by then.

  Args:
    hook: gets all other exceptions.
  """

  def __init__(self, hook: Callable[[Any], object]):
    self._hook = hook

  def __call__(self, lost: Any) -> None:
    closed = str(lost.exc_value) == 'Event loop is closed'
    # Python code, such as a `__del__`, would be named as the object.
    if not (closed and lost.object is None):
      self._hook(lost)


def _hide_late_reports() -> None:
  if not isinstance(sys.unraisablehook, _LateReports):
    sys.unraisablehook = _LateReports(sys.unraisablehook)


def _files(directory: epath.Path) -> dict[str, str]:
  """Hashes every file below a directory: its path there -> SHA-256."""
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in paths.files_below(directory)
    if path != directory / _MANIFEST
  }


def _move(directory: epath.Path, target: epath.Path) -> None:
  """Moves a directory to a place that does not exist."""
  if paths.on_object_store(directory):
    # There epath renames only into a directory that has objects.
    writers.copy_files(directory, target)
    directory.rmtree()
  else:
    target.parent.mkdir(parents=True, exist_ok=True)
    directory.rename(target)


def _write_manifest(directory: epath.Path) -> None:
  writers.write_json(directory / _MANIFEST, _files(directory))


def _problem(directory: epath.Path) -> str | None:
  """Says what is wrong with a checkpoint; None if it is whole."""
  manifest = directory / _MANIFEST
  if not manifest.exists():
    return 'it was not finished'
  try:
    expected = json_files.read(manifest, {str: str})
  except errors.UserError as e:
    return str(e)
  found = _files(directory)
  # Operating systems leave files whose names begin with a dot.
  for name in found:
    if name not in expected and not name.split('/')[-1].startswith('.'):
      return f'{_MANIFEST} does not list {name}'
  for name, digest in expected.items():
    if name not in found:
      return f'{name} is missing'
    if found[name] != digest:
      return f'{name} has changed'
  return None
