"""Tests of vtokens.vllm_client: what it sends, and what it makes of answers.

They are next to a server that notes requests; vllm_test.py has vLLM's own.
"""

import base64
import dataclasses
import io
import json
import os

import decoder_cases
import family_models
import pytest
import safetensors.torch
import torch
import trained_runs
import transformers
import vllm_like_server

from vtokens.exports import trained_table
from vtokens.host import errors
from vtokens.models.families import registry, wrappers
from vtokens.serving import artifact, plug, vllm_client

PASSAGES, QUESTION = trained_runs.PASSAGES, trained_runs.QUESTION


@pytest.fixture
def server():
  with vllm_like_server.serve() as found:
    yield found


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A base with a chat template, and tables with and without one."""
  root = tmp_path_factory.mktemp('vllm')
  family_models.save(root / 'base', 'qwen')
  family_models.add_chat_template(root / 'base', parts=True)
  for name, chat in (('plain', False), ('chat', True)):
    trained_runs.write_run(root / name, root / 'base', chat=chat)
    source = trained_table.read(str(root / name))
    artifact.write(root / f'{name}-out', source.table)
  return root


def _client(place, name, url, **settings):
  return vllm_client.Client(
    url,
    'the-base',
    plug.load(place / f'{name}-out'),
    transformers.AutoTokenizer.from_pretrained(place / 'base'),
    **settings,
  )


def _decode(data: str) -> torch.Tensor:
  """As the server does, with what it demands of the base's model."""
  raw = io.BytesIO(base64.b64decode(data, validate=True))
  tensor = torch.load(raw, weights_only=True, map_location='cpu')
  assert tensor.layout == torch.strided
  assert tensor.is_floating_point()
  assert tensor.ndim == 2
  assert tensor.shape[1] == 64
  return tensor


@pytest.mark.parametrize('name', ['plain', 'chat'])
@pytest.mark.parametrize('k', [0, 3])
def test_the_whole_prompt(place, server, name, k):
  url, handler = server
  client = _client(
    place,
    name,
    url + '/',
    embedding=vllm_client.read_embedding(str(place / 'base')),
    key='secret',
  )
  settings = {'max_tokens': 16, 'temperature': 0, 'stop': ['\n']}
  assert client.complete(PASSAGES, QUESTION, k, **settings) == ' 1859'
  [(path, headers, body)] = handler.requests
  assert path == '/v1/completions'
  assert headers['Authorization'] == 'Bearer secret'
  embeds = _decode(body.pop('prompt_embeds'))
  assert body == {'model': 'the-base', **settings}
  # What a model with the table attached looks up.
  table = plug.load(place / f'{name}-out')
  model = transformers.AutoModelForCausalLM.from_pretrained(place / 'base')
  tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'base')
  plug.attach(model, table)
  ids = plug.prompt_ids(tokenizer, PASSAGES, QUESTION, k, table.meta)
  expected = model.get_input_embeddings()(torch.tensor(ids))
  torch.testing.assert_close(embeds, expected, rtol=0, atol=0)


def test_parts_of_a_chat(place, server):
  url, handler = server
  client = _client(place, 'chat', url)
  assert client.chat(PASSAGES, QUESTION, 3, max_tokens=16) == '1859'
  [(path, _, body)] = handler.requests
  assert path == '/v1/chat/completions'
  assert body['max_tokens'] == 16
  assert body['chat_template_kwargs'] == {
    'enable_thinking': False,
    'date_string': '26 Jul 2024',
  }
  [message] = body['messages']
  before, tokens, after = message['content']
  assert message['role'] == 'user'
  assert before == {
    'type': 'text',
    'text': '[1] Tower\nIt was completed in 1859.\n'
    '[2] A passage with [ref1] and [ref2] in its text.\n\n',
  }
  assert after == {
    'type': 'text',
    'text': f'Question: {QUESTION}\nAnswer:',
  }
  assert tokens.keys() == {'type', 'data'}
  assert tokens['type'] == 'prompt_embeds'
  rows = plug.load(place / 'chat-out').table[:3]
  assert torch.equal(_decode(tokens['data']), torch.from_numpy(rows))
  # No more than that is sent.
  assert len(base64.b64decode(tokens['data'])) < rows.nbytes + 2000


@pytest.mark.parametrize(
  'content',
  [
    "{{ m['content'] }}",
    "{{ m['content'] | trim }}",
    "{{ '' + m['content'] }}",
    "{% if m['content'] is not string %}{{ raise_exception('text alone') }}"
    "{% endif %}{{ m['content'] }}",
  ],
)
def test_a_chat_template_of_texts(place, server, content):
  """vLLM would put line breaks around the virtual tokens."""
  url, handler = server
  tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'base')
  template = tokenizer.chat_template
  start = template.index("{% if m['content'] is string")
  end = template.index('<|im_end|>\n{% endfor %}')
  tokenizer.chat_template = template[:start] + content + template[end:]
  client = vllm_client.Client(
    url, 'the-base', plug.load(place / 'chat-out'), tokenizer
  )
  with pytest.raises(errors.UserError, match='not as a list of parts'):
    client.chat(PASSAGES, QUESTION, 3)
  assert not handler.requests


def test_no_passages_no_empty_text(place, server):
  url, handler = server
  _client(place, 'chat', url).chat([], QUESTION, 1)
  [(_, _, body)] = handler.requests
  kinds = [part['type'] for part in body['messages'][0]['content']]
  assert kinds == ['prompt_embeds', 'text']


def test_tokens_that_were_not_trained_in_a_chat(place):
  client = _client(place, 'plain', 'http://localhost:1')
  with pytest.raises(errors.UserError, match='not trained inside a chat turn'):
    client.chat(PASSAGES, QUESTION, 3)
  with pytest.raises(errors.UserError, match='the embedding of the base'):
    client.complete(PASSAGES, QUESTION, 3)


def test_what_the_server_says(place, server):
  url, handler = server
  handler.status = 400
  client = _client(place, 'chat', url)
  with pytest.raises(errors.UserError, match=r'400: .*no prompt_embeds here'):
    client.chat(PASSAGES, QUESTION, 3)
  gone = _client(place, 'chat', 'http://localhost:1')
  with pytest.raises(errors.UserError, match='http://localhost:1/v1/chat'):
    gone.chat(PASSAGES, QUESTION, 3)


def _choice(content: str) -> bytes:
  return f'{{"choices": [{{"message": {{"content": {content}}}}}]}}'.encode()


@pytest.mark.parametrize(
  'answer',
  [
    b'<html>',
    b'\xff\xfe',
    b'null',
    b'[]',
    b'"choices"',
    b'[' * 200_000,
    b'{"a":' * 100_000,
    b'{"choices": []}',
    b'{"choices": null}',
    b'{"choices": {}}',
    b'{"choices": ["text"]}',
    b'{"choices": [{}]}',
    b'{"choices": [{"message": "text"}]}',
    *map(_choice, ['null', '7', 'true', '["1859"]', '{}', r'"\ud83d"']),
  ],
)
def test_an_answer_that_is_none(place, server, answer):
  url, handler = server
  handler.answer = answer
  client = _client(place, 'chat', url)
  with pytest.raises(errors.UserError, match='no answer as vLLM gives it') as e:
    client.chat(PASSAGES, QUESTION, 3)
  assert len(str(e.value)) < 1000


@pytest.mark.parametrize(
  'url',
  [
    *(
      'localhost:8000',
      'ftp://x',
      'file:///etc/passwd',
      'http://',
      '',
      None,
      7,
    ),
    *(
      'http:///v1',
      'http://a b',
      ' http://a',
      'http://a\n',
      'http://a\r\nX: 1',
    ),
    *(
      'http://a:x',
      'http://a:99999',
      'http://[::1',
      'http://a/?x=1',
      'http://a#',
    ),
    *('http://me:secret@a', 'http://a\\b', 'http://a\ud800'),
  ],
)
def test_a_url_that_is_none(place, url):
  with pytest.raises(errors.UserError, match=r'^url: expected http') as e:
    _client(place, 'chat', url)
  assert 'secret' not in str(e.value)


@pytest.mark.parametrize(
  'settings',
  [
    *(
      {'key': key} for key in ('sec\n', 'sec\r\nX: 1', 'schlüsec', None, b'sec')
    ),
    *({'timeout': t} for t in (0, -1, float('nan'), float('inf'), '5', None)),
    *({'timeout': t} for t in (True, 1e300)),
  ],
)
def test_other_settings_that_are_none(place, settings):
  [name] = settings
  with pytest.raises(errors.UserError, match=f'^{name}: expected') as e:
    _client(place, 'chat', 'http://localhost', **settings)
  assert name == 'timeout' or 'sec' not in str(e.value)


@pytest.mark.parametrize(
  'settings, said',
  [
    ({'stop': {'a set'}}, 'as JSON'),
    ({'temperature': float('nan')}, 'as JSON'),
    ({'stream': True}, 'stream'),
  ],
)
def test_settings_of_a_request(place, server, settings, said):
  url, handler = server
  with pytest.raises(errors.UserError, match=said):
    _client(place, 'chat', url).chat(PASSAGES, QUESTION, 3, **settings)
  assert not handler.requests


def test_embedding_that_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match='expected a model'):
    vllm_client.read_embedding(str(tmp_path))


@pytest.mark.parametrize('name', ['../{}', '{}/../outside', '/tmp/{}', '.', ''])
def test_an_embedding_from_elsewhere(place, tmp_path, name):
  outside = tmp_path / 'outside'
  outside.mkdir()
  weights = place / 'base' / 'model.safetensors'
  if not weights.exists():
    [weights, *_] = sorted((place / 'base').glob('*.safetensors'))
  (outside / 'model.safetensors').write_bytes(weights.read_bytes())
  (tmp_path / 'base').mkdir()
  name = name.replace('/tmp/{}', str(outside / 'model.safetensors'))
  name = name.replace('{}', 'outside/model.safetensors')
  content = {'weight_map': {'model.embed_tokens.weight': name}}
  index = tmp_path / 'base' / 'model.safetensors.index.json'
  index.write_text(json.dumps(content))
  with pytest.raises(
    errors.UserError, match=r'expected a plain file name|no f'
  ):
    vllm_client.read_embedding(str(tmp_path / 'base'))


@pytest.mark.parametrize(
  'index',
  [
    *('[]', '7', 'null', '{}', '{"weight_map": []}', '{"weight_map": null}'),
    *(
      '[' * 100_000,
      '\xff',
      '{"weight_map": {"model.embed_tokens.weight": 7}}',
    ),
    '{"weight_map": {"model.embed_tokens.weight": ["a"]}}',
    '{"weight_map": {"model.embed_tokens.weight": "a\\u0000b"}}',
    '{"weight_map": {"model.embed_tokens.weight": "absent.safetensors"}}',
  ],
)
def test_an_index_of_weights_that_is_none(tmp_path, index):
  (tmp_path / 'model.safetensors.index.json').write_text(index, 'latin-1')
  with pytest.raises(errors.UserError, match='expected a model') as e:
    vllm_client.read_embedding(str(tmp_path))
  assert len(str(e.value)) < 1000


def test_an_index_of_weights_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / 'model.safetensors.index.json')
  with pytest.raises(errors.UserError, match='is a pipe, expected a file'):
    vllm_client.read_embedding(str(tmp_path))


def test_an_embedding_in_the_home_directory(tmp_path, monkeypatch):
  tensor = torch.ones(3, 2)
  safetensors.torch.save_file(
    {'model.embed_tokens.weight': tensor}, tmp_path / 'model.safetensors'
  )
  monkeypatch.setenv('HOME', str(tmp_path.parent))
  found = vllm_client.read_embedding(f'~/{tmp_path.name}')
  assert torch.equal(found, tensor)


def test_the_embedding_of_every_base_is_found():
  names = {f.names['embedding'] for f in registry.families().values()}
  for wrapper in wrappers.WRAPPERS.values():
    names |= {
      before + 'embed_tokens.weight'
      for before, after in wrapper.names.items()
      if after == 'model.'
    }
  assert names <= set(vllm_client.EMBEDDINGS)


def test_the_embedding_of_a_multimodal_base(tmp_path):
  tensors = {
    'language_model.model.embed_tokens.weight': torch.ones(3, 2),
    'vision_tower.embed_tokens.weight': torch.zeros(3, 2),
  }
  safetensors.torch.save_file(tensors, tmp_path / 'model.safetensors')
  found = vllm_client.read_embedding(str(tmp_path))
  assert torch.equal(found, torch.ones(3, 2))


def test_an_embedding_of_another_shape(tmp_path):
  for tensor in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int8)):
    safetensors.torch.save_file(
      {'model.embed_tokens.weight': tensor}, tmp_path / 'model.safetensors'
    )
    with pytest.raises(errors.UserError, match='expected a matrix of floats'):
      vllm_client.read_embedding(str(tmp_path))


def test_embedding_of_another_base(place):
  with pytest.raises(errors.UserError, match=r'the embedding is \[3, 64\]'):
    _client(place, 'plain', 'http://x', embedding=torch.zeros(3, 64))


def test_table_of_another_format(place):
  table = plug.load(place / 'plain-out')
  tokens = dataclasses.replace(table.meta.tokens, ids=(1, 2, 3, 4, 5))
  meta = dataclasses.replace(table.meta, tokens=tokens)
  with pytest.raises(errors.UserError, match='as --to vtokens writes them'):
    vllm_client.Client(
      'http://x', 'm', artifact.Artifact(table.table, meta), None
    )


@pytest.mark.parametrize('case', ['gemma', 'minicpm3'])
def test_a_base_that_scales_its_embeddings(tmp_path, case):
  decoder_cases.save(tmp_path / 'base', case)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  table = trained_table.read(str(tmp_path / 'run')).table
  with pytest.raises(errors.UserError, match='multiplies the embeddings'):
    vllm_client.Client('http://x', 'm', table, None)


def test_needs_no_jax():
  trained_runs.assert_needs_no_jax('vtokens.vllm_client')
