"""A tiny training run: base, data and config in a directory."""

import dataclasses
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Iterable

import tiny_models
from etils import epath

from vtokens import config
from vtokens.evaluation import eval_config
from vtokens.run import tracking

ROOT = pathlib.Path(__file__).parents[2]
ROWS, DIM = 4, 32
NUM_STEPS, VALIDATE_EVERY, CHECKPOINT_EVERY = 12, 6, 3

# Tokens are bytes: a passage has about 20, the smaller shape holds one.
CONFIG = """
from vtokens import config

ROOT = {root!r}


def get_config():
  return config.Config(
    workdir='run',
    base=config.Base(path=ROOT + '/base', dtype='float32'),
    virtual_tokens=config.VirtualTokens(
      num_virtual_tokens=4, init_text='Answer.'
    ),
    templates=config.Templates(
      prompt='Q {{question}} A', instruction='Do {{question}}'
    ),
    data=config.Data(
      train=(ROOT + '/train.jsonl',),
      validation=(ROOT + '/validation.jsonl',),
      test=(ROOT + '/test.jsonl',),
      passages=config.Passages(number=(1, 2), depth=2),
      batch_size=4,
      max_prefix_tokens=48,
      max_suffix_tokens=32,
      max_answer_tokens=4,
      shapes=((24, 32), (48, 32)),
      window_batches=6,
    ),
    optim=config.Optim(learning_rate=1.0, warmup_steps=2),
    train=config.Train(
      num_steps=12, validate_every=6, checkpoint_every=3
    ),
    eval=config.Eval(
      batch_size=4,
      num_passages=2,
      shuffle_passages=True,
      max_new_tokens=3,
      num_active=(1, 4),
    ),
  )
"""


def record(i):
  return {
    'id': f'q{i}',
    'question': f'Is it {i}?',
    'answers': ['b'],
    'passages': [
      {'text': f'Fact {i} is b.'},
      # Some are too long for two passages to fit the prefix.
      {'text': 'Noise.' * (1 + 4 * (i % 2))},
    ],
  }


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@dataclasses.dataclass
class Place:
  """A config file, its data and its base, a link to `base1`."""

  root: pathlib.Path

  @property
  def config_file(self):
    return str(self.root / 'tiny.py')

  def load(self, workdir, **changes) -> config.Config:
    """The config, with sections changed: `train={'num_steps': 3}`."""
    cfg = runpy.run_path(self.config_file)['get_config']()
    cfg.workdir = str(workdir)
    for section, fields in changes.items():
      for name, value in fields.items():
        setattr(getattr(cfg, section), name, value)
    config.validate(cfg)
    return cfg

  def command(self, workdir, *overrides):
    return [
      sys.executable,
      '-m',
      'vtokens.train',
      '--config',
      self.config_file,
      f'--config.workdir={workdir}',
      *overrides,
    ]

  @property
  def env(self):
    return {
      **os.environ,
      'PYTHONPATH': f'{ROOT}:{self.root / "site"}',
      'JAX_PLATFORMS': 'cpu',
      # All processes run the same few programs: compile them once.
      'JAX_COMPILATION_CACHE_DIR': str(self.root / 'jax_cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }

  def run(self, command):
    return subprocess.run(
      command,
      cwd=self.root,
      env=self.env,
      capture_output=True,
      text=True,
      timeout=300,
    )

  def signal_when(self, condition, number, command):
    """Runs until the condition holds, sends a signal, returns the output.

    Returns:
      Exit status and standard output.
    """
    out = self.root / 'out.txt'
    with (
      out.open('w') as stdout,
      subprocess.Popen(
        command,
        cwd=self.root,
        env=self.env,
        stdout=stdout,
        stderr=subprocess.STDOUT,
      ) as process,
    ):
      deadline = time.monotonic() + 300
      while not condition():
        assert process.poll() is None, out.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
      process.send_signal(number)
      status = process.wait(timeout=300)
    return status, out.read_text()


def make_place(root: pathlib.Path, **overrides) -> Place:
  """Two bases, data and a config file.

  Args:
    root: an empty directory.
    **overrides: of `tiny_models.save`.
  """
  for seed, name in enumerate(('base1', 'base2')):
    tiny_models.save(
      root / name,
      seed=seed,
      **{
        'num_hidden_layers': 2,
        'hidden_size': DIM,
        'intermediate_size': 48,
        **overrides,
      },
    )
  (root / 'base').symlink_to('base1')
  # As on a machine without torch: training must not need it.
  (root / 'site').mkdir()
  (root / 'site' / 'sitecustomize.py').write_text(
    "import sys\nsys.modules['torch'] = None\n"
  )
  write(root / 'train.jsonl', map(record, range(60)))
  write(root / 'validation.jsonl', map(record, range(60, 66)))
  write(root / 'test.jsonl', map(record, range(70, 78)))
  (root / 'tiny.py').write_text(CONFIG.format(root=str(root)).lstrip())
  return Place(root)


def evaluation(
  workdir: pathlib.Path, place: Place, runs: Iterable[pathlib.Path]
) -> eval_config.Config:
  """A config that asks runs what their training asked at its end."""
  cfg = eval_config.Config(
    workdir=str(workdir),
    runs=tuple(map(str, runs)),
    data=eval_config.Data(
      sources=(str(place.root / 'test.jsonl'),),
      max_prefix_tokens=48,
      max_suffix_tokens=32,
    ),
    conditions=('tokens', 'prompt', 'untouched'),
    num_active=(4, 1),
    num_passages=(2,),
    shuffle_passages=True,
    decode=config.Decode(batch_size=4, max_new_tokens=3),
    report=eval_config.Report(resamples=50, permutations=50),
  )
  cfg.templates.prompt = 'Q {question} A'
  cfg.templates.instruction = 'Do {question}'
  eval_config.validate(cfg)
  return cfg


def answers(predictions: pathlib.Path) -> dict[str, str]:
  """Id of a question -> answer."""
  found = map(json.loads, predictions.read_text().splitlines())
  return {row['id']: row['prediction'] for row in found}


def summary(workdir: epath.Path | pathlib.Path) -> dict:
  """Of a finished run."""
  return json.loads((workdir / 'summary.json').read_text())


# What else than the run decides, in metrics.jsonl.
TIMES = (
  'examples_per_second',
  'tflops_per_second',
  'data_seconds',
  'device_seconds',
  'host_seconds',
)


def rows(workdir: epath.Path | pathlib.Path) -> list[dict]:
  """metrics.jsonl without the values that time changes."""
  found = tracking.read_metrics(workdir / 'metrics.jsonl')
  for row in found:
    for name in TIMES:
      row.pop(name, None)
  return found


def last_step(workdir: pathlib.Path) -> int:
  """The last one in metrics.jsonl."""
  found = tracking.read_metrics(workdir / 'metrics.jsonl')
  return found[-1]['step'] if found else 0


def assert_same_result(
  workdir: epath.Path | pathlib.Path, expected: pathlib.Path
) -> None:
  """The same table, bit for bit, metrics and scores."""
  assert summary(workdir)['table_sha256'] == summary(expected)['table_sha256']
  assert rows(workdir) == rows(expected)
  for key in ('conditions', 'k', 'steps', 'base_fingerprint'):
    assert summary(workdir)[key] == summary(expected)[key]
