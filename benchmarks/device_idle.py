"""Measures how long the devices of a training run wait for the host.

python benchmarks/device_idle.py [--devices 2] [--steps 12] [--json FILE]

Trains SmolLM2-135M-Instruct on the quickstart data on a mesh of simulated CPU
devices, while the host makes the batches. A profile (jax.profiler) gives the
time between the first and the last step in which no device ran a program.
"""

import argparse
import gzip
import json
import os
import pathlib
import tempfile


def busy(trace: dict) -> tuple[float, float]:
  """Microseconds from the first to the last operation, and idle ones."""
  events = trace['traceEvents']
  # Threads in which XLA's CPU client runs operations.
  threads = {
    (event['pid'], event['tid'])
    for event in events
    if event.get('name') == 'thread_name'
    and event['args']['name'].startswith('tf_XLA')
  }
  spans = sorted(
    (event['ts'], event['ts'] + event['dur'])
    for event in events
    if event.get('ph') == 'X' and (event['pid'], event['tid']) in threads
  )
  idle, end = 0.0, spans[0][1]
  for start, stop in spans[1:]:
    idle += max(0.0, start - end)
    end = max(end, stop)
  return end - spans[0][0], idle


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--devices', type=int, default=2)
  parser.add_argument('--steps', type=int, default=12)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args()
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={args.devices}'
  )

  import jax
  import optax

  from vtokens import config
  from vtokens.data import pipeline, training_set
  from vtokens.data.assemble import Assembler
  from vtokens.devices import partitioning
  from vtokens.method import steps
  from vtokens.models import frozen_base
  from vtokens.recipes import smollm2
  from vtokens.run import training_state

  with tempfile.TemporaryDirectory() as directory:
    cfg = config.Config(
      workdir=directory,
      base=config.Base(path=smollm2.PATH, dtype='float32'),
      data=config.Data(
        train=('package:vtokens/data/quickstart/train.jsonl.gz',),
        passages=config.Passages(number=(2, 2)),
        batch_size=8,
        examples_per_row=2,
        max_prefix_tokens=704,
        max_suffix_tokens=152,
        max_answer_tokens=24,
        # One program, so that compiling is not measured.
        num_shapes=1,
        shapes=((1408, 304),),
        window_batches=4,
      ),
    )
    mesh = partitioning.make_mesh((-1, 1, 1))
    opened = frozen_base.open_base(cfg.base, cfg.context_length)
    assembler = Assembler.for_run(opened.tokenizer, cfg)
    mixture, _ = training_set.open_training_set(cfg, assembler, [], print)
    base = opened.load(mesh)
    optimizer = optax.adam(1e-3)
    state = training_state.initial_state(cfg, mesh, base, optimizer)
    batches = pipeline.TrainBatches(
      mixture,
      cfg.data,
      cfg.virtual_tokens,
      assembler,
      base.config.vocab_size,
      0,
    )
    step = jax.jit(steps.make_train_step(base.graph, optimizer))
    # As in loop.py: makes the next batch, puts it on the devices and enqueues
    # its step before waiting for the last step.
    pending = None
    with batches.starting_at(0) as stream:
      for number in range(args.steps + 2):
        if number == 2:
          jax.block_until_ready(pending)
          jax.profiler.start_trace(directory, create_perfetto_trace=True)
        batch = partitioning.shard_batch(
          next(stream).batch, mesh, batches.batch_rows
        )
        state, values = step(state, base.params, batch)
        if pending is not None:
          float(pending['loss'])
        pending = values
      jax.block_until_ready(pending)
      jax.profiler.stop_trace()
    [path] = pathlib.Path(directory).glob('**/perfetto_trace.json.gz')
    with gzip.open(path) as file:
      total, idle = busy(json.load(file))
  report = {
    'devices': args.devices,
    'steps': args.steps,
    'seconds': total / 1e6,
    'idle': idle / total,
    'jax': jax.__version__,
  }
  print(
    f'{args.steps} steps on {args.devices} devices: {total / 1e6:.1f} s, no '
    f'device at work in {100 * idle / total:.2f} % of them'
  )
  if args.json:
    args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
