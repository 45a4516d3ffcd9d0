"""The losses on logits. All are sums, so that parts of a batch add up."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_nll(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  mask: Bool[Array, '*B'],
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Sums the negative log-likelihood of targets where the mask is true.

  Args:
    logits: unnormalised log-probabilities, float32.
    targets: ids; masked ones may be any id below V.
    mask: which targets count.

  Returns:
    The sum in nats and the number of counted targets, float32 scalars.
  """
  nll = jnp.where(mask, _nll(logits, targets), 0.0)
  return nll.sum(), mask.sum(dtype=jnp.float32)


def distilled(
  logits: Float[Array, 'R A V'],
  targets: Int[Array, 'R A'],
  mask: Bool[Array, 'R A'],
  teacher_logits: Float[Array, 'R T V'],
  teacher_index: Int[Array, 'R A'],
  weight: float,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Sums `(1 - weight) * NLL + weight * KL(teacher || student)` over targets.

  KL is the Kullback-Leibler divergence over the whole vocabulary (Hinton et
  al., 2015, arXiv 1503.02531). No gradient flows to the teacher. A target
  without a teacher has the NLL alone, with weight 1.

  Args:
    logits: of the student, float32.
    targets: ids; masked ones may be any id below V.
    mask: which targets count.
    teacher_logits: of the teacher at its own T targets, float32.
    teacher_index: number of the teacher's target for each target of the
      student in the same row; -1 for none.
    weight: of the divergence, from 0 to 1.

  Returns:
    The sum in nats, and float32 scalars: `tokens` (counted targets), `nll` (sum
    over these), `taught` (counted targets with a teacher), `kl` (sum over
    these).
  """
  taught = mask & (teacher_index >= 0)
  at = jnp.maximum(teacher_index, 0)[..., None]
  teacher = jnp.take_along_axis(
    jax.lax.stop_gradient(teacher_logits), at, axis=1
  )
  expected = jax.nn.log_softmax(teacher)
  given = jax.nn.log_softmax(logits)
  kl = (jnp.exp(expected) * (expected - given)).sum(axis=-1)
  kl = jnp.where(taught, kl, 0.0)
  nll = jnp.where(mask, _nll(logits, targets), 0.0)
  of_nll = jnp.where(taught, 1 - weight, 1.0)
  return (of_nll * nll + weight * kl).sum(), {
    'tokens': mask.sum(dtype=jnp.float32),
    'nll': nll.sum(),
    'taught': taught.sum(dtype=jnp.float32),
    'kl': kl.sum(),
  }


def _nll(
  logits: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> Float[Array, '*B']:
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_normaliser - picked
