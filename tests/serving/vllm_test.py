"""Tests with a server of vLLM; `.ci/vllm` installs one and runs them.

VTOKENS_VLLM names its program `vllm`, of an environment of its own: vLLM pins
versions of packages that vtokens needs, too. Without it they are left out.
"""

import contextlib
import json
import os
import pathlib
import urllib.request

import family_models
import gguf_runs
import our_answers
import pytest
import recipes
import served
import server_process
import trained_runs
import transformers

from vtokens import export
from vtokens.exports import trained_table
from vtokens.host import errors
from vtokens.server import remote_backend, remote_tables
from vtokens.serving import artifact, plug, vllm_client

if not os.environ.get('VTOKENS_VLLM'):
  pytest.skip('VTOKENS_VLLM is not set: .ci/vllm', allow_module_level=True)
VLLM = pathlib.Path(os.environ['VTOKENS_VLLM'])
if not VLLM.is_file():
  raise FileNotFoundError(f'VTOKENS_VLLM: {VLLM} is not there')

WITH_HF = 'vLLM, with hf (tested here)'
UNCHANGED = 'vLLM, with the unchanged base (tested here)'
# vLLM has attention on CPUs for heads of 32 and more.
HEADS = {'num_attention_heads': 2, 'num_key_value_heads': 1}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A base in one file; tables for plain prompts and chats, and exports."""
  root = tmp_path_factory.mktemp('vllm')
  family_models.save(
    root / 'base', 'qwen', ascii_only=True, max_shard_size='1GB', **HEADS
  )
  family_models.add_chat_template(root / 'base', parts=True)
  family_models.say_line_breaks(root / 'base', 20.0)
  for name, chat in (('plain', False), ('chat', True)):
    trained_runs.write_run(root / name, root / 'base', chat=chat)
    artifact.write(
      root / f'{name}-out', trained_table.read(str(root / name)).table
    )
  export.export(trained_runs.quick(root / 'plain'), 'hf', str(root / 'hf'))
  return root


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
  """A base in several files and its export."""
  root = tmp_path_factory.mktemp('shards')
  family_models.save(root / 'base', 'llama3', ascii_only=True, **HEADS)
  family_models.say_line_breaks(root / 'base', 20.0)
  trained_runs.write_run(root / 'plain', root / 'base')
  export.export(trained_runs.quick(root / 'plain'), 'hf', str(root / 'hf'))
  return root


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
    command, f'{address}/health', log, env=env, within=300
  ):
    yield address


def _answers_to(asked, heading: str, address: str, k: int) -> list[str]:
  """Those that the recipe's lines have."""
  return [
    recipes.execute(
      heading, address, k, passages=one.passages, question=one.question
    )['answer']
    for one in asked
  ]


@contextlib.contextmanager
def _endpoint(kind: str, address: str, **tables: pathlib.Path):
  """OpenAI's client of our own endpoint with vLLM behind it."""

  def make(metrics):
    del metrics
    reader = remote_tables.Reader(kind, address, 'base')
    backend = remote_backend.RemoteBackend(
      kind, address, reader, model='', key=''
    )
    for name, directory in tables.items():
      backend.load_now(name, str(directory))
    return backend

  with served.serving(make) as server:
    yield server.client()


def _same_through_the_endpoint(client, model: str, asked, k: int) -> None:
  """Whole and streamed answers are ours."""
  for one in asked:
    fields = {
      'model': model,
      'messages': [{'role': 'user', 'content': one.question}],
      'max_tokens': 16,
      'extra_body': {'passages': one.passages, 'k': k},
    }
    whole = client.chat.completions.create(**fields)
    # Line breaks before the first text do not end an answer.
    expected = one.text.strip().partition('\n')[0].strip()
    assert whole.choices[0].message.content == expected
    events = client.chat.completions.create(**fields, stream=True)
    parts = [event.choices[0].delta.content or '' for event in events]
    assert ''.join(parts) == expected


@pytest.mark.slow
@pytest.mark.parametrize('files', ['place', 'shards'])
def test_hf(files, request, monkeypatch, tmp_path):
  """A base in one file, all of which vLLM reads, and one with an index."""
  root = request.getfixturevalue(files)
  recipes.enter(root, 'hf', monkeypatch)
  with _serving(WITH_HF, tmp_path / 'log') as address:
    for k in (1, trained_runs.ROWS):
      asked = our_answers.ask(root / 'plain', k)
      found = _answers_to(asked, WITH_HF, address, k)
      assert found == [one.line for one in asked]
      with _endpoint('openai', address, table=root / 'hf') as client:
        _same_through_the_endpoint(client, 'table', asked, k)
    with urllib.request.urlopen(f'{address}/version') as answer:
      version = json.load(answer)['version'].partition('+')[0]
  assert f'vLLM {version} ' in recipes.PAGE.read_text()


@pytest.mark.slow
def test_a_base_in_gguf(tmp_path, monkeypatch):
  """As `--to hf-base` writes it: base and table in one directory."""
  gguf_runs.save(
    tmp_path,
    'llama_tied_q4_0',
    ascii_only=True,
    line_breaks=20.0,
    **HEADS,
  )
  settings = gguf_runs.settings(tmp_path, questions=4, logits=1)
  export.export(settings, 'hf-base', str(tmp_path / 'hf-base'))
  (tmp_path / 'base').symlink_to('hf-base')
  recipes.enter(tmp_path, 'hf-base', monkeypatch)
  with _serving(UNCHANGED, tmp_path / 'log') as address:
    for k in (1, trained_runs.ROWS):
      asked = our_answers.ask(tmp_path / 'run', k)
      found = _answers_to(asked, UNCHANGED, address, k)
      assert found == [one.line for one in asked]


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
      'max_tokens': 16,
      'temperature': 0,
      'repetition_penalty': 1.0,
      'stop': ['\n'],
    }
    for k in (1, 3, trained_runs.ROWS):
      asked = our_answers.ask(place / 'plain', k)
      found = _answers_to(asked, UNCHANGED, address, k)
      assert found == [one.line for one in asked]
      asked = our_answers.ask(place / 'chat', k)
      for send in (clients['chat'].complete, clients['chat'].chat):
        found = [
          send(one.passages, one.question, k, **settings) for one in asked
        ]
        assert found == [one.line for one in asked]
    with _endpoint(
      'vllm', address, plain=place / 'plain-out', chat=place / 'chat-out'
    ) as client:
      for name in ('plain', 'chat'):
        asked = our_answers.ask(place / name, 3)
        _same_through_the_endpoint(client, name, asked, 3)
      base = client.chat.completions.create(
        model='base',
        messages=[{'role': 'user', 'content': 'When?'}],
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
        extra_body={'passages': ['It was in 1859.']},
      )
      assert base.usage.completion_tokens == 4
      told = base.choices[0].logprobs.content
      assert [len(one.top_logprobs) for one in told] == [2] * 4
    # As a server refuses.
    with pytest.raises(errors.UserError, match='400'):
      clients['plain'].complete(['One.'], 'Who?', 3, max_tokens=-1)
