"""How tokens choose experts."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtokens.models.decoder_config import Settings


@dataclasses.dataclass(frozen=True, repr=False)
class Routing(Settings):
  """The rule by which a router's logits become experts and weights.

  All is computed in float32.

  Attributes:
    experts: number of experts (E).
    active: experts that each token uses (A).
    scores: what the experts are compared by: softmax or sigmoid of all logits,
      chosen for the logits themselves, with a softmax over the chosen ones, or
      sparsemixer for one expert after the other; see `_one_by_one`.
    normalised: whether the weights of the chosen experts are divided by their
      sum.
    floor: added to that sum.
    scale: multiplies the weights.
    bias: whether the router has a bias.
    correction: whether a bias is added to the scores for the choice alone
      (arXiv 2408.15664).
    groups: groups of neighbouring experts. The groups with the largest sums of
      `group_best` scores take part in the choice.
    active_groups: groups that take part.
    tolerance: sparsemixer; see `_one_by_one`.
    group_best: scores of a group that are summed, its largest.
    factors: whether each expert has a factor, which multiplies its weight.
  """

  experts: int
  active: int
  scores: str = 'softmax'
  normalised: bool = False
  floor: float = 0.0
  scale: float = 1.0
  bias: bool = False
  correction: bool = False
  groups: int = 1
  active_groups: int = 1
  tolerance: float = 0.0
  group_best: int = 2
  factors: bool = False

  def __post_init__(self) -> None:
    # ValueError: the caller that reads the file adds its name.
    if self.active > self.experts:
      raise ValueError(
        f'{self.active} experts for each token are more than all '
        f'{self.experts} experts'
      )
    if self.experts % self.groups or self.active_groups > self.groups:
      raise ValueError(
        f'{self.active_groups} of {self.groups} groups of {self.experts} '
        'experts: expected groups of equal size, and at most all of them'
      )
    size = self.experts // self.groups
    if self.groups > 1 and size < self.group_best:
      raise ValueError(
        f'{self.groups} groups of {self.experts} experts: expected '
        f'{self.group_best} experts or more in a group'
      )
    if self.active > self.active_groups * size:
      raise ValueError(
        f'{self.active} experts for each token of {self.active_groups} groups '
        f'of {size}: expected at most {self.active_groups * size}'
      )


def choose(
  routing: Routing,
  logits: Float[Array, 'N E'],
  correction: Float[Array, 'E'] | None = None,
) -> tuple[Int[Array, 'N A'], Float[Array, 'N A']]:
  """The experts of each token, and their weights.

  Args:
    routing: the rule.
    logits: of the router, with its bias, float32.
    correction: see `Routing.correction`, float32.
  """
  if routing.scores == 'chosen':
    best, experts = jax.lax.top_k(logits, routing.active)
    return experts, jax.nn.softmax(best, axis=-1) * routing.scale
  if routing.scores == 'sparsemixer':
    return _one_by_one(routing, logits)
  scores = (
    jax.nn.sigmoid(logits)
    if routing.scores == 'sigmoid'
    else jax.nn.softmax(logits, axis=-1)
  )
  compared = scores if correction is None else scores + correction
  if routing.groups > 1:
    compared = _in_best_groups(routing, compared)
  # The choice has no gradient, the weights have one.
  _, experts = jax.lax.top_k(jax.lax.stop_gradient(compared), routing.active)
  weights = jnp.take_along_axis(scores, experts, axis=-1)
  if routing.normalised:
    weights = weights / (weights.sum(axis=-1, keepdims=True) + routing.floor)
  return experts, weights * routing.scale


def _in_best_groups(
  routing: Routing, scores: Float[Array, 'N E']
) -> Float[Array, 'N E']:
  """Scores with -inf for experts outside of the best groups."""
  groups = scores.reshape(len(scores), routing.groups, -1)
  best = jax.lax.top_k(groups, routing.group_best)[0].sum(axis=-1)
  _, chosen = jax.lax.top_k(best, routing.active_groups)
  inside = (chosen[..., None] == jnp.arange(routing.groups)).any(axis=1)
  return jnp.where(inside[..., None], groups, -jnp.inf).reshape(scores.shape)


def _one_by_one(
  routing: Routing, logits: Float[Array, 'N E']
) -> tuple[Int[Array, 'N A'], Float[Array, 'N A']]:
  """The choice of SparseMixer (arXiv 2409.12136), as it is after training.

  The best expert of those that are left is chosen. Its weight is its softmax
  among those that are left and whose logit is near to the best: their
  difference, divided by the larger of the best logit and the other logit's
  absolute value, is at most the tolerance. Weights do not sum to 1.
  """
  experts, weights = [], []
  left = logits
  for _ in range(routing.active):
    expert = left.argmax(axis=-1, keepdims=True)
    best = left.max(axis=-1, keepdims=True)
    distance = (best - logits) / jnp.maximum(jnp.abs(logits), best)
    far = jax.lax.stop_gradient(distance) > routing.tolerance
    shares = jax.nn.softmax(jnp.where(far, -jnp.inf, left), axis=-1)
    experts.append(expert)
    weights.append(jnp.take_along_axis(shares, expert, axis=-1))
    left = jnp.where(jnp.arange(routing.experts) == expert, -jnp.inf, left)
  return jnp.concatenate(experts, axis=-1), jnp.concatenate(weights, axis=-1)
