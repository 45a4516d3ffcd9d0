"""How much arithmetic the method needs, without padding and recomputation.

With M weights of the layers' matrices, a token that only goes forward costs 2 M
floating point operations, a multiplication and an addition each (Kaplan et al.,
2020, arXiv 2001.08361, section 2.1). Passages only go forward. Behind them the
gradient of the activations is needed as well, another 2 M, but never that of
the weights: 4 M where training of all weights has 6 M. Recomputing the suffix
(`remat`) would make that 6 M; it is work that the method does not need, and
does not count here.
"""

import functools
import math
from collections.abc import Sequence

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np

from vtokens.models import quantize
from vtokens.models.decoder import abstract_decoder
from vtokens.models.decoder_config import DecoderConfig


@functools.cache
def matrix_weights(config: DecoderConfig) -> int:
  """Weights of the layers' matrices that one token meets."""
  params = nnx.state(abstract_decoder(config, jnp.dtype(jnp.float32)))
  return round(
    sum(
      math.prod(param.shape) * param.get_metadata('active')
      for path, param in nnx.to_flat_state(params)
      if path[0] == 'layers' and quantize.matrix_inputs(param)
    )
  )


def train_flops(
  config: DecoderConfig, lengths: Sequence[Sequence[int]]
) -> float:
  """FLOPs of one training step: forward, and backward to the table.

  Scores that a causal mask leaves out do not count; windows are taken for full
  attention. Of attention over the passages the gradient needs that of the
  queries only: their keys and values do not depend on the table.

  Args:
    config: the base.
    lengths: of each suffix, in tokens: the prefix that is run for it (0 where
      another suffix has done so), the prefix that it goes on from, itself, its
      targets.
  """
  run, prefix, suffix, targets = np.asarray(lengths, np.float64).T
  within = suffix * (suffix + 1) / 2
  products = 2.0 * matrix_weights(config)
  # Scores, and the sums of values that they weigh.
  pair = 4.0 * config.num_layers * config.num_heads * config.head_dim
  head = 2.0 * config.embed_dim * config.vocab_size
  forward = (
    products * (run + suffix)
    + pair * (run * (run + 1) / 2 + suffix * prefix + within)
    + head * targets
  )
  backward = (
    products * suffix + pair * (suffix * prefix + 2 * within) + head * targets
  )
  return float((forward + backward).sum())
