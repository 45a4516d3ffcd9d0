r"""Compares answers per second with `generate` of transformers in PyTorch.

    python benchmarks/answering.py --out benchmarks/answering_cpu.json

Both run SmolLM2-135M-Instruct in float32 on 8 prompts: passages, k virtual
tokens and a question, 600 tokens with k = 50. They generate 16 tokens for each
prompt, greedily and without an end token. Two cases are measured, in turns: one
value of k; and 8 values of k with the same passages, which transformers has to
read again for each k. PyTorch has its default number of threads. The tokens of
both are compared. --model takes random weights in one of the shapes of
`shapes.py` instead.
"""

import functools
import importlib.metadata
import json
import pathlib
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import shapes
import tokenizers
import torch
import transformers
from absl import flags as absl_flags

from vtokens import config
from vtokens.data.assemble import Example
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.trained_tokens import BranchTokens
from vtokens.host import paths
from vtokens.models import frozen_base
from vtokens.recipes import smollm2
from vtokens.settings import flags

_MODEL = absl_flags.DEFINE_string('model', 'smollm2', 'Or a name of a shape.')
_DTYPE = absl_flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
)
_OUT = absl_flags.DEFINE_string('out', None, 'JSON file for the figures.')
_REPEATS = absl_flags.DEFINE_integer(
  'repeats', 5, 'Timed turns; medians count.'
)
_BATCH = absl_flags.DEFINE_integer('batch', 8, 'Prompts at a time.')
_PREFIX = absl_flags.DEFINE_integer('prefix', 530, 'Tokens of passages.')
_PROMPT = absl_flags.DEFINE_integer('prompt', 20, 'Tokens of the question.')
_NEW = absl_flags.DEFINE_integer('new', 16, 'Tokens generated.')
_SWEEP = (1, 2, 3, 5, 10, 20, 30, 50)
_ONE = 50


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  found = re.search(
    r'model name\s*: (.*)', info.read_text() if info.exists() else ''
  )
  return found[1] if found else platform.processor()


def _path(directory: str) -> pathlib.Path:
  """The model: a GGUF file, or the directory with random weights."""
  if _MODEL.value == 'smollm2':
    return pathlib.Path(paths.resolve(smollm2.PATH))
  path = pathlib.Path(directory)
  shapes.save_random(_MODEL.value, path, _DTYPE.value)
  # A base has a tokenizer. Here the ids are given.
  words = tokenizers.models.WordLevel({'<eos>': 0}, unk_token='<eos>')
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), eos_token='<eos>'
  ).save_pretrained(path)
  return path


def _seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Median seconds of each run. Runs take turns, so drift affects all alike."""
  times: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(_REPEATS.value):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - began)
  return {name: statistics.median(found) for name, found in times.items()}


def _examples(rng: np.random.Generator, vocab: int) -> list[list[int]]:
  """Ids of a prefix and a question for each row, without special tokens."""
  size = _PREFIX.value + _PROMPT.value
  return rng.integers(100, vocab, (_BATCH.value, size)).tolist()


def main(argv):
  del argv
  with tempfile.TemporaryDirectory() as directory:
    _measure(_path(directory))


def _measure(path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  mesh = partitioning.make_mesh((-1, 1, 1))
  dtype: Any = _DTYPE.value
  base = frozen_base.load_base(config.Base(str(path), dtype), mesh)
  ids = _examples(rng, base.config.vocab_size)
  width = base.config.embed_dim
  # About as large as embeddings.
  table = rng.normal(0, 0.1, (max(_SWEEP), width)).astype(np.float32)
  answerer = Answerer(
    base, mesh, config.Decode(batch_size=_BATCH.value), seed=0
  )

  def ours(ks):
    rows = [
      [
        Example(
          prefix=np.array(row[: _PREFIX.value], np.int32),
          num_active=k,
          before=np.zeros(0, np.int32),
          after=np.array(row[_PREFIX.value :], np.int32),
          targets=np.zeros(0, np.int32),
        )
        for k in ks
      ]
      for row in ids
    ]
    cache = answerer.encode([row[0] for row in rows])
    out = answerer.start(
      rows,
      cache,
      BranchTokens(table),
      [''] * len(rows),
      [base.config.vocab_size] * len(ks),
      forced=_NEW.value,
    )
    return np.asarray(jax.block_until_ready(out.ids))

  of_gguf = path.suffix == '.gguf'
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent if of_gguf else path,
    gguf_file=path.name if of_gguf else None,
    dtype=getattr(torch, _DTYPE.value),
  ).eval()
  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  model.to(device)
  model.generation_config.eos_token_id = None
  embed = model.get_input_embeddings()

  def theirs(ks):
    out = []
    for k in ks:
      with torch.no_grad():
        text = embed(torch.tensor(ids, device=device))
        tokens = torch.from_numpy(table[:k]).to(text)
        tokens = tokens[None].expand(len(ids), -1, -1)
        x = torch.cat(
          [text[:, : _PREFIX.value], tokens, text[:, _PREFIX.value :]], dim=1
        )
        out.append(
          model.generate(
            inputs_embeds=x,
            attention_mask=torch.ones(
              x.shape[:2], dtype=torch.long, device=device
            ),
            max_new_tokens=_NEW.value,
            do_sample=False,
            pad_token_id=0,
          )
          .cpu()
          .numpy()
        )
    return np.stack(out, axis=1)

  results = {}
  for name, ks in (('one k', (_ONE,)), ('sweep of k', _SWEEP)):
    a, b = ours(ks), theirs(ks)
    answers = len(ids) * len(ks)
    seconds = _seconds(
      {
        'vtokens': functools.partial(ours, ks),
        'transformers': functools.partial(theirs, ks),
      }
    )
    results[name] = {
      'k': list(ks),
      'seconds': seconds,
      'answers_per_second': {n: answers / s for n, s in seconds.items()},
      'ratio': seconds['transformers'] / seconds['vtokens'],
      'equal_tokens': float((a == b).mean()),
    }
    print(name, json.dumps(results[name]), flush=True)
  report = {
    'model': _MODEL.value,
    'dtype': _DTYPE.value,
    'device': f'{jax.devices()[0].device_kind}, {_processor()}',
    'torch_threads': torch.get_num_threads(),
    'batch': _BATCH.value,
    'passages_tokens': _PREFIX.value,
    'question_tokens': _PROMPT.value,
    'new_tokens': _NEW.value,
    'repeats': _REPEATS.value,
    'versions': {
      name: importlib.metadata.version(name)
      for name in ('jax', 'torch', 'transformers')
    },
    'results': results,
  }
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  flags.run(main)
