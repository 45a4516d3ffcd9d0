"""Tests with a server of vLLM; `.ci/vllm` installs one and runs them.

VTOKENS_VLLM names its program `vllm`, of an environment of its own: vLLM pins
versions of packages that vtokens needs, too. Without it they are left out.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import urllib.request

import export_test
import family_models
import pytest
import recipes
import server_process
import transformers

from vtokens import config, errors, export, plug, vllm_client
from vtokens.data import training_set
from vtokens.exports import artifact, reference, run

if not os.environ.get('VTOKENS_VLLM'):
  pytest.skip('VTOKENS_VLLM is not set: .ci/vllm', allow_module_level=True)
VLLM = pathlib.Path(os.environ['VTOKENS_VLLM'])
if not VLLM.is_file():
  raise FileNotFoundError(f'VTOKENS_VLLM: {VLLM} is not there')

WITH_HF = 'vLLM, with hf (tested here)'
UNCHANGED = 'vLLM, with the unchanged base (tested here)'
# vLLM has attention on CPUs for heads of 32 and more.
HEADS = {'num_attention_heads': 2, 'num_key_value_heads': 1}
# Of an answer, as in the recipes.
MOST = 16


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A base in one file; tables for plain prompts and chats, and exports."""
  root = tmp_path_factory.mktemp('vllm')
  family_models.save(
    root / 'base', 'qwen', ascii_only=True, max_shard_size='1GB', **HEADS
  )
  family_models.add_chat_template(root / 'base', parts=True)
  for name, chat in (('plain', False), ('chat', True)):
    export_test.write_run(root / name, root / 'base', chat=chat)
    artifact.write(root / f'{name}-out', run.read(str(root / name)).table)
  export.export(export_test._quick(root / 'plain'), 'hf', str(root / 'hf'))
  return root


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
  """A base in several files and its export."""
  root = tmp_path_factory.mktemp('shards')
  family_models.save(root / 'base', 'llama3', ascii_only=True, **HEADS)
  export_test.write_run(root / 'plain', root / 'base')
  export.export(export_test._quick(root / 'plain'), 'hf', str(root / 'hf'))
  return root


def _asked(root: pathlib.Path, name: str, k: int) -> list[tuple]:
  """Passages and question, and our answer with k tokens: its first line."""
  source = run.read(str(root / name))
  table = dataclasses.replace(
    source.table, meta=dataclasses.replace(source.table.meta, num_trained=k)
  )
  records = training_set.read_held_out(
    source.config, 'test', 12, training_set.bad_records(source.config.data)
  ).records
  decode = config.Decode(
    batch_size=12, max_new_tokens=MOST, stop_at_newline=False
  )
  probes = reference.probe(
    source.base,
    table,
    table.table,
    records,
    decode,
    num_passages=2,
    num_logits=0,
    seed=0,
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(root / 'base')
  return [
    (
      list(one.passages),
      one.record.question,
      tokenizer.decode(one.answer, skip_special_tokens=True).split('\n')[0],
    )
    for one in probes
  ]


@contextlib.contextmanager
def _serving(heading: str, log: pathlib.Path):
  """Runs the command of a recipe in the working directory; its address."""
  port = server_process.free_port()
  program, *arguments = recipes.command(heading, port)
  assert program == 'vllm'
  command = [str(VLLM), *arguments, '--host', '127.0.0.1', '--enforce-eager']
  env = {
    **os.environ,
    'HF_HUB_OFFLINE': '1',
    'KMP_BLOCKTIME': '0',
    'OMP_NUM_THREADS': '1',
    'VLLM_CPU_KVCACHE_SPACE': '1',
    'VLLM_NO_USAGE_STATS': '1',
  }
  # Of the environment that this program runs in.
  env.pop('PYTHONPATH', None)
  address = f'http://127.0.0.1:{port}'
  with server_process.running(
    command, f'{address}/health', log, env=env, within=240
  ):
    yield address


def _answers_to(asked: list[tuple], heading: str, address: str, k: int):
  """Those that the recipe's lines have."""
  return [
    recipes.execute(heading, address, k, passages=passages, question=question)[
      'answer'
    ]
    for passages, question, _ in asked
  ]


@pytest.mark.slow
@pytest.mark.parametrize('files', ['place', 'shards'])
def test_hf(files, request, monkeypatch, tmp_path):
  """A base in one file, all of which vLLM reads, and one with an index."""
  root = request.getfixturevalue(files)
  recipes.enter(root, 'hf', monkeypatch)
  with _serving(WITH_HF, tmp_path / 'log') as address:
    for k in (1, export_test.ROWS):
      asked = _asked(root, 'plain', k)
      assert _answers_to(asked, WITH_HF, address, k) == [a for *_, a in asked]
    with urllib.request.urlopen(f'{address}/version') as found:
      version = json.load(found)['version'].partition('+')[0]
  assert f'vLLM {version} ' in recipes.PAGE.read_text()


@pytest.mark.slow
def test_the_unchanged_base(place, monkeypatch, tmp_path):
  recipes.enter(place, 'plain-out', monkeypatch)
  tokenizer = transformers.AutoTokenizer.from_pretrained('base')
  embedding = vllm_client.read_embedding('base')
  with _serving(UNCHANGED, tmp_path / 'log') as address:
    clients = {
      name: vllm_client.Client(
        address, 'base', plug.load(f'{name}-out'), tokenizer, embedding
      )
      for name in ('plain', 'chat')
    }
    settings = {
      'max_tokens': MOST,
      'temperature': 0,
      'repetition_penalty': 1.0,
      'stop': ['\n'],
    }
    lines = []
    for k in (1, 3, export_test.ROWS):
      asked = _asked(place, 'plain', k)
      expected = [answer for *_, answer in asked]
      assert _answers_to(asked, UNCHANGED, address, k) == expected
      lines += expected
      asked = _asked(place, 'chat', k)
      expected = [answer for *_, answer in asked]
      for ask in (clients['chat'].complete, clients['chat'].chat):
        found = [ask(*one[:2], k, **settings) for one in asked]
        assert found == expected
      lines += expected
    # Without them, and as a server says what it refuses.
    passages, question, _ = asked[0]
    assert clients['plain'].complete(passages, question, 0, **settings)
    with pytest.raises(errors.UserError, match='400'):
      clients['plain'].complete(passages, question, 3, max_tokens=-1)
  assert len(set(lines)) > len(lines) / 4
