r"""Compares training steps of vtokens with other ways to train.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train_step.py --json benchmarks/train_step_cpu.json
    python benchmarks/train_step.py --model mistral-7b --dtype bfloat16 \
      --passages 1,3,5 --batch 4,8,16,32 --json benchmarks/train_step_gpu.json

`contenders.py` describes the contenders. On CPUs each has its own process, and
they take steps in turn, so that a drift of the machine affects all alike. On an
accelerator they run one after the other, with one process for each framework.
Losses and gradients of contenders with the same computation are compared; if
they differ, there are no figures. Of several batch sizes the best counts.

Models: smollm2 (the real weights), or random weights in the shape of
qwen2.5-1.5b, llama-3.2-3b, mistral-7b, or with experts qwen3-moe-small,
qwen3-30b-a3b-12l and gpt-oss-20b-12l (fewer layers), or with recurrent layers
qwen3.5-small and qwen3.5-27b-16l; tiny, tiny-moe and tiny-hybrid are for
trials. With --json the figures of each contender are written when it ends.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import contenders
import shapes
from absl import flags as absl_flags

from vtokens import config
from vtokens.devices import chips
from vtokens.host import paths
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.files import gguf_weights, hf_directory
from vtokens.planning import flops
from vtokens.recipes import smollm2
from vtokens.settings import flags

MODEL = absl_flags.DEFINE_string('model', 'smollm2', 'Or a name of a shape.')
DTYPE = absl_flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
)
PASSAGES = absl_flags.DEFINE_list('passages', ['5'], 'Of an example.')
_BATCH = absl_flags.DEFINE_list('batch', ['8'], 'Examples of a step.')
_PER_ROW = absl_flags.DEFINE_integer(
  'per_row', 4, 'Examples to a row of packed.'
)
_K = absl_flags.DEFINE_integer('k', 50, 'Virtual tokens.')
CONTENDERS = absl_flags.DEFINE_list(
  'contenders',
  list(contenders.CONTENDERS),
  'Which; name:4:8 for batches other than those of --batch.',
)
_ATTENTION = absl_flags.DEFINE_enum(
  'attention', 'auto', config.ATTENTION, 'Of vtokens; see base.attention.'
)
_SCAN_LAYERS = absl_flags.DEFINE_bool(
  'scan_layers', True, 'Of vtokens; see base.scan_layers.'
)
_TRACE = absl_flags.DEFINE_string(
  'trace', '', 'Directory for traces of vtokens; see trace_summary.py.'
)
_REPEATS = absl_flags.DEFINE_integer(
  'repeats', 5, 'Timed steps; medians count.'
)
_CLOCK = absl_flags.DEFINE_enum(
  'clock',
  'wall',
  ['wall', 'processor'],
  'processor counts the time of all cores that a process used: for a CPU that '
  'has other work, with one thread for each contender.',
)
JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')

# Relative tolerance of losses and gradient norms between contenders.
_TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}


class Process:
  """A process of `contenders.py`."""

  def __init__(self) -> None:
    self._process = subprocess.Popen(
      [sys.executable, str(pathlib.Path(contenders.__file__))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    )

  def ask(self, request: Any) -> dict[str, Any]:
    """Sends a request and returns the answer."""
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      return {'failed': 'its process ended'}
    for line in self._process.stdout:
      if line.startswith('> '):
        return json.loads(line[2:])
    return {'failed': 'its process ended'}

  @property
  def ended(self) -> bool:
    """Whether the process has ended."""
    return self._process.poll() is not None

  def close(self) -> None:
    """Waits for the process to end."""
    self._process.communicate()


class Runner:
  """A contender in a process."""

  def __init__(self, process: Process, task: contenders.Task):
    self.task = task
    self.seconds: list[float] = []
    self._process = process
    self.facts = process.ask(dataclasses.asdict(task))

  @property
  def failed(self) -> str | None:
    """The error, or None."""
    return self.facts.get('failed')

  def step(self) -> None:
    """One timed step."""
    reply = self._process.ask('step')
    key = 'seconds' if _CLOCK.value == 'wall' else 'processor_seconds'
    if key in reply:
      self.seconds.append(reply[key])
    else:
      self.facts |= reply

  def end(self) -> None:
    """Ends the contender and reads its memory."""
    if not self.failed:
      self.facts |= self._process.ask('end')
    # Printed now, in case the benchmark is cut off.
    said: dict[str, Any] = {
      'seconds': [round(seconds, 4) for seconds in self.seconds],
      'GiB': round(self.facts.get('peak_bytes_above_weights', 0) / 2**30, 2),
      **{
        key: self.facts[key]
        for key in ('failed', 'loss', 'grad_norm', 'compile_seconds')
        if key in self.facts
      },
    }
    print(f'  {self.task.contender}, batch {self.task.batch}: {said}')
    sys.stdout.flush()


def measure_together(tasks: list[contenders.Task]) -> list[Runner]:
  """Runs all contenders in turns, each in its own process."""
  processes = [Process() for _ in tasks]
  runners = [
    Runner(process, task)
    for process, task in zip(processes, tasks, strict=True)
  ]
  for _ in range(_REPEATS.value):
    for runner in runners:
      if not runner.failed:
        runner.step()
  for runner, process in zip(runners, processes, strict=True):
    runner.end()
    process.close()
  return runners


def measure_in_turn(
  tasks: list[contenders.Task], ended: Callable[[list[Runner]], None]
) -> list[Runner]:
  """Runs contenders one after the other, with a process for each framework.

  Args:
    tasks: the contenders.
    ended: called with all that have ended, after each.
  """
  runners: list[Runner] = []
  # vtokens comes first: its process knows the device's rate.
  for jax in (True, False):
    process = Process()
    # PEFT comes last because it wraps the model.
    for task in sorted(
      tasks, key=lambda task: contenders.CONTENDERS.index(task.contender)
    ):
      if (task.contender in contenders.JAX) != jax:
        continue
      runner = Runner(process, task)
      for _ in range(_REPEATS.value):
        if not runner.failed:
          runner.step()
      runner.end()
      runners.append(runner)
      ended(runners)
      if runner.failed and process.ended:
        process = Process()
    process.close()
  return runners


def check(runners: list[Runner]) -> None:
  """Raises if contenders with the same computation disagree."""
  facts = [
    r.facts for r in runners if not r.failed and r.task.contender != 'peft'
  ]
  for key in ('loss', 'grad_norm'):
    values = [f[key] for f in facts]
    if not all(map(math.isfinite, values)):
      raise SystemExit(f'{key}: {values}')
    if values and not math.isclose(
      min(values), max(values), rel_tol=_TOLERANCE[DTYPE.value]
    ):
      raise SystemExit(f'{key} differ: {values}')


def summarise(runner: Runner, needed: dict[str, Any]) -> dict[str, Any]:
  """Figures of a contender.

  Args:
    runner: a contender that has ended.
    needed: see `_needed`.
  """
  task = runner.task
  row: dict[str, Any] = {'contender': task.contender, 'batch': task.batch}
  facts = runner.facts
  if runner.failed:
    return {**row, 'failed': runner.failed}
  seconds = statistics.median(runner.seconds)
  return {
    **row,
    'seconds': seconds,
    'all_seconds': runner.seconds,
    'examples_per_second': task.batch / seconds,
    'real_tokens_per_second': needed['real_tokens'] / seconds,
    'padding': 1 - needed['real_tokens'] / facts['computed_tokens'],
    # The device's rate is known by the wall clock.
    **(
      {'mfu': needed['needed_flops'] / seconds / needed['peak_flops']}
      if _CLOCK.value == 'wall'
      else {}
    ),
    **facts,
  }


def _needed(
  architecture: DecoderConfig, runners: list[Runner], task: contenders.Task
) -> dict[str, float]:
  """Arithmetic that a task's examples need, and the device's rate."""
  texts = contenders.make_texts(task, architecture.vocab_size)
  # The last token of an answer is predicted, but is no input.
  suffixes = [task.k + len(t.prompt) + len(t.answer) - 1 for t in texts]
  facts = next(
    (
      r.facts
      for r in runners
      if r.task.contender in contenders.JAX and not r.failed
    ),
    None,
  )
  if facts is None:
    raise SystemExit('no contender of vtokens has run')
  chip = chips.find(facts['device'])
  return {
    'real_tokens': sum(len(t.prefix) for t in texts) + sum(suffixes),
    'needed_flops': flops.train_flops(
      architecture,
      [
        (len(t.prefix),) * 2 + (suffix, len(t.answer))
        for t, suffix in zip(texts, suffixes, strict=True)
      ],
    ),
    'peak_flops': chip.flops if chip else facts['product_flops_per_second'],
  }


def best(
  rows: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any] | None:
  """The fastest of some contenders and batches."""
  own = [r for r in rows if r['contender'] in names and 'seconds' in r]
  return max(own, key=lambda row: row['examples_per_second'], default=None)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
  """The best of vtokens over each other's best; memory at equal batches."""
  ours = best(rows, contenders.OURS)
  found: dict[str, float] = {}
  if ours is None:
    return found
  for name in contenders.CONTENDERS[len(contenders.OURS) :]:
    other = best(rows, [name])
    if other is None:
      continue
    found[f'examples_per_second / {name}'] = (
      ours['examples_per_second'] / other['examples_per_second']
    )
    for row in rows:
      if row['contender'] != name or 'seconds' not in row:
        continue
      batch = row['batch']
      same = best([r for r in rows if r['batch'] == batch], contenders.OURS)
      if same:
        found[f'memory / {name}, batch {batch}'] = (
          same['peak_bytes_above_weights'] / row['peak_bytes_above_weights']
        )
  return found


def read_architecture(model: str) -> DecoderConfig:
  """Architecture of a directory in Hugging Face's format or a GGUF file."""
  if model.endswith('.gguf'):
    return gguf_weights.GGUFSource(model).config
  return hf_directory.read_config(model)


def versions() -> dict[str, str]:
  """Versions of the measured packages."""
  return {
    name: importlib.metadata.version(name)
    for name in ('jax', 'torch', 'transformers', 'peft')
  }


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  found = re.search(
    r'model name\s*: (.*)', info.read_text() if info.exists() else ''
  )
  return found[1] if found else platform.processor()


def _print(rows: list[dict[str, Any]], compared: dict[str, float]) -> None:
  print(
    f'{"contender":15} {"batch":>5} {"examples/s":>11} {"tokens/s":>9} '
    f'{"padding":>8} {"MFU":>6} {"GiB above weights":>18} {"compile (s)":>12}'
  )
  for row in rows:
    head = f'{row["contender"]:15} {row["batch"]:5}'
    if 'seconds' not in row:
      print(head, row['failed'])
      continue
    compiled = row.get('compile_seconds')
    mfu = f'{row["mfu"]:.1%}' if 'mfu' in row else ''
    print(
      f'{head} {row["examples_per_second"]:11.3f} '
      f'{row["real_tokens_per_second"]:9.0f} {row["padding"]:8.1%} '
      f'{mfu:>6} {row["peak_bytes_above_weights"] / 2**30:18.2f} '
      + (f'{compiled:12.1f}' if compiled else f'{"":>12}')
    )
  for name, ratio in compared.items():
    print(f'  {name}: {ratio:.2f}')


def make_tasks(model: str, passages: int) -> list[contenders.Task]:
  """All tasks with a number of passages, by batch size."""
  tasks = []
  if not any(e.split(':')[0] in contenders.OURS for e in CONTENDERS.value):
    raise SystemExit(
      f'--contenders: others are compared with {" or ".join(contenders.OURS)}, '
      'one of which has to be there'
    )
  for entry in CONTENDERS.value:
    name, *batches = entry.split(':')
    if name not in contenders.CONTENDERS:
      raise SystemExit(
        f'--contenders: no {name}; expected {", ".join(contenders.CONTENDERS)}'
      )
    for batch in map(int, batches or _BATCH.value):
      per_row = math.gcd(batch, _PER_ROW.value) if name == 'packed' else 1
      if name == 'packed' and per_row == 1:
        continue
      tasks.append(
        contenders.Task(
          contender=name,
          model=model,
          dtype=DTYPE.value,
          passages=passages,
          batch=batch,
          per_row=per_row,
          k=_K.value,
          kernels=_ATTENTION.value == 'auto',
          scan_layers=_SCAN_LAYERS.value,
          trace=_TRACE.value if name in contenders.OURS else '',
        )
      )
  return sorted(tasks, key=lambda task: task.batch)


def main(argv: Sequence[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as directory:
    if MODEL.value == 'smollm2':
      model = paths.resolve(smollm2.PATH)
    else:
      model = shapes.save_random(
        MODEL.value, pathlib.Path(directory), DTYPE.value
      )
    architecture = read_architecture(model)
    results: list[dict[str, Any]] = []

    def note(runners: list[Runner], passages: int, complete: bool) -> None:
      """Figures of some contenders, and all figures so far in the file."""
      ours = [r for r in runners if r.task.contender in contenders.JAX]
      if not complete and all(r.failed for r in ours):
        return  # The device's rate is not known yet.
      rows = [
        summarise(r, _needed(architecture, runners, r.task)) for r in runners
      ]
      compared = ratios(rows)
      found = {'passages': passages, 'contenders': rows, 'ratios': compared}
      if complete:
        _print(rows, compared)
        results.append(found)
      last = complete and passages == int(PASSAGES.value[-1])
      _write([*results, *([] if complete else [found])], last)

    for passages in map(int, PASSAGES.value):
      print(f'{MODEL.value}, {passages} passages', flush=True)
      tasks = make_tasks(model, passages)
      batches = [
        list(group)
        for _, group in itertools.groupby(tasks, lambda task: task.batch)
      ]
      if _has_accelerator():
        runners = measure_in_turn(
          tasks, functools.partial(note, passages=passages, complete=False)
        )
      else:
        runners = [r for group in batches for r in measure_together(group)]
      for group in batches:
        check([r for r in runners if r.task in group])
      note(runners, passages, complete=True)


def _write(results: list[dict[str, Any]], complete: bool) -> None:
  """Writes the figures to the file.

  Args:
    results: for each number of passages.
    complete: False if contenders are still to come. Losses of the last number
      of passages are then not compared yet.
  """
  if not JSON.value:
    return
  report = {
    'model': MODEL.value,
    'dtype': DTYPE.value,
    'k': _K.value,
    'clock': _CLOCK.value,
    'processor': _processor(),
    'versions': versions(),
    **({} if complete else {'complete': False}),
    'results': results,
  }
  pathlib.Path(JSON.value).write_text(json.dumps(report, indent=2) + '\n')


def _has_accelerator() -> bool:
  # PyTorch answers this, because JAX would reserve the device's memory.
  import torch

  return torch.cuda.is_available()


if __name__ == '__main__':
  flags.run(main)
