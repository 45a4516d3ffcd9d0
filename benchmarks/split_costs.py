"""Compares the split step with one differentiated pass, for several bases.

    python benchmarks/split_costs.py

FLOPs are `vtokens/planning/flops.py`'s, which counts the arithmetic of the
method. Memory is what the compiled gradient needs beside weights and inputs, as
the compiler says; nothing runs. Bases have their own widths and fewer layers.
"""

import argparse
import dataclasses
import json
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from vtokens.data.batch import Batch
from vtokens.method import losses, steps
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder import Decoder
from vtokens.planning import flops, known_models

BASES = ('Qwen/Qwen3-8B', 'Qwen/Qwen3.5-27B')
TOKENS, TARGETS = 50, 16


def split_nll(table: Any, decoder: Decoder, batch: Batch) -> Any:
  """The loss as training computes it."""
  cache = steps.encode_prefix(decoder, batch.prefix, batch.prefix_positions)
  return steps.suffix_nll(table, decoder, cache, batch)[0]


def unsplit_nll(table: Any, decoder: Decoder, batch: Batch) -> Any:
  """The same from one pass over passages and suffix."""
  ids = jnp.concatenate([batch.prefix, batch.suffix], axis=1)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = decoder(TABLE.embed(decoder, table, ids), positions)
  where = batch.prefix.shape[1] + batch.target_index
  picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
  logits = decoder.logits(picked)
  return losses.masked_nll(logits, batch.targets, batch.target_index >= 0)[0]


def measure(
  base: str, layers: int, rows: int, prefix: int, suffix: int
) -> dict[str, Any]:
  """The ratios split / unsplit of one base.

  Args:
    base: one of `known_models.CONFIGS`.
    layers: layers that are compiled.
    rows: examples.
    prefix: tokens of passages.
    suffix: tokens after them.
  """
  config = dataclasses.replace(
    known_models.read_architecture(base), num_layers=layers, kernels=False
  )
  graph, params = nnx.split(abstract_decoder(config, jnp.dtype(jnp.float32)))

  def ids(size: int) -> Any:
    return jax.ShapeDtypeStruct((rows, size), jnp.int32)

  batch = Batch(
    prefix=ids(prefix),
    prefix_positions=ids(prefix),
    suffix=ids(suffix),
    suffix_positions=ids(suffix),
    targets=ids(TARGETS),
    target_index=ids(TARGETS),
  )
  table = jax.ShapeDtypeStruct((TOKENS, config.embed_dim), jnp.float32)

  def temporaries(nll: Any) -> int:
    def loss(table: Any, params: Any, batch: Batch) -> Any:
      return nll(table, nnx.merge(graph, params), batch)

    lowered = jax.jit(jax.value_and_grad(loss)).lower(table, params, batch)
    found: Any = lowered.compile().memory_analysis()
    size: int = found.temp_size_in_bytes
    return size

  memory = [temporaries(nll) for nll in (split_nll, unsplit_nll)]
  work = [
    flops.train_flops(config, [lengths])
    for lengths in (
      [prefix, prefix, suffix, TARGETS],
      [0, 0, prefix + suffix, TARGETS],
    )
  ]
  return {
    'base': base,
    'layers': layers,
    'flops': work[0] / work[1],
    'memory': memory[0] / memory[1],
    'gigabytes': [size / 1e9 for size in memory],
  }


def main() -> None:
  """Prints a row for each base."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--bases', nargs='+', default=BASES)
  parser.add_argument('--layers', type=int, default=8)
  parser.add_argument('--rows', type=int, default=2)
  parser.add_argument('--prefix', type=int, default=600)
  parser.add_argument('--suffix', type=int, default=110)
  args = parser.parse_args()
  for base in args.bases:
    found = measure(base, args.layers, args.rows, args.prefix, args.suffix)
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main()
