"""Greedy answers with one branch a row."""

import jax.numpy as jnp
import numpy as np

from vtokens.method import generate


def greedy(
  params,
  table,
  cache,
  suffix,
  positions,
  eos_id,
  is_end,
  is_newline,
  is_blank,
  *,
  graph,
  max_new_tokens,
):
  """`generate.generate` of suffixes that fill their rows from the left."""
  last = (np.asarray(positions) >= 0).sum(axis=1, dtype=np.int32) - 1
  return generate.generate(
    params,
    table,
    cache,
    generate.Suffixes(suffix, positions, None, last[:, None]),
    generate.Endings(
      jnp.int32(eos_id),
      jnp.asarray(is_end),
      jnp.asarray(is_newline),
      jnp.asarray(is_blank),
    ),
    graph=graph,
    max_new_tokens=max_new_tokens,
  ).ids[:, 0]
