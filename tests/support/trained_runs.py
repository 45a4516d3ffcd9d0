"""Finished training runs with random tables, and settings of their exports."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import tiny_models

from vtokens import config
from vtokens.exports import export_config
from vtokens.models import frozen_base
from vtokens.run.workdir import RunDir
from vtokens.serving import table_file, trained_file
from vtokens.settings import schema

ROWS = 5
PASSAGES = [
  {'title': 'Tower', 'text': 'It was completed in 1859.'},
  {'title': '', 'text': 'A passage with [ref1] and [ref2] in its text.'},
]
QUESTION = 'When was it completed?'


def write_run(
  directory: pathlib.Path,
  base: pathlib.Path,
  *,
  chat: bool = False,
  quantize: str = 'none',
  unanswerable: str = 'skip',
  templates: Mapping[str, str] = MappingProxyType({}),
  **tokens,
) -> None:
  """Writes a finished training run with a random table."""
  directory.mkdir()
  questions = directory / 'questions.jsonl'
  rows = [
    {
      'id': f'q{i}',
      'question': f'When was tower {i} completed?',
      'answers': ['1859'],
      'passages': [{'text': f'Tower {i} was completed in 18{i:02}.'}] * 2,
    }
    for i in range(12)
  ]
  questions.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  cfg = config.Config(
    base=config.Base(path=str(base), dtype='float32', quantize=quantize),
    virtual_tokens=config.VirtualTokens(num_virtual_tokens=ROWS, **tokens),
    templates=config.Templates(chat=chat, **templates),
    data=config.Data(
      train=('unused.jsonl',),
      test=(str(questions),),
      max_prefix_tokens=220,
      max_suffix_tokens=120,
      unanswerable=unanswerable,
    ),
    eval=config.Eval(
      num_passages=2,
      max_new_tokens=6,
      num_active=(tokens.get('num_active', ROWS),),
    ),
  )
  values = schema.to_dict(cfg)
  del values['workdir']
  (directory / 'config.json').write_text(json.dumps(values))
  opened = frozen_base.open_base(cfg.base)
  rng = np.random.default_rng(0)
  table = rng.normal(0, 0.2, (ROWS, opened.config.embed_dim))
  table[:, 0] = tiny_models.LEVEL
  table_file.save(
    directory / 'table.safetensors',
    table.astype(np.float32),
    {'fingerprint': opened.fingerprint, 'versions': {'jax': '1'}},
  )
  summary = {
    'conditions': {'prompt': {'em': 1.0, 'f1': 2.0, 'n': 12}},
    'k': {'5': {'em': 3.0, 'f1': 4.0}},
  }
  (directory / 'summary.json').write_text(json.dumps(summary))
  (directory / 'data.json').write_text('{}')
  identity = {
    'fingerprint': opened.fingerprint,
    'tokenizer_sha256': opened.tokenizer.sha256,
  }
  (directory / 'base.json').write_text(json.dumps(identity))


def write_keys_values(directory: pathlib.Path, run: pathlib.Path) -> None:
  """Writes a run of random keys and values, made of a run of a table."""
  directory.mkdir()
  settings = json.loads((run / 'config.json').read_text())
  settings['virtual_tokens']['kind'] = 'kv'
  (directory / 'config.json').write_text(json.dumps(settings))
  finished = RunDir(run).read('--workdir')
  base = frozen_base.open_base(finished.config.base).config
  rng = np.random.default_rng(1)
  shape = (base.num_layers, ROWS, base.num_kv_heads, base.head_dim)
  trained_file.save(
    directory / trained_file.NAMES['kv'],
    {
      name: rng.normal(size=shape).astype(np.float32)
      for name in ('keys', 'values')
    },
    {'fingerprint': finished.bases[0]['fingerprint']},
  )


def settings(workdir, **changes) -> export_config.Config:
  """Settings of an export, whose gate asks all questions of the run."""
  found = export_config.Config(
    workdir=str(workdir),
    gate=export_config.Gate(questions=12, logits=4, sampled=1000, batch_size=4),
  )
  for name, value in changes.items():
    setattr(found, name, value)
  export_config.validate(found)
  return found


def quick(workdir, **changes) -> export_config.Config:
  """Settings for tests of other things than the figures of the gate."""
  gate = export_config.Gate(questions=4, logits=1, sampled=64, batch_size=4)
  return settings(workdir, **{'gate': gate, **changes})


def assert_needs_no_jax(module: str) -> None:
  """Imports a module where neither JAX nor PyTorch can be imported."""
  program = (
    'import sys\n'
    "sys.modules['jax'] = sys.modules['flax'] = sys.modules['torch'] = None\n"
    f'import {module}\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
