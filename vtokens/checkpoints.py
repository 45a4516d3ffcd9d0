"""Saving and restoring what training changes: never the base."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from vtokens.steps import TrainState


class Checkpoints:
  """The latest checkpoints of a run and its best one.

  A checkpoint is a few MB: table, optimiser state, step, and JSON metadata.
  Orbax writes it under a temporary name and renames it, so that a kill leaves
  the one before.

  Args:
    directory: of the run.
    keep: latest checkpoints kept.
    identity: JSON values that say what the run is; written into the metadata
      of each checkpoint.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    keep: int,
    identity: dict[str, Any] | None = None,
  ):
    self._identity = identity or {}
    directory = pathlib.Path(directory).absolute()
    self._latest = _manager(directory / 'checkpoints', keep)
    self._best = _manager(directory / 'best', 1)

  def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Saves a checkpoint at the state's step and waits until it is written."""
    _save(self._latest, state, {**self._identity, **metadata})

  def save_best(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Replaces the best checkpoint."""
    _save(self._best, state, {**self._identity, **metadata})

  def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The latest checkpoint and its metadata, or None.

    Args:
      like: a state with the shapes, dtypes and shardings wanted.
    """
    return _restore(self._latest, like)

  def restore_best(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The best checkpoint and its metadata, or None."""
    return _restore(self._best, like)

  def close(self) -> None:
    """Waits for what is being written."""
    self._latest.close()
    self._best.close()


def _manager(directory: pathlib.Path, keep: int) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=True,
      # The whole state is smaller than what an asynchronous copy would save.
      enable_async_checkpointing=False,
    ),
  )


def _save(
  manager: ocp.CheckpointManager, state: TrainState, metadata: dict[str, Any]
) -> None:
  step = int(state.step)
  if step in manager.all_steps():
    return
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      metadata=ocp.args.JsonSave(metadata),
    ),
    force=True,
  )
  manager.wait_until_finished()


def _restore(
  manager: ocp.CheckpointManager, like: TrainState
) -> tuple[TrainState, dict] | None:
  step = manager.latest_step()
  if step is None:
    return None
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
  )
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract),
      metadata=ocp.args.JsonRestore(),
    ),
  )
  return restored.state, restored.metadata
