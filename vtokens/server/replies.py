"""Bodies of replies, as OpenAI's clients read them."""

import abc
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from vtokens.server.questions import Piece, Question, Token, Usage
from vtokens.server.schemas import Passage

DONE = b'data: [DONE]\n\n'


def event(body: dict[str, Any]) -> bytes:
  """An event of a stream."""
  return b'data: ' + json.dumps(body, ensure_ascii=False).encode() + b'\n\n'


class Shape(Protocol):
  """What tells replies of chats from those of completions."""

  def whole(self, answer: Piece) -> dict[str, Any]:
    """The reply to a question.

    Args:
      answer: all of it.
    """

  def first(self) -> dict[str, Any]:
    """The first event of a stream."""

  def part(self, piece: Piece) -> dict[str, Any]:
    """A further event."""

  def usage(self, usage: Usage) -> dict[str, Any]:
    """An event without text, with the number of tokens."""


class _Reply(abc.ABC):
  """What both have.

  Args:
    question: that was asked.
    model: as the request named it.
    passages: those that were retrieved; None if the request had its own.
  """

  _prefix = ''
  _whole = ''
  _part = ''

  def __init__(
    self,
    question: Question,
    model: str,
    passages: Sequence[Passage] | None,
  ):
    self._id = f'{self._prefix}-{question.id}'
    self._created = int(time.time())
    self._model = model
    self._question = question
    self._passages = passages
    self._offset = 0

  def _head(self, kind: str) -> dict[str, Any]:
    return {
      'id': self._id,
      'object': kind,
      'created': self._created,
      'model': self._model,
    }

  def _ours(self, answer: Piece | None) -> dict[str, Any]:
    """Our own fields."""
    asked: dict[str, Any] = {
      'table': self._question.table,
      'k': self._question.k,
    }
    if answer is not None:
      asked['passages_cut'] = answer.passages_cut
      asked['passages_dropped'] = answer.passages_dropped
    found: dict[str, Any] = {'vtokens': asked}
    if self._passages is not None:
      found['passages'] = [passage.model_dump() for passage in self._passages]
    return found

  def whole(self, answer: Piece) -> dict[str, Any]:
    """See `Shape`."""
    assert answer.usage is not None
    return {
      **self._head(self._whole),
      'choices': [self._choice(answer)],
      'usage': _usage(answer.usage),
      **self._ours(answer),
    }

  def first(self) -> dict[str, Any]:
    """See `Shape`."""
    return {**self._event([self._first_choice()]), **self._ours(None)}

  def part(self, piece: Piece) -> dict[str, Any]:
    """See `Shape`."""
    return self._event([self._part_choice(piece)])

  def usage(self, usage: Usage) -> dict[str, Any]:
    """See `Shape`."""
    return {**self._event([]), 'usage': _usage(usage)}

  def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {**self._head(self._part), 'choices': choices}

  @abc.abstractmethod
  def _choice(self, answer: Piece) -> dict[str, Any]:
    """The choice of a whole reply."""

  @abc.abstractmethod
  def _first_choice(self) -> dict[str, Any]:
    """The choice of the first event of a stream."""

  @abc.abstractmethod
  def _part_choice(self, piece: Piece) -> dict[str, Any]:
    """The choice of a further event."""


class ChatReply(_Reply):
  """Replies of /v1/chat/completions."""

  _prefix = 'chatcmpl'
  _whole = 'chat.completion'
  _part = 'chat.completion.chunk'

  def _choice(self, answer: Piece) -> dict[str, Any]:
    return {
      'index': 0,
      'message': {
        'role': 'assistant',
        'content': answer.text,
        'refusal': None,
      },
      'logprobs': self._log_probs(answer.tokens),
      'finish_reason': answer.finish,
    }

  def _first_choice(self) -> dict[str, Any]:
    return self._delta({'role': 'assistant', 'content': ''}, Piece())

  def _part_choice(self, piece: Piece) -> dict[str, Any]:
    return self._delta({'content': piece.text} if piece.text else {}, piece)

  def _delta(self, delta: dict[str, Any], piece: Piece) -> dict[str, Any]:
    return {
      'index': 0,
      'delta': delta,
      'logprobs': self._log_probs(piece.tokens),
      'finish_reason': piece.finish or None,
    }

  def _log_probs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
    if not self._question.sampling.log_probs:
      return None
    content = [
      {
        'token': token.text,
        'logprob': token.log_prob,
        'bytes': list(token.text.encode()),
        'top_logprobs': [
          {'token': text, 'logprob': value, 'bytes': list(text.encode())}
          for text, value in token.top
        ],
      }
      for token in tokens
    ]
    return {'content': content, 'refusal': None}


class TextReply(_Reply):
  """Replies of /v1/completions."""

  _prefix = 'cmpl'
  _whole = _part = 'text_completion'

  def _choice(self, answer: Piece) -> dict[str, Any]:
    return {
      'index': 0,
      'text': answer.text,
      'logprobs': self._log_probs(answer.tokens),
      'finish_reason': answer.finish or None,
    }

  def _first_choice(self) -> dict[str, Any]:
    return self._choice(Piece())

  def _part_choice(self, piece: Piece) -> dict[str, Any]:
    return self._choice(piece)

  def _log_probs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
    if not self._question.sampling.log_probs:
      return None
    offsets = []
    for token in tokens:
      offsets.append(self._offset)
      self._offset += len(token.text)
    return {
      'tokens': [token.text for token in tokens],
      'token_logprobs': [token.log_prob for token in tokens],
      'top_logprobs': (
        [dict(token.top) for token in tokens]
        if self._question.sampling.num_top
        else None
      ),
      'text_offset': offsets,
    }


def _usage(usage: Usage) -> dict[str, int]:
  return {
    'prompt_tokens': usage.prompt,
    'completion_tokens': usage.answer,
    'total_tokens': usage.prompt + usage.answer,
  }
