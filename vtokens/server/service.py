"""From a request to the pieces of its answer."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from vtokens.data import records
from vtokens.server import questions, schemas
from vtokens.server.api_errors import ApiError, no_table, refused
from vtokens.server.json_log import JsonLog
from vtokens.server.limits import Gate, Limits
from vtokens.server.metrics import Metrics
from vtokens.server.questions import (
  BASE,
  BASE_TOKENS,
  Backend,
  Piece,
  Question,
  Sampling,
  Token,
)

# Passages that a request can have retrieved.
_MOST_FOUND = 100


class Index(Protocol):
  """Finds passages; calls may come from several threads."""

  def search(self, question: str, k: int) -> Sequence[records.Passage]:
    """The best passages for a question, best first."""


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question, and the passages that were retrieved for it.

  Attributes:
    question: the question.
    model: as the request named it, for the reply.
    found: passages; None if the request had its own, or there is no index.
    deadline: when the answer has to be whole, by `time.monotonic`.
  """

  question: Question
  model: str
  found: Sequence[schemas.Passage] | None
  deadline: float


class Service:
  """Answers requests.

  Args:
    backend: answers questions.
    limits: of the server.
    index: finds passages for questions without; None for none.
    num_passages: passages to retrieve, if a request has no own number.
    last_message: whether the last message of a chat is answered alone where a
      table cannot read the earlier ones; otherwise such chats are refused.
    log: gets an event for each request.

  Attributes:
    backend: the same; likewise limits and log.
    gate: counts the questions.
    metrics: counters.
  """

  def __init__(
    self,
    backend: Backend,
    limits: Limits,
    *,
    log: JsonLog,
    metrics: Metrics,
    index: Index | None = None,
    num_passages: int = 3,
    last_message: bool = False,
  ):
    self.backend = backend
    self.limits = limits
    self.log = log
    self.metrics = metrics
    self.gate = Gate(limits)
    self._index = index
    self._num_passages = num_passages
    self._last_message = last_message

  @property
  def has_index(self) -> bool:
    """Whether passages can be retrieved."""
    return self._index is not None

  async def ask(self, request: schemas.Request, name: str) -> Asked:
    """Makes the question of a request; retrieves passages.

    Args:
      request: the request.
      name: id of the request.

    Raises:
      ApiError: the request is refused.
    """
    deadline = time.monotonic() + self.limits.seconds
    table, model = self._table(request)
    messages: tuple[questions.Message, ...] = ()
    if isinstance(request, schemas.ChatRequest):
      messages = schemas.read_messages(request.messages)
      field = f'messages[{len(messages) - 1}]'
      if messages[-1].role != 'user':
        raise refused(
          field,
          'expected the last message to be the question, of the role user, '
          f'got the role {messages[-1].role}',
        )
      text = messages[-1].content
    else:
      field = 'prompt'
      assert isinstance(request, schemas.TextRequest)
      prompt = request.prompt
      text = prompt if isinstance(prompt, str) else prompt[0]
      schemas.check_text(text, field)
    if not text.strip():
      raise refused(field, 'expected a text that is not blank')
    # The table may be unloaded while passages are retrieved.
    k = self._k(request, table)
    passages, found = await self._passages(request, table, text)
    if table != BASE or passages:
      messages = self._alone(messages, table)
    question = Question(
      id=name,
      table=table,
      k=k,
      text=text,
      messages=messages,
      passages=passages,
      sampling=self._sampling(request, table, bool(passages)),
    )
    return Asked(question, model, found, deadline)

  def _table(self, request: schemas.Request) -> tuple[str, str]:
    """The table of a request, and the name for its reply."""
    model, table = request.model, request.table
    if table is None:
      if not model:
        raise refused('model', f'expected one of {self._names()}')
      self._check_model(model, 'model')
      return model, model
    self._check_model(table, 'table')
    # Programs that know of one model alone choose the table by our own field.
    if model not in ('', BASE, table):
      self._check_model(model, 'model')
      raise refused(
        'table',
        f'{table!r} is another table than {model!r}, which model names',
      )
    return table, model or table

  def _check_model(self, name: str, field: str) -> None:
    if name != BASE and name not in self.backend.tables:
      raise ApiError(
        404,
        f'{field}: no model {name[:200]!r}; expected one of {self._names()}',
        param=field,
        code='model_not_found',
      )

  def _names(self) -> str:
    return ', '.join([*self.backend.tables, BASE])

  def _k(self, request: schemas.Request, table: str) -> int:
    if table == BASE:
      if request.k is not None:
        raise refused('k', 'the base has no virtual tokens: leave it out')
      return 0
    served = self.backend.tables.get(table)
    if served is None:
      raise no_table(table)
    most = served.num_trained
    if request.k is None:
      return most
    if request.k > most:
      raise refused(
        'k',
        f'expected 1 to {most}, the virtual tokens of {table}, got {request.k}',
      )
    return request.k

  def _sampling(
    self, request: schemas.Request, table: str, shown: bool
  ) -> Sampling:
    field, wanted = 'max_tokens', request.max_tokens
    if isinstance(request, schemas.ChatRequest) and (
      request.max_completion_tokens is not None
    ):
      field, wanted = 'max_completion_tokens', request.max_completion_tokens
    if wanted is not None and wanted > self.limits.max_tokens:
      raise refused(
        field,
        f'expected at most {self.limits.max_tokens} on this server, got '
        f'{wanted}',
      )
    if request.refusal_bias and table == BASE:
      raise refused(
        'refusal_bias', 'the base has no virtual tokens: leave it out'
      )
    # The base with passages is compared with a table: it is asked alike.
    like = self.backend.tables.get(table)
    if like is None and shown:
      like = next(iter(self.backend.tables.values()), None)
    most = BASE_TOKENS if like is None else like.max_new_tokens
    if wanted is None and (like or most > self.limits.max_tokens):
      wanted = min(most, self.limits.max_tokens)
    return Sampling(
      max_tokens=wanted,
      temperature=request.temperature,
      top_p=request.top_p,
      seed=request.seed,
      stop=request.stops,
      newline=like is not None and like.newline,
      log_probs=request.num_top is not None,
      num_top=request.num_top or 0,
      refusal_bias=request.refusal_bias,
    )

  def _alone(
    self, messages: tuple[questions.Message, ...], table: str
  ) -> tuple[questions.Message, ...]:
    """The last message, if the others may be left out."""
    others = [message.role for message in messages[:-1]]
    if others and not self._last_message:
      what = 'virtual tokens read' if table != BASE else 'passages go with'
      raise refused(
        'messages[0]',
        f'{what} one question alone, as in training, got {len(others)} more '
        f'messages ({", ".join(sorted(set(others)))}): send the question as '
        'the only message, or start the server with --last_message, which '
        'leaves the others out',
      )
    return messages[-1:]

  async def _passages(
    self, request: schemas.Request, table: str, text: str
  ) -> tuple[tuple[records.Passage, ...], list[schemas.Passage] | None]:
    """The passages to show, and those of them that were retrieved."""
    if request.passages is not None:
      if request.num_passages is not None:
        raise refused(
          'num_passages', 'there are passages already: leave one of both out'
        )
      given = schemas.read_passages(request.passages)
      for index, one in enumerate(given):
        schemas.check_text(one.text, f'passages[{index}].text')
        schemas.check_text(one.title, f'passages[{index}].title')
      shown = [records.Passage(p.id, p.title, p.text, p.score) for p in given]
      return tuple(shown), None
    number = request.num_passages
    if self._index is None:
      if number:
        raise refused('num_passages', 'this server has no index (--index)')
      return (), None
    # The base is asked as it is, unless passages are wanted.
    if number is None and table == BASE:
      return (), None
    found = await self.search(text, number)
    shown = [records.Passage(p.id, p.title, p.text, p.score) for p in found]
    return tuple(shown), found

  async def search(
    self, text: str, number: int | None
  ) -> list[schemas.Passage]:
    """The best passages for a question.

    Raises:
      ApiError: there is no index (404), or too many are wanted (400).
    """
    if self._index is None:
      raise ApiError(404, 'this server has no index (--index)', code='no_index')
    if number is None:
      number = self._num_passages
    if number > _MOST_FOUND:
      raise refused(
        'num_passages',
        f'expected at most {_MOST_FOUND}, got {number}',
      )
    if not number:
      return []
    found = await asyncio.to_thread(self._index.search, text, number)
    return [
      schemas.Passage(id=p.id, title=p.title, text=p.text, score=p.score)
      for p in found
    ]

  async def pieces(self, asked: Asked) -> AsyncGenerator[Piece, None]:
    """Gives an answer in pieces; counts, and keeps to the time limit.

    Raises:
      ApiError: the question is refused, the backend fails, or it takes too
        long.
    """
    began = time.monotonic()
    waits = True
    metrics, question = self.metrics, asked.question
    pieces = self.backend.answer(question)
    finished = False
    try:
      while True:
        left = asked.deadline - time.monotonic()
        try:
          piece = await asyncio.wait_for(anext(pieces), max(left, 0.001))
        except StopAsyncIteration:
          break
        except TimeoutError:
          raise ApiError(
            504,
            f'no whole answer within {self.limits.seconds:g} seconds',
            code='timeout',
          ) from None
        if waits and piece.text:
          metrics.first_seconds.observe(time.monotonic() - began)
          waits = False
        if piece.usage is not None:
          count = metrics.tokens.labels
          count(question.table, 'prompt').inc(piece.usage.prompt)
          count(question.table, 'answer').inc(piece.usage.answer)
        yield piece
      finished = True
    # Anything else than an `ApiError` is a mistake of this program.
    except Exception as e:
      if not isinstance(e, ApiError) or e.status >= 500:
        metrics.failures.inc()
      finished = True
      raise
    finally:
      if not finished:
        metrics.dropped.inc()
      # The backend drops what it has not answered.
      await pieces.aclose()

  async def whole(self, asked: Asked) -> Piece:
    """The whole answer as one piece; see `pieces`."""
    texts: list[str] = []
    tokens: list[Token] = []
    last = Piece()
    async with contextlib.aclosing(self.pieces(asked)) as pieces:
      async for piece in pieces:
        texts.append(piece.text)
        tokens += piece.tokens
        last = piece
    return dataclasses.replace(last, text=''.join(texts), tokens=tokens)
