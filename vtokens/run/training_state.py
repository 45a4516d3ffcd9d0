"""The state of a training run: how it begins, and its table on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from vtokens import config
from vtokens.devices import distributed
from vtokens.method import virtual_tokens
from vtokens.method.steps import TrainState
from vtokens.models.frozen_base import FrozenBase
from vtokens.planning import abstract_step


def initial_state(
  cfg: config.Config,
  mesh: jax.sharding.Mesh,
  base: FrozenBase,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """Makes the state before the first step; every leaf is a global array.

  Args:
    cfg: of the run.
    mesh: the devices.
    base: the frozen model, whose embeddings the table may start from.
    optimizer: of the table.

  Raises:
    errors.UserError: a saved table to start from has another shape.
  """
  rows = virtual_tokens.initial_table(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, cfg.seed
  )
  shapes = abstract_step.state(optimizer, rows.shape, mesh)
  where = jax.tree.map(lambda x: x.sharding, shapes)
  table = jax.device_put(rows, where.table)
  return TrainState(
    table=table,
    opt_state=jax.jit(optimizer.init, out_shardings=where.opt_state)(table),
    step=jax.device_put(jnp.zeros((), jnp.int32), where.step),
  )


def fetch_table(state: TrainState) -> Float[np.ndarray, 'P D']:
  """Copies the table to the host; all processes must call it in step.

  Returns:
    Array of shape [P, D], float32.
  """
  return distributed.fetch(state.table)
