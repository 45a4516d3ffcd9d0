"""Questions answered by another server: vLLM, llama.cpp, or one like them."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from vtokens.host import errors
from vtokens.server.answer_text import TextEnd
from vtokens.server.api_errors import (
  ApiError,
  backend_failed,
  name_taken,
  no_table,
  refused,
)
from vtokens.server.questions import (
  BASE,
  BASE_TOKENS,
  Piece,
  Question,
  Sampling,
  Table,
  Token,
  Usage,
)
from vtokens.server.remote_tables import Kind, Reader, ServedTable

# Seconds to connect, and to look whether a server is ready.
_TO_CONNECT = 5.0
_TO_LOOK = 3.0
# Bytes of a refusal that are shown.
_MOST_SHOWN = 600
# Draws with these are those of the whole distribution, as in training.
_ALL_TOKENS: Mapping[Kind, Mapping[str, Any]] = {
  'vllm': {'repetition_penalty': 1.0, 'top_k': -1, 'min_p': 0.0},
  'openai': {'repetition_penalty': 1.0},
  'llama.cpp': {
    'samplers': ['temperature', 'top_p'],
    'repeat_penalty': 1.0,
    'cache_prompt': True,
  },
}
# Where a server tells that it is ready.
_LOOK: Mapping[Kind, str] = {
  'vllm': '/health',
  'openai': '/v1/models',
  'llama.cpp': '/health',
}


class RemoteBackend:
  """See `questions.Backend`.

  A server of an `hf` or `gguf` export has the rows of one table: it serves that
  table and the base. vLLM with the unchanged base serves any number.

  Args:
    kind: what the server is.
    url: of the server, without /v1.
    reader: reads exports.
    model: name of the model there; '' for the first one that it lists.
    key: API key of the server; '' for none.
  """

  def __init__(
    self, kind: Kind, url: str, reader: Reader, *, model: str, key: str
  ):
    self._kind = kind
    self._reader = reader
    self._named = model
    self._model = model
    self._tables: Mapping[str, ServedTable] = {}
    self._client = httpx.AsyncClient(
      base_url=url,
      headers={'Authorization': f'Bearer {key}'} if key else {},
      # The time limit of the whole answer is the service's.
      timeout=httpx.Timeout(None, connect=_TO_CONNECT),
      limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
      # Not through a proxy that the environment may name.
      trust_env=False,
    )
    # Tokenizers are not made for several threads.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'prompts')

  @property
  def tables(self) -> Mapping[str, Table]:
    """See `questions.Backend`."""
    return {name: served.table for name, served in self._tables.items()}

  def load_now(self, name: str, directory: str) -> Table:
    """Adds a table; see `load`."""
    # Another request may have added one since this one came.
    if name in self._tables:
      raise name_taken(name)
    if self._tables and self._kind != 'vllm':
      raise errors.UserError(
        f'table {name}: the backend {self._kind} serves an export, which has '
        f'the rows of one table ({next(iter(self._tables))}); use '
        '--backend=vllm for several'
      )
    served = self._reader.read(name, directory)
    others = [one.meta.base.fingerprint for one in self._tables.values()]
    if others and served.meta.base.fingerprint != others[0]:
      raise errors.UserError(
        f'table {name}: {directory} was trained on another base than '
        f'{next(iter(self._tables))}'
      )
    # Replaced as a whole: the event loop reads it meanwhile.
    self._tables = {**self._tables, name: served}
    return served.table

  async def load(self, name: str, directory: str) -> Table:
    """See `questions.Backend`."""
    table: Table = await self._aside(self.load_now, name, directory)
    return table

  async def unload(self, name: str) -> None:
    """See `questions.Backend`."""
    await self._aside(self._unload_now, name)

  def _unload_now(self, name: str) -> None:
    # In the thread of `load_now`: of two changes at once, one would be lost.
    if name not in self._tables:
      raise no_table(name)
    self._tables = {n: t for n, t in self._tables.items() if n != name}

  async def close(self) -> None:
    """See `questions.Backend`."""
    await self._client.aclose()
    self._thread.shutdown(wait=False, cancel_futures=True)

  async def problem(self) -> str:
    """See `questions.Backend`."""
    url = f'{self._client.base_url}'
    try:
      reply = await self._client.get(_LOOK[self._kind], timeout=_TO_LOOK)
    except httpx.HTTPError as e:
      return f'{url}: {_told(e)}'
    if reply.status_code != httpx.codes.OK:
      return f'{url}: status {reply.status_code}'
    return ''

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """See `questions.Backend`."""
    path, body, length = await self._request(question)
    end = TextEnd(question.sampling.stop, question.sampling.newline)
    finish, count, counted = '', 0, False
    async with contextlib.aclosing(self._events(path, body)) as events:
      async for event in events:
        if usage := event.get('usage'):
          length = usage.get('prompt_tokens', length)
          count, counted = usage.get('completion_tokens', count), True
        for choice in event.get('choices') or ():
          text, tokens = _read(choice)
          tokens = [_cut(token, question.sampling) for token in tokens]
          if text and not counted:
            # Most servers send an event for each token.
            count += len(tokens) or 1
          finish = choice.get('finish_reason') or finish
          text = end.add(text)
          if text or tokens:
            yield Piece(text, tokens if not end.ended or text else ())
        if end.ended:
          # Leaving closes the connection, and the server drops the rest.
          finish = 'stop'
          break
      else:
        if not finish:
          raise backend_failed('the backend broke an answer off')
    yield Piece(
      end.end(),
      finish='length' if finish == 'length' else 'stop',
      usage=Usage(length, count),
    )

  async def _request(
    self, question: Question
  ) -> tuple[str, dict[str, Any], int]:
    """Path and body of a request, and the length of its prompt, if known."""
    sampling = question.sampling
    if sampling.refusal_bias:
      raise refused(
        'refusal_bias',
        f'the backend {self._kind} does not support it, only --backend=local '
        'does: leave it out',
      )
    body: dict[str, Any] = {
      'model': await self._model_name(),
      'max_tokens': sampling.max_tokens or BASE_TOKENS,
      'temperature': sampling.temperature,
      'top_p': sampling.top_p,
      'stream': True,
      'stream_options': {'include_usage': True},
      **_ALL_TOKENS[self._kind],
    }
    if sampling.temperature:
      drawn = random.getrandbits(31)
      seed = drawn if sampling.seed is None else sampling.seed
      body['seed'] = seed % (1 << 31)
    text, served = question.text, self._tables.get(question.table)
    if question.table != BASE:
      if served is None:
        raise no_table(question.table)
      prompt = await self._prompt(served.prompt, question)
      length = prompt.pop('length')
      return '/v1/completions', {**body, **prompt, **_top(sampling)}, length
    messages = [
      {'role': one.role, 'content': one.content} for one in question.messages
    ]
    if question.passages:
      served = next(iter(self._tables.values()), None)
      if served is None:
        raise ApiError(
          400, 'passages: no table is loaded, whose templates they go into'
        )
      text = await self._prompt(served.instructed, question)
      messages = [{'role': 'user', 'content': text}] if messages else []
    if messages:
      if sampling.log_probs:
        body['logprobs'] = True
        body['top_logprobs'] = sampling.num_top
      return '/v1/chat/completions', {**body, 'messages': messages}, 0
    return '/v1/completions', {**body, 'prompt': text, **_top(sampling)}, 0

  async def _prompt(self, make: Any, question: Question) -> Any:
    try:
      return await self._aside(make, question)
    except errors.UserError as e:
      raise ApiError(400, str(e)) from None

  async def _aside(self, function: Any, *arguments: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._thread, function, *arguments)

  async def _model_name(self) -> str:
    """The model's name there."""
    if not self._model:
      try:
        reply = await self._client.get('/v1/models', timeout=_TO_CONNECT)
        reply.raise_for_status()
        self._model = str(reply.json()['data'][0]['id'])
      except httpx.HTTPError as e:
        raise self._failed(e) from None
      except (ValueError, LookupError, TypeError):
        raise backend_failed(
          'the backend does not list its models; name one with --backend_model'
        ) from None
    return self._model

  def _failed(self, error: httpx.HTTPError) -> ApiError:
    # Another server may be there next time.
    self._model = self._named
    return backend_failed(
      f'the backend {self._client.base_url} cannot be used: {_told(error)}'
    )

  async def _events(
    self, path: str, body: Mapping[str, Any]
  ) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a stream.

    Raises:
      ApiError: the server cannot be reached, refuses, or breaks off.
    """
    try:
      async with self._client.stream('POST', path, json=body) as reply:
        if reply.status_code != httpx.codes.OK:
          raise await self._refusal(reply)
        async for line in reply.aiter_lines():
          kind, _, data = line.partition(':')
          data = data.strip()
          if kind not in ('data', 'error') or data == '[DONE]':
            continue
          try:
            event = json.loads(data)
            if kind == 'error' or 'error' in event:
              raise backend_failed(
                f'the backend failed: {errors.shorten(data, _MOST_SHOWN)}'
              )
          except (ValueError, TypeError):
            raise backend_failed(
              f'the backend sent no JSON: {errors.shorten(data, _MOST_SHOWN)}'
            ) from None
          yield event
    except httpx.HTTPError as e:
      raise self._failed(e) from None

  async def _refusal(self, reply: httpx.Response) -> ApiError:
    text = (await reply.aread()).decode(errors='replace')
    message = (
      f'the backend refuses ({reply.status_code}): '
      f'{errors.shorten(text, _MOST_SHOWN)}'
    )
    if reply.status_code in (400, 413, 422):
      return ApiError(400, message)
    if reply.status_code in (429, 503):
      return ApiError(503, message, code='backend_busy', retry_after=1)
    self._model = self._named
    return backend_failed(message)


def _cut(token: Token, sampling: Sampling) -> Token:
  """A token with as many likely ones as were asked for."""
  return dataclasses.replace(token, top=token.top[: sampling.num_top])


def _told(error: httpx.HTTPError) -> str:
  return errors.shorten(str(error) or type(error).__name__)


def _top(sampling: Sampling) -> dict[str, int]:
  """Asks a completion for log-probabilities; 0 may stand for none."""
  return {'logprobs': max(1, sampling.num_top)} if sampling.log_probs else {}


def _read(choice: Mapping[str, Any]) -> tuple[str, list[Token]]:
  """Text and tokens of an event of either kind."""
  delta = choice.get('delta')
  text = choice.get('text') if delta is None else delta.get('content')
  found = choice.get('logprobs') or {}
  if found.get('content'):
    tokens = [
      Token(
        one['token'],
        one['logprob'],
        [(t['token'], t['logprob']) for t in one.get('top_logprobs') or ()],
      )
      for one in found['content']
    ]
  else:
    texts, values = found.get('tokens') or (), found.get('token_logprobs') or ()
    tops = found.get('top_logprobs') or [{}] * len(texts)
    tokens = [
      Token(token, log_prob, list((top or {}).items()))
      for token, log_prob, top in zip(texts, values, tops, strict=False)
    ]
  return text or '', tokens
