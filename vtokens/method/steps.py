"""The training step and the loss: pure functions of arrays."""

from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.data.batch import Batch
from vtokens.method import losses
from vtokens.method.trainable import Trainable, Values
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder

# Sum of the loss and others by name, and the gradient of the first.
_Sums = tuple[tuple[Float[Array, ''], dict[str, Float[Array, '']]], Values]


@struct.dataclass
class TrainState:
  """All that training changes.

  Attributes:
    trained: the trainable's values; for the table of virtual tokens an array
      of shape [P, D], float32.
    opt_state: optax state of these.
    step: number of updates done; int32 scalar.
  """

  trained: Values
  opt_state: optax.OptState
  step: Int[Array, '']


def encode_prefix(
  decoder: Decoder,
  prefix: Int[Array, 'R P'],
  positions: Int[Array, 'R P'],
  segments: Int[Array, 'R P'] | None = None,
  num_segments: int | None = None,
) -> Cache:
  """Encodes prefixes; no gradient flows back through them.

  A prefix precedes the virtual tokens and the model is causal, so its cache
  does not depend on what is trained.
  """
  cache = decoder.encode(
    decoder.embed(prefix),
    positions,
    ids=prefix,
    segments=segments,
    num_segments=num_segments,
  )
  return jax.lax.stop_gradient(cache)


def target_logits(
  trained: Values,
  decoder: Decoder,
  cache: Cache,
  batch: Batch,
  *,
  trainable: Trainable = TABLE,
  remat: bool = False,
) -> Float[Array, 'R A V']:
  """Computes logits where the suffixes predict their targets.

  Args:
    trained: values of the trainable.
    decoder: the frozen base.
    cache: of the prefixes; see `encode_prefix`.
    batch: the examples.
    trainable: what is trained.
    remat: see `Decoder.__call__`.

  Returns:
    Array of shape [R, A, V], float32.
  """
  hidden, _ = decoder(
    trainable.embed(decoder, trained, batch.suffix),
    batch.suffix_positions,
    [cache],
    ids=batch.suffix,
    trained_caches=trainable.caches(decoder, trained, batch.spans),
    segments=batch.suffix_segments,
    parents=batch.suffix_parents,
    num_segments=batch.num_suffixes,
    remat=remat,
  )
  # Compute logits at answer positions only: for all 80 tokens of a suffix and a
  # vocabulary of 49k, the head would cost as much as ten layers.
  where = jnp.maximum(batch.target_index, 0)
  picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
  return decoder.logits(picked)


def suffix_nll(
  trained: Values,
  decoder: Decoder,
  cache: Cache,
  batch: Batch,
  *,
  trainable: Trainable = TABLE,
  remat: bool = False,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Sums the negative log-likelihood of the answers over their tokens.

  Args: see `target_logits`.

  Returns:
    The sum in nats and the number of target tokens, float32 scalars.
  """
  logits = target_logits(
    trained, decoder, cache, batch, trainable=trainable, remat=remat
  )
  return losses.masked_nll(logits, batch.targets, batch.target_index >= 0)


def _teacher_logits(
  values: Values,
  decoder: Decoder,
  cache: Cache,
  batch: Batch,
  trainable: Trainable,
) -> Float[Array, 'R T V']:
  """Computes a teacher's logits; `cache` has the student's prefixes."""
  if batch.prefix.shape[1]:
    cache = encode_prefix(
      decoder,
      batch.prefix,
      batch.prefix_positions,
      batch.prefix_segments,
      batch.num_prefixes,
    )
  return target_logits(values, decoder, cache, batch, trainable=trainable)


def make_train_step(
  graph: nnx.GraphDef[Decoder],
  optimizer: optax.GradientTransformation,
  *,
  trainable: Trainable = TABLE,
  accumulation_steps: int = 1,
  remat: bool = False,
  distill_weight: float = 0.0,
  teacher: Trainable | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
  """Builds `(state, base, batch) -> (state, metrics)`, to be jitted.

  With a `teacher` the step has its values as a fourth argument.

  Args:
    graph: structure of the decoder; `base` has its weights.
    optimizer: of the trained values.
    trainable: what is trained.
    accumulation_steps: number of microbatches that a batch is split into; the
      update is that of the whole batch.
    remat: see `Decoder.__call__`; applies to suffixes.
    distill_weight: see `config.Distill.weight`; with 0 there is no teacher.
    teacher: what the teacher of `Batch.teacher` was trained as; None if it has
      the values that are being trained.

  Returns:
    The step. Its metrics are scalars: `loss` (mean nats per target token),
    `grad_norm` (before clipping), `tokens` (targets). With a teacher also `nll`
    (mean over targets), `taught` (targets with a teacher) and `kl` (mean over
    these).
  """

  def loss_fn(
    trained: Values,
    base: nnx.State[str, Any],
    batch: Batch,
    taught_by: Values | None,
  ) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
    decoder = nnx.merge(graph, jax.lax.stop_gradient(base))
    cache = encode_prefix(
      decoder,
      batch.prefix,
      batch.prefix_positions,
      batch.prefix_segments,
      batch.num_prefixes,
    )
    logits = target_logits(
      trained, decoder, cache, batch, trainable=trainable, remat=remat
    )
    mask = batch.target_index >= 0
    if not distill_weight:
      nll, tokens = losses.masked_nll(logits, batch.targets, mask)
      return nll, {'tokens': tokens}
    assert batch.teacher_index is not None
    teacher_logits = logits
    if batch.teacher is not None:
      teacher_logits = _teacher_logits(
        jax.lax.stop_gradient(trained) if teacher is None else taught_by,
        decoder,
        cache,
        batch.teacher,
        trainable if teacher is None else teacher,
      )
    return losses.distilled(
      logits,
      batch.targets,
      mask,
      teacher_logits,
      batch.teacher_index,
      distill_weight,
    )

  def step(
    state: TrainState,
    base: nnx.State[str, Any],
    batch: Batch,
    taught_by: Values | None = None,
  ) -> tuple[TrainState, dict[str, Any]]:
    # The products of the backward pass are traced here.
    with nnx.merge(graph, base).exact_products():
      grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
      if accumulation_steps == 1:
        (loss, sums), grad = grad_fn(state.trained, base, batch, taught_by)
      else:
        # Take every n-th row, so that each microbatch has rows on every device.
        micro = jax.tree.map(
          # Not -1: the arrays of prefixes that a teacher shares are empty.
          lambda x: x.reshape(
            x.shape[0] // accumulation_steps, accumulation_steps, *x.shape[1:]
          ).swapaxes(0, 1),
          batch,
        )

        def add(total: _Sums, part: Batch) -> tuple[_Sums, None]:
          return jax.tree.map(
            jnp.add, total, grad_fn(state.trained, base, part, taught_by)
          ), None

        zero = jnp.zeros((), jnp.float32)
        names = (
          ['tokens', 'nll', 'taught', 'kl'] if distill_weight else ['tokens']
        )
        zeros = (zero, dict.fromkeys(names, zero))
        ((loss, sums), grad), _ = jax.lax.scan(
          add, (zeros, jax.tree.map(jnp.zeros_like, state.trained)), micro
        )
    tokens_or_one = jnp.maximum(sums['tokens'], 1.0)
    grad = jax.tree.map(lambda part: part / tokens_or_one, grad)
    updates, opt_state = optimizer.update(grad, state.opt_state, state.trained)
    new = TrainState(
      trained=optax.apply_updates(state.trained, updates),
      opt_state=opt_state,
      step=state.step + 1,
    )
    metrics = {
      'loss': loss / tokens_or_one,
      'grad_norm': optax.tree.norm(grad),
      'tokens': sums['tokens'],
    }
    if distill_weight:
      metrics |= {
        'nll': sums['nll'] / tokens_or_one,
        'taught': sums['taught'],
        'kl': sums['kl'] / jnp.maximum(sums['taught'], 1.0),
      }
    return new, metrics

  return step


def jit_train_step(
  graph: nnx.GraphDef[Decoder],
  optimizer: optax.GradientTransformation,
  like: TrainState,
  settings: config.Train,
  trainable: Trainable = TABLE,
  teacher: Trainable | None = None,
) -> Any:
  """Jits `make_train_step`; the new state is sharded like the old one.

  Args:
    graph: see `make_train_step`.
    optimizer: of the trained values.
    like: a state, or its shapes, with shardings; `step` is on every device.
    settings: accumulation_steps, remat and distill.
    trainable: what is trained.
    teacher: see `make_train_step`.
  """
  return jax.jit(
    make_train_step(
      graph,
      optimizer,
      trainable=trainable,
      accumulation_steps=settings.accumulation_steps,
      remat=settings.remat,
      distill_weight=settings.distill.weight,
      teacher=teacher,
    ),
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, like),
      like.step.sharding,
    ),
  )
