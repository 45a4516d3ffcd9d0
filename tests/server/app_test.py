"""Tests of the server with OpenAI's client and a tiny base."""

import asyncio
import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import tiny_service
import torch
import transformers
from prometheus_client import parser

from vtokens.data.assemble import Assembler
from vtokens.data.records import GIVEN, Passage, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import Prompter, tokens_variant
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.method import kinds
from vtokens.models import frozen_base
from vtokens.run.workdir import RunDir
from vtokens.server import local_backend, questions
from vtokens.server.api_errors import ApiError
from vtokens.server.limits import Limits
from vtokens.server.metrics import Metrics

QUESTION = 'When was it completed?'
PASSAGES = ['It was completed in 1859.', 'Another tower.']
MESSAGES = [{'role': 'user', 'content': QUESTION}]
KEY = 'a-key-for-tests'


@pytest.fixture(scope='module')
def server(engine, place):
  with tiny_service.serving(engine, place) as found:
    yield found


def _ask(client, **fields):
  extra = {'passages': PASSAGES, **fields.pop('extra', {})}
  return client.chat.completions.create(
    **{'model': 'one', 'messages': MESSAGES, 'extra_body': extra, **fields}
  )


def _text(reply):
  return reply.choices[0].message.content


def _offline(place, table, k, records):
  """Texts of an evaluation."""
  finished = RunDir(place / table).read('')
  cfg = finished.config
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = frozen_base.load_base(cfg.base, mesh, cfg.context_length)
  cfg.eval.retriever, cfg.eval.num_passages = GIVEN, 2
  assembler = Assembler.for_run(base.tokenizer, cfg)
  evaluator = Evaluator(
    Answerer(base, mesh, cfg.eval, cfg.seed),
    Prompter(assembler, cfg.eval, cfg.seed),
  )
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  tokens = TrainedTokens('', finished.values, assembler, trainable)
  variant = tokens_variant(tokens, k)
  answers = evaluator.answers(records, [variant], label='')[variant.name]
  return [answer.text for answer in answers]


@pytest.mark.slow
def test_greedy_answers_are_those_of_an_evaluation(place, server):
  """Of many clients at once, with several tables and numbers of tokens."""
  records = [
    Record(
      id=f'q{i}',
      dataset='',
      question=f'When was tower {i} completed?',
      answers=(),
      passages={GIVEN: (Passage('', 'Tower', f'In 18{i}.'),) * (1 + i % 2)},
    )
    for i in range(5)
  ]
  asked = [
    (table, k, record, text)
    for table in tiny_service.NAMES
    for k in (1, 5)
    for record, text in zip(
      records, _offline(place, table, k, records), strict=True
    )
  ]
  assert len({text for *_, text in asked}) > 5
  random.Random(0).shuffle(asked)
  client = server.client()

  def ask(one):
    table, k, record, _ = one
    found = [{'title': p.title, 'text': p.text} for p in record.passages[GIVEN]]
    return _ask(
      client,
      model=table,
      messages=[{'role': 'user', 'content': record.question}],
      extra={'passages': found, 'k': k},
    )

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for (table, k, _, text), reply in zip(
      asked, pool.map(ask, asked), strict=True
    ):
      assert _text(reply) == text
      assert reply.model == table
      assert reply.vtokens['k'] == k


def test_a_stream_is_the_whole_answer(server):
  client = server.client()
  whole = _ask(client)
  events = list(
    _ask(client, stream=True, stream_options={'include_usage': True})
  )
  *parts, last = events
  text = ''.join(e.choices[0].delta.content or '' for e in parts)
  assert text == _text(whole) != ''
  assert events[0].choices[0].delta.role == 'assistant'
  assert events[0].vtokens == {'table': 'one', 'k': 5}
  assert last.choices == [] and last.usage == whole.usage
  finish = [e.choices[0].finish_reason for e in parts]
  assert finish == [None] * (len(parts) - 1) + [whole.choices[0].finish_reason]
  assert all(e.usage is None for e in parts)
  assert len({e.id for e in events}) == 1
  total = whole.usage.prompt_tokens + whole.usage.completion_tokens
  assert whole.usage.total_tokens == total
  bare = list(_ask(client, stream=True))
  assert len(bare) == len(parts) and all(e.choices for e in bare)


def test_completions_of_a_table(server):
  client = server.client()
  found = client.completions.create(
    model='one', prompt=QUESTION, extra_body={'passages': PASSAGES}
  )
  assert found.choices[0].text == _text(_ask(client))
  events = client.completions.create(
    model='one',
    prompt=[QUESTION],
    stream=True,
    extra_body={'passages': PASSAGES},
  )
  text = ''.join(event.choices[0].text for event in events)
  assert text == found.choices[0].text


def test_the_table_can_be_named_by_our_own_field(server):
  client = server.client()
  for fields in ({'model': 'base'}, {'model': 'two'}, {'model': ''}):
    reply = _ask(client, extra={'table': 'two'}, **fields)
    assert reply.vtokens['table'] == 'two'
  assert _text(reply) == _text(_ask(client, model='two'))


class TestBase:
  """The untouched base, against transformers."""

  @pytest.fixture(scope='class')
  def torch_model(self, place):
    directory = place / 'base'
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    return model, transformers.AutoTokenizer.from_pretrained(directory)

  def _generate(self, torch_model, ids, most):
    model, tokenizer = torch_model
    out = model.generate(
      torch.tensor([ids]), max_new_tokens=most, do_sample=False
    )
    return out[0, len(ids) :].tolist(), tokenizer

  def test_a_raw_prompt(self, server, torch_model):
    ids = torch_model[1].encode('Once upon', add_special_tokens=False)
    expected, tokenizer = self._generate(torch_model, ids, 8)
    found = server.client().completions.create(
      model='base', prompt='Once upon', max_tokens=8, logprobs=2
    )
    assert found.choices[0].text == tokenizer.decode(expected)
    assert found.usage.prompt_tokens == len(ids)
    logits = torch_model[0](torch.tensor([[*ids, *expected]])).logits[0]
    rows = torch.log_softmax(logits[len(ids) - 1 : -1], dim=-1)
    told = found.choices[0].logprobs
    np.testing.assert_allclose(
      told.token_logprobs,
      [row[i].item() for row, i in zip(rows, expected, strict=True)],
      atol=1e-4,
    )
    assert len(told.tokens) == len(told.text_offset) == 8

  def test_a_conversation(self, server, torch_model):
    messages = [
      {'role': 'system', 'content': 'Be short.'},
      {'role': 'user', 'content': 'Hello'},
      {'role': 'assistant', 'content': 'Hello.'},
      {'role': 'user', 'content': 'When?'},
    ]
    text = torch_model[1].apply_chat_template(
      messages, add_generation_prompt=True, tokenize=False
    )
    ids = torch_model[1].encode(text, add_special_tokens=False)
    expected, tokenizer = self._generate(torch_model, ids, 8)
    found = server.client().chat.completions.create(
      model='base', messages=messages, max_completion_tokens=8, logprobs=True
    )
    end = expected.index(258) if 258 in expected else None
    assert _text(found) == tokenizer.decode(expected[:end])
    told = found.choices[0].logprobs.content
    assert len(told) == found.usage.completion_tokens
    assert all(one.top_logprobs == [] for one in told)

  def test_with_passages(self, server, engine):
    """It gets the instruction of the run."""
    from vtokens import answering

    for create, condition in (
      (server.client().chat.completions.create, 'chat_prompt'),
      (server.client().completions.create, 'prompt'),
    ):
      chat = condition == 'chat_prompt'
      asked = {'messages': MESSAGES} if chat else {'prompt': QUESTION}
      found = create(model='base', extra_body={'passages': PASSAGES}, **asked)
      [expected] = engine.answer(
        [
          answering.Request(
            question=QUESTION,
            passages=PASSAGES,
            table='one',
            condition=condition,
          )
        ]
      )
      choice = found.choices[0]
      assert (_text(found) if chat else choice.text) == expected.text
      assert found.usage.prompt_tokens == expected.prompt_tokens


def test_stop(server):
  client = server.client()
  text = (
    client.completions.create(model='base', prompt='Once', max_tokens=16)
    .choices[0]
    .text
  )
  stop = text[len(text) // 2]
  at = text.index(stop)
  for stream in (False, True):
    found = client.completions.create(
      model='base', prompt='Once', max_tokens=16, stop=stop, stream=stream
    )
    events = list(found) if stream else [found]
    assert ''.join(e.choices[0].text for e in events) == text[:at]
    assert events[-1].choices[0].finish_reason == 'stop'


def test_draws_depend_on_the_seed(server):
  client = server.client()

  def draw(**fields):
    return _text(_ask(client, temperature=1.5, **fields))

  assert draw(seed=3) == draw(seed=3)
  assert len({draw(seed=i) for i in range(4)}) > 1
  assert len({draw() for _ in range(4)}) > 1
  assert draw(seed=3, top_p=1e-6) == _text(_ask(client))


def test_a_bias_of_refusals(server):
  client = server.client()
  plain = _text(_ask(client, model='two'))
  found = _text(_ask(client, model='two', extra={'refusal_bias': 1000}))
  assert found.startswith('I')
  assert not plain.startswith('I')


@pytest.mark.parametrize(
  'fields, status, param',
  [
    ({'n': 2}, 400, 'n'),
    ({'extra': {'k': 6}}, 400, 'k'),
    ({'model': 'base', 'extra': {'k': 1}}, 400, 'k'),
    ({'model': 'base', 'extra': {'refusal_bias': 1}}, 400, 'refusal_bias'),
    ({'extra': {'refusal_bias': -0.5}}, 400, None),
    ({'model': 'none'}, 404, 'model'),
    ({'extra': {'table': 'none'}}, 404, 'table'),
    ({'extra': {'table': 'two'}}, 400, 'table'),
    ({'max_tokens': 513}, 400, 'max_tokens'),
    ({'max_completion_tokens': 513}, 400, 'max_completion_tokens'),
    ({'top_logprobs': 1}, 400, 'top_logprobs'),
    ({'extra': {'num_passages': 2}}, 400, 'num_passages'),
    ({'messages': [{'role': 'user', 'content': ' '}]}, 400, 'messages[0]'),
    (
      {'messages': [*MESSAGES, {'role': 'assistant', 'content': 'a'}]},
      400,
      'messages[1]',
    ),
    (
      {'messages': [{'role': 'system', 'content': 'a'}, *MESSAGES]},
      400,
      'messages[0]',
    ),
    ({'messages': [{'role': 'user', 'content': 'q' * 400}]}, 400, None),
  ],
)
@pytest.mark.parametrize('stream', [False, True])
def test_refusals(server, fields, status, param, stream):
  with pytest.raises(openai.APIStatusError) as caught:
    _ask(server.client(), stream=stream, **fields)
  assert caught.value.status_code == status
  assert caught.value.body['param'] == param
  assert param is None or caught.value.body['message'].startswith(param)
  assert server.service.gate.inside == 0


def test_other_addresses_and_bodies(server):
  chat = '/v1/chat/completions'
  with httpx.Client(base_url=server.url) as client:
    for method, path, settings, status in (
      ('GET', '/none', {}, 404),
      ('GET', chat, {}, 405),
      ('POST', chat, {'content': b'{}'}, 415),
      ('POST', chat, {'json': {}, 'headers': {'Host': 'evil.example'}}, 421),
      ('GET', '/', {'headers': {'Host': 'evil.example:8000'}}, 421),
      ('POST', '/v1/search', {'json': {'query': 'a'}}, 404),
      ('POST', '/v1/tables', {'json': {}}, 403),
      ('DELETE', '/v1/tables/one', {}, 403),
      ('GET', '/v1/models/none', {}, 404),
    ):
      reply = client.request(method, path, **settings)
      assert reply.status_code == status, (method, path)
      assert reply.json()['error']['message']
      assert reply.headers['X-Content-Type-Options'] == 'nosniff'
    assert client.get('/health').json() == {'status': 'ok'}
    assert client.get('/ready').json() == {'status': 'ready'}
  names = [model.id for model in server.client().models.list()]
  assert names == [*tiny_service.NAMES, 'base']
  assert server.client().models.retrieve('two').vtokens['k'] == 5


class TestLimits:
  @pytest.fixture(scope='class')
  def server(self, engine, place):
    limits = Limits(body_bytes=2000, queue=2)
    with tiny_service.serving(
      engine, place, limits=limits, last_message=True
    ) as found:
      yield found

  def test_body(self, server):
    with pytest.raises(openai.APIStatusError) as caught:
      _ask(server.client(), extra={'passages': ['a' * 2000]})
    assert caught.value.status_code == 413

    def parts():
      for _ in range(3):
        yield b' ' * 1000

    reply = httpx.post(
      f'{server.url}/v1/completions',
      content=parts(),
      headers={'Content-Type': 'application/json'},
    )
    assert reply.status_code == 413

  def test_queue(self, server):
    gate = server.service.gate
    with gate.enter(), gate.enter():
      with pytest.raises(openai.RateLimitError) as caught:
        _ask(server.client())
    assert int(caught.value.response.headers['Retry-After']) >= 1
    assert _text(_ask(server.client()))

  def test_the_end(self, server):
    server.service.gate.closed = True
    try:
      with pytest.raises(openai.InternalServerError) as caught:
        _ask(server.client())
      assert caught.value.status_code == 503
      assert httpx.get(f'{server.url}/ready').status_code == 503
      assert httpx.get(f'{server.url}/health').status_code == 200
    finally:
      server.service.gate.closed = False

  def test_the_last_message_alone(self, server):
    client = server.client()
    more = [{'role': 'system', 'content': 'Be short.'}, *MESSAGES]
    assert _text(_ask(client, messages=more)) == _text(_ask(client))


def test_time(engine, place, monkeypatch):
  encode, later = engine.prefixes.caches, threading.Event()

  def slowly(*arguments):
    assert later.wait(60)
    return encode(*arguments)

  monkeypatch.setattr(engine.prefixes, 'caches', slowly)
  limits = Limits(seconds=1.0)
  with tiny_service.serving(engine, place, limits=limits) as server:
    try:
      with pytest.raises(openai.InternalServerError) as caught:
        _ask(server.client())
    finally:
      later.set()
    assert caught.value.status_code == 504
    assert server.service.gate.inside == 0


def test_a_client_that_sends_slowly(engine, place):
  limits = Limits(seconds=0.5)
  with tiny_service.serving(engine, place, limits=limits) as server:

    def parts():
      yield b'{'
      time.sleep(1.5)
      yield b'}'

    reply = httpx.post(
      f'{server.url}/v1/completions',
      content=parts(),
      headers={'Content-Type': 'application/json'},
    )
    assert reply.status_code == 408


def _value(server, name, **labels):
  text = httpx.get(f'{server.url}/metrics').text
  for family in parser.text_string_to_metric_families(text):
    for sample in family.samples:
      if sample.name == name and labels.items() <= sample.labels.items():
        return sample.value
  raise AssertionError(f'no {name} {labels} in {text}')


def _wait(condition):
  last = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < last
    time.sleep(0.001)


def test_a_client_that_goes_away(server):
  """Its question is dropped, streamed or not."""
  client = server.client()
  before = _value(server, 'vtokens_dropped_questions_total')
  with client.completions.create(
    model='base', prompt='Once', max_tokens=500, stream=True
  ) as stream:
    next(iter(stream))
  _wait(lambda: not server.service.gate.inside)
  body = json.dumps({'model': 'base', 'prompt': 'Once', 'max_tokens': 500})
  host, port = server.url.removeprefix('http://').split(':')
  with socket.create_connection((host, int(port))) as connection:
    connection.sendall(
      f'POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n'
      f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'
      f'{body}'.encode()
    )
    _wait(lambda: server.service.gate.inside)
  _wait(lambda: not server.service.gate.inside)
  assert _value(server, 'vtokens_dropped_questions_total') == before + 2
  gone = [event for event in server.events() if event.get('gone')]
  assert len(gone) == 2
  assert _text(_ask(client))


def test_a_mistake_of_the_server(server, engine, monkeypatch):
  """It is no fault of the client, and other questions are answered."""

  def fail(*unused):
    raise RuntimeError('out of memory')

  names = ('vtokens_backend_failures_total', 'vtokens_dropped_questions_total')
  before = [_value(server, name) for name in names]
  with monkeypatch.context() as patch:
    patch.setattr(engine.prefixes, 'caches', fail)
    with pytest.raises(openai.InternalServerError) as caught:
      _ask(server.client())
  assert caught.value.status_code == 500
  failures, dropped = (_value(server, name) for name in names)
  assert [failures, dropped] == [before[0] + 1, before[1]]
  [told] = [event for event in server.events() if 'error' in event]
  assert 'out of memory' in told['error'] and told['status'] == 500
  assert _text(_ask(server.client()))


def test_metrics_and_log(engine, place):
  with tiny_service.serving(engine, place) as server:
    reply = _ask(server.client())
    assert _text(_ask(server.client())) == _text(reply)
    assert _value(server, 'vtokens_prefixes_total', kind='found') >= 1
    with pytest.raises(openai.NotFoundError):
      server.client().get('/none/of/these', cast_to=dict)
    chat = '/v1/chat/completions'
    count = 'vtokens_requests_total'
    assert _value(server, count, path=chat, status='200') == 2
    assert _value(server, count, path='other', status='404') == 1
    for kind in ('prompt', 'answer'):
      field = 'completion' if kind == 'answer' else kind
      found = _value(server, 'vtokens_tokens_total', model='one', kind=kind)
      assert found == 2 * getattr(reply.usage, f'{field}_tokens')
    assert _value(server, 'vtokens_tables') == len(tiny_service.NAMES)
    assert _value(server, 'vtokens_first_text_seconds_count') == 2
    event = server.events()[0]
    assert event['path'] == chat and event['status'] == 200
    assert (event['model'], event['k'], event['passages']) == ('one', 5, 2)
    assert f'chatcmpl-{event["id"]}' == reply.id
    assert QUESTION not in server.log.getvalue()
  with tiny_service.serving(engine, place, texts=True) as server:
    _ask(server.client())
    # The line comes after the reply.
    _wait(server.events)
    assert server.events()[0]['question'] == QUESTION


class TestKey:
  @pytest.fixture(scope='class')
  def server(self, engine, place):
    with tiny_service.serving(engine, place, key=KEY) as found:
      yield found

  def test_who_is_let_in(self, server):
    assert _text(_ask(server.client()))
    for path in ('/v1/models', '/metrics', '/v1/none'):
      assert httpx.get(f'{server.url}{path}').status_code == 401
    for path in ('/', '/health', '/ready'):
      assert httpx.get(f'{server.url}{path}').status_code == 200
    with pytest.raises(openai.AuthenticationError):
      _ask(server.client(api_key='another-key'))
    assert KEY not in server.log.getvalue()

  def test_tables_come_and_go(self, server, place):
    client = server.client()
    body = {'name': 'three', 'directory': str(place / 'two')}
    made = client.post('/tables', body=body, cast_to=dict)
    assert made['id'] == 'three'
    assert _text(_ask(client, model='three')) == _text(
      _ask(client, model='two')
    )
    with pytest.raises(openai.ConflictError):
      client.post('/tables', body=body, cast_to=dict)
    with _ask(client, model='three', max_tokens=400, stream=True) as stream:
      next(iter(stream))
      assert client.delete('/tables/three', cast_to=dict)['deleted']
      # It goes on with what it had.
      assert [e.choices[0].finish_reason for e in stream][-1]
    for call in (
      lambda: _ask(client, model='three'),
      lambda: client.delete('/tables/three', cast_to=dict),
    ):
      with pytest.raises(openai.NotFoundError):
        call()
    with pytest.raises(openai.BadRequestError, match='no finished run'):
      client.post('/tables', body={**body, 'directory': '/none'}, cast_to=dict)
    names = [event['event'] for event in server.events()]
    assert 'table_loaded' in names and 'table_unloaded' in names

  def test_loaded_and_unloaded_at_once(self, server, place):
    """The reply to a load describes the table that was loaded."""
    client = server.client()
    body = {'name': 'short', 'directory': str(place / 'two')}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      for _ in range(5):
        made = pool.submit(client.post, '/tables', body=body, cast_to=dict)
        deleted = False
        while not deleted:
          assert not made.done() or made.result()['id'] == 'short'
          with contextlib.suppress(openai.NotFoundError):
            deleted = client.delete('/tables/short', cast_to=dict)['deleted']
        assert made.result()['vtokens']['k'] == 5

  def test_a_name_with_a_slash(self, server, place):
    client = server.client()
    body = {'name': 'team/new', 'directory': str(place / 'two')}
    client.post('/tables', body=body, cast_to=dict)
    assert client.models.retrieve('team/new').vtokens['k'] == 5
    assert client.delete('/tables/team/new', cast_to=dict)['deleted']
    with pytest.raises(openai.NotFoundError):
      client.get('/models/team/new', cast_to=dict)

  def test_a_host_with_a_path(self, server):
    """Only the path that is asked for tells whether a key is needed."""
    host, port = server.url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as connection:
      connection.sendall(
        b'GET /v1/models HTTP/1.1\r\nHost: x/health?\r\n'
        b'Connection: close\r\n\r\n'
      )
      assert connection.recv(1 << 16).startswith(b'HTTP/1.1 401 ')


def test_two_tables_of_one_name_at_once(engine, place):
  """The second is refused: its directory would not be served."""

  async def load():
    backend = local_backend.LocalBackend(engine, Metrics())
    try:
      return backend, await asyncio.gather(
        *(backend.load('new', str(place / name)) for name in ('one', 'two')),
        return_exceptions=True,
      )
    finally:
      served = engine.tables['new'].source.directory
      assert backend.tables['new'].directory == served
      unloaded.extend(
        await asyncio.gather(
          *(backend.unload('new') for _ in range(2)), return_exceptions=True
        )
      )
      with pytest.raises(ApiError) as caught:
        await anext(backend.answer(question))
      assert caught.value.status == 404
      await backend.close()

  question = questions.Question(
    id='q',
    table='new',
    k=1,
    text=QUESTION,
    messages=(),
    passages=(),
    sampling=questions.Sampling(max_tokens=1),
  )
  unloaded = []
  backend, (first, second) = asyncio.run(load())
  assert first.directory == str(place / 'one')
  assert isinstance(second, ApiError) and second.status == 409
  assert unloaded[0] is None
  assert isinstance(unloaded[1], ApiError) and unloaded[1].status == 404
  assert not backend.tables and 'new' not in engine.tables


def test_passages_are_retrieved(engine, place):
  index = tiny_service.make_index(
    place / 'index',
    [
      {'id': f'p{i}', 'title': 'Tower', 'text': 'completed ' * i + 'once'}
      for i in range(5)
    ],
  )
  with tiny_service.serving(
    engine, place, index=index, num_passages=2
  ) as server:
    client = server.client()
    given = client.chat.completions.create(model='one', messages=MESSAGES)
    expected = index.search(QUESTION, 2)
    assert [p['id'] for p in given.passages] == [p.id for p in expected]
    assert [p['score'] for p in given.passages] == [p.score for p in expected]
    assert len(expected) == 2
    shown = [{'title': p['title'], 'text': p['text']} for p in given.passages]
    same = _ask(client, extra={'passages': shown})
    assert _text(given) == _text(same)
    assert not hasattr(same, 'passages')
    events = client.chat.completions.create(
      model='one',
      messages=MESSAGES,
      stream=True,
      extra_body={'num_passages': 1},
    )
    assert [p['id'] for p in next(iter(events)).passages] == [expected[0].id]
    none = _ask(client, extra={'passages': []})
    assert none.usage.prompt_tokens < given.usage.prompt_tokens
    # The base is asked as it is.
    bare = client.chat.completions.create(model='base', messages=MESSAGES)
    assert not hasattr(bare, 'passages')
    found = client.post(
      '/search', body={'query': QUESTION, 'num_passages': 3}, cast_to=dict
    )
    assert [p['text'] for p in found['passages']] == [
      p.text for p in index.search(QUESTION, 3)
    ]
