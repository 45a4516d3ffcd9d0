"""What is asked of an `Engine`, and what it answers."""

import dataclasses
from collections.abc import Mapping, Sequence

from vtokens.data.assemble import Example
from vtokens.data.records import Passage
from vtokens.evaluation.trained_tokens import TrainedTokens

# A passage as callers give it.
AnyPassage = str | Mapping[str, str] | Passage
# Most likely tokens that are noted at each place, if any are.
NUM_TOP = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A prompt, and how to continue it.

  Exactly one of `question`, `messages` and `prompt` is given. The defaults of
  `max_new_tokens` and `stop_at_newline` are those that the table was trained
  with; for a conversation or a raw prompt, 256 tokens and no end at a newline.

  Attributes:
    question: a question, which the templates of training surround.
    passages: for a question: texts, dicts with `text` and maybe `title`, or
      passages of an index, best first. Those that do not fit are cut or
      dropped, the last one first.
    condition: how a question is asked: a name in
      `evaluation.conditions.CONDITIONS`; by default `tokens` with a table and
      `prompt` without. With a table, a condition without virtual tokens uses
      the table's templates alone.
    table: name of the virtual tokens; None for the untouched base.
    k: number of virtual tokens; None for all that were trained.
    messages: a conversation: dicts with `role` and `content`, oldest first. It
      is put into the chat template of the base.
    prompt: a text, or ids. Ids from `vocab_size` on are virtual tokens of
      `table`: the first k of them, in order, once.
    max_new_tokens: longest answer.
    temperature: 0 takes the most likely token.
    top_p: draws are among the most likely tokens with this probability
      together; 1 for all.
    seed: of the draws, together with `id`.
    id: name of the request; as the id of a question in an evaluation.
    stop: texts that end the answer and are not part of it.
    stop_at_newline: whether the first line break after text ends the answer.
    num_logprobs: most likely tokens to report at each place, up to `NUM_TOP`.
    refusal_bias: added to the logit of the first token of the refusal at the
      start of an answer with virtual tokens that were trained to refuse: above
      0 they refuse more, below 0 less. None for that of `Engine.add`.
  """

  question: str | None = None
  passages: Sequence[AnyPassage] = ()
  condition: str | None = None
  table: str | None = None
  k: int | None = None
  messages: Sequence[Mapping[str, str]] | None = None
  prompt: str | Sequence[int] | None = None
  max_new_tokens: int | None = None
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0
  id: str = ''
  stop: Sequence[str] = ()
  stop_at_newline: bool | None = None
  num_logprobs: int = 0
  refusal_bias: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A request that has been checked and turned into ids.

  Attributes:
    request: the request.
    example: the ids of its prompt.
    tokens: the virtual tokens; None for the base alone.
    max_new_tokens: longest answer.
    at_newline: whether a line break ends it.
    tidy: whether white space around the answer is dropped.
    refusal_bias: see `Request`; 0 without virtual tokens.
  """

  request: Request
  example: Example
  tokens: TrainedTokens | None
  max_new_tokens: int
  at_newline: bool
  tidy: bool
  refusal_bias: float = 0.0

  @property
  def prompt_tokens(self) -> int:
    """Number of tokens of the prompt, virtual ones included."""
    example = self.example
    text = len(example.prefix) + len(example.before) + len(example.after)
    return text + example.num_active


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """An answer.

  Attributes:
    text: the answer.
    ids: its tokens, without the one that ended it. With `stop='stop'` they end
      with the token that completes the stop text.
    log_probs: log-probability of each, in nats, under the model's own
      distribution, whatever the sampling.
    top: most likely tokens at each place, as many as were asked for: (id,
      log-probability), best first.
    confidence: mean log-probability of the tokens with the one that ended the
      answer; at most 0.
    stop: what ended it: end (a token for it), newline, stop (a stop text),
      length, or cancelled.
    prompt_tokens: tokens of the prompt, virtual ones included.
    shown: ranks of the passages in the prompt, from 0.
    passages_dropped: passages left out because the prompt was full.
    passages_cut: passages shortened for the same reason.
    seconds: from the start of its batch to its end.
  """

  text: str
  ids: tuple[int, ...]
  log_probs: tuple[float, ...]
  top: tuple[tuple[tuple[int, float], ...], ...]
  confidence: float
  stop: str
  prompt_tokens: int
  shown: tuple[int, ...]
  passages_dropped: int
  passages_cut: int
  seconds: float

  @property
  def completion_tokens(self) -> int:
    """Number of tokens of the answer."""
    return len(self.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Increment:
  """What came since the last increment of a request.

  Attributes:
    number: number of the request in its list, from 0.
    text: new text. It has whole characters, and nothing that a stop text may
      yet take away, so it may lag behind `ids`.
    ids: new tokens.
    log_probs: log-probability of each.
    top: see `Completion`.
    completion: the whole answer, in the last increment of a request.
  """

  number: int
  text: str
  ids: tuple[int, ...] = ()
  log_probs: tuple[float, ...] = ()
  top: tuple[tuple[tuple[int, float], ...], ...] = ()
  completion: Completion | None = None
