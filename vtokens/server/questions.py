"""What a request asks a backend, and what the backend gives back."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from vtokens.data.records import Passage

# The name of the untouched base, in `model`.
BASE = 'base'
# Longest answer to a prompt that is no question, by default.
BASE_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Message:
  """A message of a chat.

  Attributes:
    role: system, user or assistant.
    content: its text.
  """

  role: str
  content: str


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How an answer is generated.

  Attributes:
    max_tokens: longest answer; None for `BASE_TOKENS`, or what there is room
      for.
    temperature: 0 takes the most likely token; above 0 tokens are drawn.
    top_p: draw among the most likely tokens that together have at least this
      probability.
    seed: of the draws; None for one that no other request has.
    stop: texts that end the answer, and are not part of it.
    newline: whether the first line break after text ends the answer, as in
      scores of a run. White space around the answer is then left out.
    log_probs: whether tokens come with their log-probability.
    num_top: most likely tokens to tell at each place, besides.
    refusal_bias: see `answering.Request`.
  """

  max_tokens: int | None
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int | None = None
  stop: tuple[str, ...] = ()
  newline: bool = False
  log_probs: bool = False
  num_top: int = 0
  refusal_bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Question:
  """A question to a backend.

  Attributes:
    id: of the request.
    table: name of the table; `BASE` for the untouched base.
    k: virtual tokens used; 0 for the base.
    text: the question; for the base without passages the whole prompt, or the
      last message.
    messages: the messages of a chat; empty for a completion.
    passages: shown, best first. The base reads them with the instruction of the
      run's templates.
    sampling: how the answer is generated.
  """

  id: str
  table: str
  k: int
  text: str
  messages: tuple[Message, ...]
  passages: tuple[Passage, ...]
  sampling: Sampling

  @property
  def chat(self) -> bool:
    """Whether the base's chat template wraps the prompt of the base."""
    return bool(self.messages)


@dataclasses.dataclass(frozen=True)
class Token:
  """A token of an answer.

  Attributes:
    text: its text alone; a part of a character is shown as U+FFFD.
    log_prob: its log-probability, in nats.
    top: text and log-probability of the most likely tokens here, best first.
  """

  text: str
  log_prob: float
  top: Sequence[tuple[str, float]] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
  """Tokens of a question and its answer."""

  prompt: int
  answer: int


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of an answer.

  Attributes:
    text: what follows the pieces before.
    tokens: with log-probabilities, if they were asked for.
    finish: why the answer ends here, `stop` or `length`; '' before.
    usage: with the last piece.
    passages_cut: with the last piece: passages that were cut to fit.
    passages_dropped: likewise, passages that were left out.
  """

  text: str = ''
  tokens: Sequence[Token] = ()
  finish: str = ''
  usage: Usage | None = None
  passages_cut: int = 0
  passages_dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Table:
  """What requests need to know of a table.

  Attributes:
    name: in requests.
    directory: where it was read.
    num_trained: virtual tokens that training has changed: the most to use.
    max_new_tokens: longest answer in scores of the run.
    newline: whether a line break ended answers in scores of the run.
    created: when it was loaded, seconds since 1970.
  """

  name: str
  directory: str
  num_trained: int
  max_new_tokens: int
  newline: bool
  created: int


class Backend(Protocol):
  """What answers questions."""

  @property
  def tables(self) -> Mapping[str, Table]:
    """The tables that are loaded, by name; the first one is the default."""

  async def problem(self) -> str:
    """Why no question can be answered now; '' if they can."""

  def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Gives the answer in pieces; closing the iterator drops the question.

    Raises:
      api_errors.ApiError: the question is refused, or the backend fails.
    """

  async def load(self, name: str, directory: str) -> Table:
    """Adds a table.

    Raises:
      api_errors.ApiError: there is a table of this name.
      errors.UserError: it cannot be read, or belongs to another base.
    """

  async def unload(self, name: str) -> None:
    """Removes a table; running questions are still answered.

    Raises:
      api_errors.ApiError: there is no table of this name.
    """

  async def close(self) -> None:
    """Frees what it holds; running questions end with an error."""
