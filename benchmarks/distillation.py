r"""FLOPs and time of a step, with and without a teacher.

    python benchmarks/distillation.py --directory DIR --json FILE

It uses SmolLM2 and the questions of `configs/quickstart.py`. All contenders
have the same examples in the same order. Nothing is trained: the program counts
the FLOPs of all steps, and takes the time of the first one, again and again, of
one contender after the other. `quickstart_levers.py` measures answers.

  answers       no teacher
  shown_WEIGHT  a teacher with all tokens and the same passages
  gold_WEIGHT   a teacher with all tokens and the gold passages alone
  all_tokens    no teacher, but a second draw, which has all tokens
  draws_WEIGHT  the same, and it teaches the other draw
"""

import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import quickstart_runs
from absl import flags as absl_flags

from vtokens import config
from vtokens.data import pipeline
from vtokens.devices import partitioning
from vtokens.method import optim, steps
from vtokens.models import frozen_base
from vtokens.planning import flops
from vtokens.settings import flags

_CONTENDERS = absl_flags.DEFINE_list(
  'contenders',
  ['answers', 'shown_0.5', 'gold_0.5', 'all_tokens', 'draws_0.5'],
  'Which.',
)
_STEPS = absl_flags.DEFINE_integer('steps', 112, 'Of training.')
_BATCH_SIZE = absl_flags.DEFINE_integer('batch_size', 8, 'Examples of a step.')
_SEED = absl_flags.DEFINE_integer('seed', 0, 'Of data and draws.')
_DIRECTORY = absl_flags.DEFINE_string('directory', None, 'Work directory.')
_REPEATS = absl_flags.DEFINE_integer('repeats', 5, 'Of the step that is timed.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')


def configure(contender: str, directory: str) -> config.Config:
  """The quickstart's config, with the contender's settings."""
  cfg = quickstart_runs.load_config(directory, 0, _SEED.value)
  cfg.optim.schedule = 'cosine'
  cfg.train.num_steps = _STEPS.value
  cfg.data.batch_size = _BATCH_SIZE.value
  name, _, weight = contender.partition('_')
  if name in ('all', 'draws'):
    cfg.virtual_tokens.draws_per_example = 2
    cfg.virtual_tokens.always_all = True
  if name in ('shown', 'gold', 'draws'):
    cfg.train.distill.weight = float(weight)
  if name == 'gold':
    cfg.train.distill.passages = 'gold'
  return cfg


def measure_cost(directory: pathlib.Path) -> list[dict[str, Any]]:
  """FLOPs of all steps, and seconds of the first one, for each contender."""
  rows, timed = [], {}
  base = None
  for contender in _CONTENDERS.value:
    setting = quickstart_runs.Setting(configure(contender, str(directory)))
    base = base or setting.load()
    batches = setting.batches()
    with batches.starting_at(0) as stream:
      hosts = list(itertools.islice(stream, _STEPS.value))
    rows.append(
      {
        'contender': contender,
        'flops': sum(
          flops.train_flops(base.config, host.lengths, host.teacher_lengths)
          for host in hosts
        ),
        'computed_tokens': sum(host.computed_tokens for host in hosts),
      }
    )
    timed[contender] = _one_step(setting, base, hosts[0], batches.batch_rows)
  found: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
  for _ in range(1 + _REPEATS.value):
    for name, step in timed.items():
      began = time.monotonic(), time.process_time()
      step()
      found[name].append(
        (time.monotonic() - began[0], time.process_time() - began[1])
      )
      print(name, *found[name][-1], flush=True)
  for row in rows:
    # The first one compiles.
    wall, cpu = zip(*found[row['contender']][1:], strict=True)
    row['step_seconds'] = statistics.median(wall)
    # Other programs do not count.
    row['step_cpu_seconds'] = statistics.median(cpu)
  return rows


def _one_step(
  setting: quickstart_runs.Setting,
  base: frozen_base.FrozenBase,
  host: pipeline.HostBatch,
  batch_rows: int,
) -> Callable[[], None]:
  """A step from the initial table, which is done when it returns."""
  table = jnp.asarray(setting.initial_table(base))
  optimizer = optim.make_optimizer(setting.cfg.optim, _STEPS.value)
  state = steps.TrainState(table, optimizer.init(table), jnp.int32(0))
  step = steps.jit_train_step(base.graph, optimizer, state, setting.cfg.train)
  batch = partitioning.shard_batch(host.batch, setting.mesh, batch_rows)
  return lambda: jax.block_until_ready(step(state, base.params, batch))


def main(argv: Sequence[str]) -> None:
  del argv
  assert _DIRECTORY.value is not None
  directory = pathlib.Path(_DIRECTORY.value)
  directory.mkdir(parents=True, exist_ok=True)
  rows = measure_cost(directory)
  for row in rows:
    print(json.dumps(row), flush=True)
  if _JSON.value:
    settings = {
      'steps': _STEPS.value,
      'seed': _SEED.value,
    }
    pathlib.Path(_JSON.value).write_text(
      json.dumps({**settings, 'rows': rows}, indent=2) + '\n'
    )


if __name__ == '__main__':
  absl_flags.mark_flag_as_required('directory')
  flags.run(main)
