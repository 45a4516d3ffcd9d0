"""A tiny base with two tables and keys and values, served by this process."""

import json
import shutil

import numpy as np
import served
import tiny_models
import trained_runs

from vtokens import answering, retrieve
from vtokens.retrieval import open_index, retrieval_config
from vtokens.server import local_backend
from vtokens.serving import table_file

NAMES = ('one', 'two', 'kv')


def write_runs(root):
  """Runs of one tiny base: tables `one` and `two`, keys and values `kv`.

  The table `two` is one that was trained to refuse.
  """
  tiny_models.save(
    root / 'base',
    max_position_embeddings=1024,
    num_hidden_layers=1,
    hidden_size=32,
    intermediate_size=48,
  )
  trained_runs.write_run(root / 'one', root / 'base')
  # So that the long instruction fits.
  path = root / 'one' / 'config.json'
  settings = json.loads(path.read_text())
  settings['data']['max_suffix_tokens'] = 260
  path.write_text(json.dumps(settings))
  trained_runs.write_keys_values(root / 'kv', root / 'one')
  shutil.copytree(root / 'one', root / 'two')
  settings['data']['unanswerable'] = 'refuse'
  # Bytes are tokens, and a blank would be the first of all answers.
  settings['templates']['answer'] = '{answer}'
  (root / 'two' / 'config.json').write_text(json.dumps(settings))
  path = root / 'two' / 'table.safetensors'
  values, metadata = table_file.load(path)
  table_file.save(path, np.ascontiguousarray(values[::-1]), metadata)


def serving(engine, root, **settings):
  """Serves all runs with an engine that has them; see `served.serving`."""

  def make(metrics):
    backend = local_backend.LocalBackend(engine, metrics)
    for name in NAMES:
      backend.load_now(name, str(root / name))
    return backend

  return served.serving(make, **settings)


def make_index(root, passages):
  """An index, by BM25, of {id, title, text}."""
  root.mkdir()
  rows = ''.join(json.dumps(passage) + '\n' for passage in passages)
  (root / 'corpus.jsonl').write_text(rows)
  record = {'question': 'What?', 'answers': ['a']}
  (root / 'questions.jsonl').write_text(json.dumps(record) + '\n')
  cfg = retrieval_config.Config(
    workdir=str(root / 'work'),
    index_dir=str(root / 'index'),
    corpus=retrieval_config.Corpus(paths=(str(root / 'corpus.jsonl'),)),
    questions=retrieval_config.Questions(
      paths=(str(root / 'questions.jsonl'),)
    ),
    retrievers={'bm25': retrieval_config.Retriever()},
  )
  retrieval_config.validate(cfg)
  retrieve.retrieve(cfg)
  return open_index.open_index(str(root / 'index'))


def open_engine(root):
  """An engine with the base of `write_runs`."""
  return answering.Engine.open(root / 'one', 'one', batch_size=2)
