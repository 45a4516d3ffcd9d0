"""Arithmetic that the method needs, without padding and recomputation.

Let the matrices of a model have M weights, without the head's. The forward pass
of a token takes 2 M floating point operations: a multiplication and an addition
for each weight (Kaplan et al., 2020, arXiv 2001.08361, section 2.1). Passages
need only the forward pass, up to the last layer that has a cache. Later tokens
also need the gradient of their activations, another 2 M, but not the gradient
of the weights. That makes 4 M, while training of all weights takes 6 M.
Recomputing the suffix (`remat`) does not count, because the method does not
need it.

Products with weights, attention's scores and values, states of recurrent layers
and the head count. Norms, activations, rotations, short convolutions and the
mixing of several residual streams do not.
"""

import functools
from collections.abc import Sequence

import numpy as np

from vtokens.models.decoder_config import (
  DecoderConfig,
  LayerKind,
  attends,
  is_recurrent,
)
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.planning import matrices


@functools.cache
def matrix_weights(config: DecoderConfig, *, active: bool = True) -> int:
  """Number of weights that tokens are multiplied with, without the head's.

  Args:
    config: the architecture.
    active: count only the weights that one token uses: a share of the experts.
  """
  found = [m for layer in matrices.of_layers(config) for m in layer.matrices]
  found += matrices.of_ends(config)
  return round(sum(m.active_weights if active else m.weights for m in found))


@functools.cache
def passage_weights(config: DecoderConfig) -> int:
  """Number of weights that a token of passages is multiplied with.

  These are all but those after the last layer that has a cache.
  """
  layers = matrices.of_layers(config)[matrices.cached_layers(config) :]
  later = [m for layer in layers for m in layer.matrices]
  later += [m for m in matrices.of_ends(config) if m.after_layers]
  return matrix_weights(config) - round(sum(m.active_weights for m in later))


def train_flops(
  config: DecoderConfig,
  lengths: Sequence[Sequence[int]],
  teacher: Sequence[Sequence[int]] = (),
) -> float:
  """FLOPs of one training step: forward, and backward to the table.

  Causally masked scores do not count. Windows count as full attention.
  Attention over the passages needs the gradient of the queries only: keys and
  values of the passages do not depend on the table. Recurrent layers count as
  if they ran token by token.

  Args:
    config: architecture of the base.
    lengths: four numbers of tokens for each suffix: the prefix that is encoded
      for it (0 if another suffix shares that), the prefix that it continues,
      the suffix, and its targets.
    teacher: the same of suffixes that run forward only.
  """
  forward, backward = _forward_backward(config, lengths)
  total = float((forward + backward).sum())
  if teacher:
    total += float(_forward_backward(config, teacher)[0].sum())
  return total


def _forward_backward(
  config: DecoderConfig, lengths: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
  run, prefix, suffix, targets = np.asarray(lengths, np.float64).T
  within = suffix * (suffix + 1) / 2
  products = 2.0 * matrix_weights(config)
  products_first = 2.0 * passage_weights(config)
  kinds = config.layer_kinds
  first, later, extra = _pairs(config, prefix, suffix)
  state = _state(kinds)
  state_first = _state(kinds[: matrices.cached_layers(config)])
  head = 2.0 * config.embed_dim * config.vocab_size
  forward = (
    (products_first + state_first) * run
    + (products + state) * suffix
    + first * (run * (run + 1) / 2)
    + later * (suffix * prefix + within)
    + extra
    + head * targets
  )
  backward = (
    (products + 2 * state) * suffix
    + later * (suffix * prefix + 2 * within)
    + head * targets
  )
  return forward, backward


def _state(kinds: Sequence[LayerKind]) -> float:
  """FLOPs of a token in the states of some layers."""
  mixers = [kind.mixer for kind in kinds]
  return sum(mixer.token_flops for mixer in mixers if is_recurrent(mixer))


def _pairs(
  config: DecoderConfig, prefix: np.ndarray, suffix: np.ndarray
) -> tuple[float, float | np.ndarray, float | np.ndarray]:
  """FLOPs of a query and a key: a score, and the weighted value.

  Args:
    config: architecture of the base.
    prefix: number of tokens of each prefix.
    suffix: number of tokens of each suffix.

  Returns:
    FLOPs of a pair in a prefix, FLOPs of a pair with a query of a suffix, and
    further FLOPs for the prefix of each suffix.
  """
  widths = [
    config.head_width(kind) * attends(kind.mixer) for kind in config.layer_kinds
  ]
  heads = 2.0 * config.num_heads
  latent = config.attention
  if not isinstance(latent, LatentAttention):
    cached = widths[: matrices.cached_layers(config)]
    return heads * 2 * sum(cached), heads * 2 * sum(widths), 0.0
  heads *= sum(width > 0 for width in widths)
  made = latent.plain + latent.value
  expanded = heads * (made + latent.rotated)
  absorbed = heads * (2 * latent.rank + latent.rotated)
  is_absorbed = latent.is_absorbed(suffix, prefix)
  return (
    expanded,
    np.where(is_absorbed, absorbed, expanded),
    # The prefix's latents are expanded again. They have no gradient.
    np.where(is_absorbed, 0.0, heads * latent.rank * made * prefix),
  )
