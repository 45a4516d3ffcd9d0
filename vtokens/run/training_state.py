"""The state of a training run: how it begins, and its values on the host."""

import jax
import jax.numpy as jnp
import optax

from vtokens import config
from vtokens.data.mixture import TrainingMixture
from vtokens.devices import distributed
from vtokens.method import kinds
from vtokens.method.steps import TrainState
from vtokens.method.trainable import Trainable, Values
from vtokens.models.frozen_base import FrozenBase
from vtokens.planning import abstract_step


def initial_state(
  cfg: config.Config,
  mesh: jax.sharding.Mesh,
  base: FrozenBase,
  optimizer: optax.GradientTransformation,
  trainable: Trainable | None = None,
  mixture: TrainingMixture | None = None,
) -> TrainState:
  """Makes the state before the first step; every leaf is a global array.

  Args:
    cfg: of the run.
    mesh: the devices.
    base: the frozen model, from whose embeddings a table may start.
    optimizer: of the trained values.
    trainable: what is trained; None for the kind that the config names.
    mixture: training data, from whose texts the values may start.

  Raises:
    errors.UserError: saved values to start from have another shape.
  """
  if trainable is None:
    trainable = kinds.trainable_of(cfg.virtual_tokens)
  values = trainable.init(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, cfg.seed, mixture
  )
  shapes = abstract_step.state(
    optimizer,
    trainable.shapes(cfg.virtual_tokens, base.config),
    mesh,
    trainable,
  )
  where = jax.tree.map(lambda x: x.sharding, shapes)
  trained = jax.device_put(values, where.trained)
  return TrainState(
    trained=trained,
    opt_state=jax.jit(optimizer.init, out_shardings=where.opt_state)(trained),
    step=jax.device_put(jnp.zeros((), jnp.int32), where.step),
  )


def fetch_trained(state: TrainState) -> Values:
  """Copies the trained values to the host; all processes must call it in step.

  Returns:
    Numpy arrays, float32; for the table one of shape [P, D].
  """
  return jax.tree.map(distributed.fetch, state.trained)
