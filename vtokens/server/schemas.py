"""Bodies of requests: OpenAI's fields, and some of our own."""

import abc
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from vtokens.host import errors
from vtokens.server import api_errors, questions
from vtokens.server.api_errors import ApiError, refused

# Fields that do not change an answer.
_WITHOUT_EFFECT = frozenset(
  [
    'metadata',
    'parallel_tool_calls',
    'prompt_cache_key',
    'prompt_cache_retention',
    'safety_identifier',
    'service_tier',
    'store',
    'user',
  ]
)
# Fields that are not supported, and their values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  'audio': (),
  'best_of': (1,),
  'echo': (False,),
  'frequency_penalty': (0,),
  'function_call': ('none',),
  'functions': ([],),
  'logit_bias': ({},),
  'modalities': (['text'],),
  'n': (1,),
  'prediction': (),
  'presence_penalty': (0,),
  'reasoning_effort': ('none',),
  'response_format': ({'type': 'text'},),
  'suffix': ('',),
  'tool_choice': ('none',),
  'tools': ([],),
  'verbosity': (),
  'web_search_options': (),
}
_MOST_STOPS = 4
# Likeliest tokens at each place.
MOST_TOP = 20
_Stop = Annotated[str, MinLen(1)]
_Kind = TypeVar('_Kind', bound=pydantic.BaseModel)


class _Section(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid', strict=True)


class Passage(_Section):
  """A passage of a request."""

  text: str
  title: str = ''
  id: str = ''
  score: float | None = None


class TextPart(_Section):
  """A part of a message."""

  type: Literal['text']
  text: str


class ChatMessage(_Section):
  """A message of a request."""

  role: Literal['system', 'developer', 'user', 'assistant']
  content: str | list[TextPart]
  name: str | None = None
  refusal: str | None = None

  @property
  def text(self) -> str:
    """The text of all parts."""
    if isinstance(self.content, str):
      return self.content
    return ''.join(part.text for part in self.content)


class StreamOptions(_Section):
  """Settings of a stream."""

  include_usage: bool = False
  include_obfuscation: bool = False


class Request(_Section, abc.ABC):
  """Fields that both kinds of requests have.

  Attributes:
    passages: best first; None to have them retrieved, where there is an index.
    k: virtual tokens used; None for all.
    table: name of the table, in place of `model`.
    num_passages: passages to retrieve; None for the server's own number.
    refusal_bias: see `answering.Request`.
  """

  model: str = ''
  stream: bool = False
  stream_options: StreamOptions = StreamOptions()
  temperature: Annotated[float, Ge(0), Le(2)] = 0.0
  top_p: Annotated[float, Gt(0), Le(1)] = 1.0
  seed: Annotated[int, Ge(-(1 << 63)), Le((1 << 63) - 1)] | None = None
  max_tokens: Annotated[int, Ge(1)] | None = None
  stop: _Stop | Annotated[list[_Stop], MaxLen(_MOST_STOPS)] | None = None
  passages: list[str | Passage] | None = None
  k: Annotated[int, Ge(1)] | None = None
  table: str | None = None
  num_passages: Annotated[int, Ge(0)] | None = None
  refusal_bias: pydantic.FiniteFloat = 0.0

  @property
  def stops(self) -> tuple[str, ...]:
    """The texts that end an answer."""
    if self.stop is None:
      return ()
    return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

  @property
  @abc.abstractmethod
  def num_top(self) -> int | None:
    """Likeliest tokens to tell at each place; None without log-probabilities.

    Raises:
      ApiError: fields do not go together.
    """


class ChatRequest(Request):
  """POST /v1/chat/completions."""

  messages: Annotated[list[ChatMessage], MinLen(1)]
  max_completion_tokens: Annotated[int, Ge(1)] | None = None
  logprobs: bool = False
  top_logprobs: Annotated[int, Ge(0), Le(MOST_TOP)] = 0

  @property
  def num_top(self) -> int | None:
    """See `Request`."""
    if self.top_logprobs and not self.logprobs:
      raise refused('top_logprobs', 'expected logprobs to be true, too')
    return self.top_logprobs if self.logprobs else None


class TextRequest(Request):
  """POST /v1/completions."""

  prompt: str | Annotated[list[str], MinLen(1), MaxLen(1)]
  logprobs: Annotated[int, Ge(0), Le(MOST_TOP)] | None = None

  @property
  def num_top(self) -> int | None:
    """See `Request`."""
    return self.logprobs


class SearchRequest(_Section):
  """POST /v1/search."""

  query: Annotated[str, MinLen(1)]
  num_passages: Annotated[int, Ge(1)] | None = None


class TableRequest(_Section):
  """POST /v1/tables."""

  name: Annotated[str, MinLen(1)]
  directory: Annotated[str, MinLen(1)]


def parse(kind: type[_Kind], data: bytes) -> _Kind:
  """Reads the body of a request.

  Args:
    kind: of the request.
    data: the body.

  Raises:
    ApiError: it is no JSON object, a field is wrong, not known, or not
      supported and would change the answer.
  """
  try:
    body = json.loads(data, parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as e:
    raise ApiError(400, f'the body is no JSON: {errors.shorten(e)}') from None
  if not isinstance(body, dict):
    raise ApiError(
      400, f'the body: expected a JSON object, got {type(body).__name__}'
    )
  if issubclass(kind, Request):
    body = _supported(body)
  try:
    return kind.model_validate(body)
  except pydantic.ValidationError as e:
    raise _as_api_error(e) from None


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no JSON')


def _supported(body: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that decide the answer; a null stands for a missing field."""
  found = {}
  for name, value in body.items():
    if value is None or name in _WITHOUT_EFFECT:
      continue
    if name not in _NEUTRAL:
      found[name] = value
    elif not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
      raise _not_supported(name, value)
  return found


def _same(value: Any, neutral: Any) -> bool:
  # In Python True equals 1.
  return isinstance(value, bool) == isinstance(neutral, bool) and bool(
    value == neutral
  )


def _not_supported(name: str, value: Any) -> ApiError:
  neutral = _NEUTRAL[name]
  instead = f', or {json.dumps(neutral[0])}' if neutral else ''
  return ApiError(
    400,
    f'{name}: this server does not support it, and it would change the '
    f'answer: leave it out{instead} (got {errors.shorten(json.dumps(value))})',
    param=name,
    code='unsupported_parameter',
  )


def _as_api_error(error: pydantic.ValidationError) -> ApiError:
  # Of a union the branch that came furthest says most.
  first = max(error.errors(), key=lambda one: len(one['loc']))
  names = [part for part in first['loc'] if not _is_branch(part)]
  place = _joined(names) or 'the body'
  if first['type'] == 'extra_forbidden':
    return ApiError(
      400,
      f'{place}: no such field is known',
      param=place,
      code='unknown_parameter',
    )
  if first['type'] == 'missing':
    return ApiError(400, f'{place}: it is needed', param=place)
  got = errors.shorten(json.dumps(first['input'], default=str), 80)
  return refused(place, f'{_lower(first["msg"])}, got {got}')


def _is_branch(part: int | str) -> bool:
  """Whether pydantic names a branch of a union, not a place of the body."""
  return isinstance(part, str) and (
    part in ('str', 'int', 'constrained-str', 'Passage') or '[' in part
  )


def _joined(parts: list[int | str]) -> str:
  text = ''
  for part in parts:
    text += f'[{part}]' if isinstance(part, int) else f'.{part}'
  return text.removeprefix('.')


def _lower(text: str) -> str:
  return text[:1].lower() + text[1:]


def read_passages(passages: list[str | Passage]) -> list[Passage]:
  """Passages of a request, all in one form."""
  return [Passage(text=p) if isinstance(p, str) else p for p in passages]


def read_messages(
  messages: list[ChatMessage],
) -> tuple[questions.Message, ...]:
  """Messages of a request."""
  for index, message in enumerate(messages):
    check_text(message.text, f'messages[{index}].content')
  return tuple(
    questions.Message(message.role, message.text) for message in messages
  )


def check_text(text: str, field: str) -> None:
  """Raises unless a text can be encoded (lone surrogates cannot)."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise api_errors.refused(
      field, f'character {e.start:,} is half of a surrogate pair'
    ) from None
