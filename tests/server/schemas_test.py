"""Tests of vtokens.server.schemas."""

import json

import pytest

from vtokens.server import schemas
from vtokens.server.api_errors import ApiError

CHAT = {'model': 't', 'messages': [{'role': 'user', 'content': 'When?'}]}
TEXT = {'model': 't', 'prompt': 'When?'}


def _chat(**fields):
  data = json.dumps({**CHAT, **fields}).encode()
  return schemas.parse(schemas.ChatRequest, data)


@pytest.mark.parametrize(
  'fields, param',
  [
    ({'n': 2}, 'n'),
    ({'n': True}, 'n'),
    ({'tools': [{'type': 'function'}]}, 'tools'),
    ({'logit_bias': {'5': 1}}, 'logit_bias'),
    ({'presence_penalty': 0.5}, 'presence_penalty'),
    ({'response_format': {'type': 'json_object'}}, 'response_format'),
    ({'reasoning_effort': 'high'}, 'reasoning_effort'),
    ({'temperature': 2.5}, 'temperature'),
    ({'temperature': '0'}, 'temperature'),
    ({'temperature': -0.1}, 'temperature'),
    ({'top_p': 0}, 'top_p'),
    ({'max_tokens': 0}, 'max_tokens'),
    ({'max_tokens': 1.5}, 'max_tokens'),
    ({'k': 0}, 'k'),
    ({'k': True}, 'k'),
    ({'refusal_bias': '1'}, 'refusal_bias'),
    ({'seed': 'x'}, 'seed'),
    ({'stop': ['a', '']}, 'stop[1]'),
    ({'stop': ''}, 'stop:'),
    ({'stop': list('abcde')}, 'stop'),
    ({'passages': 'text'}, 'passages'),
    ({'passages': ['a', {'txt': 'b'}]}, 'passages[1].text'),
    ({'passages': [{'text': 5}]}, 'passages[0].text'),
    ({'messages': []}, 'messages'),
    ({'messages': [{'role': 'tool', 'content': 'a'}]}, 'messages[0].role'),
    (
      {
        'messages': [
          {
            'role': 'user',
            'content': [{'type': 'image_url', 'image_url': {'url': 'x'}}],
          }
        ]
      },
      'messages[0].content[0]',
    ),
    ({'pasages': []}, 'pasages'),
    ({'stream': 'yes'}, 'stream'),
  ],
)
def test_a_wrong_field_is_named(fields, param):
  with pytest.raises(ApiError) as caught:
    _chat(**fields)
  assert caught.value.status == 400
  assert caught.value.message.startswith(param)
  assert caught.value.message.startswith(f'{caught.value.param}:')
  assert caught.value.body['error']['type'] == 'invalid_request_error'


@pytest.mark.parametrize(
  'fields',
  [
    {'n': 1, 'presence_penalty': 0, 'frequency_penalty': 0.0},
    {'tools': [], 'logit_bias': {}, 'response_format': {'type': 'text'}},
    {'user': 'me', 'metadata': {'a': 'b'}, 'store': False},
    {'stop': None, 'seed': None, 'max_tokens': None, 'tools': None},
  ],
)
def test_fields_that_change_nothing(fields):
  assert _chat(**fields) == _chat()


def test_what_is_read():
  found = _chat(
    messages=[
      {'role': 'system', 'content': 'Be short.'},
      {
        'role': 'user',
        'content': [{'type': 'text', 'text': t} for t in ('Wh', 'en?')],
      },
    ],
    stop='x',
    temperature=1,
    passages=['a', {'text': 'b', 'title': 'c'}],
  )
  messages = schemas.read_messages(found.messages)
  assert [m.content for m in messages] == ['Be short.', 'When?']
  assert found.stops == ('x',)
  assert found.temperature == 1.0
  passages = schemas.read_passages(found.passages)
  assert [(p.title, p.text) for p in passages] == [('', 'a'), ('c', 'b')]


@pytest.mark.parametrize(
  'data',
  [b'', b'{', b'[]', b'null', b'{"a": NaN}', b'\xff', b'[' * 100_000],
)
def test_no_json(data):
  with pytest.raises(ApiError, match='the body') as caught:
    schemas.parse(schemas.ChatRequest, data)
  assert caught.value.status == 400


def test_an_infinite_number_is_refused():
  data = json.dumps(CHAT).replace('{', '{"refusal_bias": 1e999, ', 1)
  with pytest.raises(ApiError, match='refusal_bias'):
    schemas.parse(schemas.ChatRequest, data.encode())


def test_half_characters_are_refused():
  found = _chat(messages=[{'role': 'user', 'content': 'a \ud83d'}])
  with pytest.raises(ApiError, match=r'messages\[0\].content: character 2'):
    schemas.read_messages(found.messages)


def test_several_prompts_are_refused():
  data = json.dumps({**TEXT, 'prompt': ['a', 'b']}).encode()
  with pytest.raises(ApiError, match='prompt'):
    schemas.parse(schemas.TextRequest, data)
  data = json.dumps({**TEXT, 'prompt': ['a']}).encode()
  assert schemas.parse(schemas.TextRequest, data).prompt == ['a']
