"""Arithmetic that the method needs, without padding and recomputation.

Let the layers' matrices have M weights. The forward pass of a token takes 2 M
floating point operations: a multiplication and an addition for each weight
(Kaplan et al., 2020, arXiv 2001.08361, section 2.1). Passages need only the
forward pass. Later tokens also need the gradient of their activations, another
2 M, but not the gradient of the weights. That makes 4 M, while training of all
weights takes 6 M. Recomputing the suffix (`remat`) does not count, because the
method does not need it.
"""

import functools
import math
from collections.abc import Sequence

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np

from vtokens.models import quantize
from vtokens.models.decoder import abstract_decoder
from vtokens.models.decoder_config import DecoderConfig, attends, is_recurrent
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.models.mlps.experts import Experts


@functools.cache
def matrix_weights(config: DecoderConfig, *, active: bool = True) -> int:
  """Number of weights of the layers' matrices.

  Args:
    config: the architecture.
    active: count only the weights that one token uses: a share of the experts.
  """
  params = nnx.state(abstract_decoder(config, jnp.dtype(jnp.float32)))
  total: float = sum(
    math.prod(param.shape) * (param.get_metadata('active') if active else 1)
    for path, param in nnx.to_flat_state(params)
    if path[0] == 'layers' and quantize.matrix_inputs(param)
  )
  return round(total)


def mlps(config: DecoderConfig) -> tuple[float, float]:
  """MLPs that a token passes in a layer, and the sum of their widths.

  Both are means over the layers. An expert is an MLP, and so is the MLP that
  all tokens use beside experts.
  """
  counts, widths = [], []
  for kind in config.layer_kinds:
    if isinstance(kind.mlp, Experts):
      active, shared = kind.mlp.routing.active, kind.mlp.shared
      counts.append(active + (shared > 0))
      widths.append(active * kind.mlp.width + shared)
    else:
      counts.append(1)
      widths.append(config.mlp_dim)
  return sum(counts) / len(counts), sum(widths) / len(widths)


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
  kinds = config.layer_kinds
  recurrent = [kind.mixer for kind in kinds if is_recurrent(kind.mixer)]
  first, later, extra = _pairs(config, prefix, suffix)
  # What a token costs in the states of recurrent layers.
  state = sum(mixer.token_flops for mixer in recurrent)
  head = 2.0 * config.embed_dim * config.vocab_size
  forward = (
    (products + state) * (run + suffix)
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
    config.head_width(kind)
    for kind in config.layer_kinds
    if attends(kind.mixer)
  ]
  heads = 2.0 * config.num_heads
  latent = config.attention
  if not isinstance(latent, LatentAttention):
    pair = heads * 2 * sum(widths)
    return pair, pair, 0.0
  heads *= len(widths)
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
