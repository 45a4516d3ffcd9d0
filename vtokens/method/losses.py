"""The loss on logits."""

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
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  nll = jnp.where(mask, log_normaliser - picked, 0.0)
  return nll.sum(), mask.sum(dtype=jnp.float32)
