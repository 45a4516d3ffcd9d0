"""Turns a request into the ids of its prompt."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtokens import config
from vtokens.answering.requests import NUM_TOP, Prepared, Request
from vtokens.data.assemble import Assembler, Example
from vtokens.data.prompt_encoder import as_ids
from vtokens.data.records import GIVEN, Record
from vtokens.evaluation.asking.prompter import Prompter, PromptVariant
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.models.frozen_base import FrozenBase
from vtokens.serving import prompt_ids
from vtokens.settings.field_types import MOST_BIAS

# Longest answer to a prompt that is no question, by default.
_MAX_NEW_TOKENS = 256
# float32 has no logits for a smaller one.
_LEAST_TEMPERATURE = 1e-3


def prepare(
  request: Request,
  base: FrozenBase,
  tokens: TrainedTokens | None,
  assembler: Assembler,
  defaults: config.Decode,
  context_length: int,
  refusal_bias: float = 0.0,
) -> Prepared:
  """Checks a request and turns it into ids.

  Args:
    request: the request.
    base: the model.
    tokens: the virtual tokens that it names; None if it names none.
    assembler: has the templates for a question.
    defaults: how a question is answered where the request does not say.
    context_length: most tokens of a prompt and its answer together.
    refusal_bias: of a request that does not say.

  Raises:
    errors.UserError: a field is wrong, or the prompt is too long.
  """
  given = [
    name
    for name in ('question', 'messages', 'prompt')
    if getattr(request, name) is not None
  ]
  if len(given) != 1:
    raise errors.UserError(
      'expected exactly one of question, messages and prompt, got '
      f'{errors.several(given)}'
    )
  _check_choices(request)
  if request.refusal_bias is not None:
    if tokens is None and request.refusal_bias:
      raise errors.UserError(
        f'refusal_bias={request.refusal_bias}: it needs virtual tokens; name '
        'their table'
      )
    refusal_bias = check_refusal_bias(
      request.refusal_bias, tokens is not None and tokens.refuses
    )
  if given == ['question']:
    tokens, example = _of_question(request, tokens, assembler)
  elif given == ['messages']:
    if tokens is not None:
      raise errors.UserError(
        f'table={request.table!r}: virtual tokens answer a question with '
        'passages; give the last message as question, not messages'
      )
    _check_messages(request.messages)
    example = _of_ids(base.tokenizer.chat_ids(request.messages or ()), base, 0)
  else:
    ids = _prompt_ids(request.prompt, base)
    example = _of_ids(ids, base, 0 if tokens is None else len(tokens))
    if example.num_active and tokens is not None:
      example = _placed(example, tokens)
    else:
      tokens = None
  is_question = given == ['question']
  most = request.max_new_tokens
  if most is None:
    most = defaults.max_new_tokens if is_question else _MAX_NEW_TOKENS
  at_newline = request.stop_at_newline
  if at_newline is None:
    at_newline = is_question and defaults.stop_at_newline
  prepared = Prepared(
    request=request,
    example=example,
    tokens=tokens,
    max_new_tokens=most,
    at_newline=at_newline,
    tidy=is_question or at_newline,
    refusal_bias=0.0 if tokens is None else refusal_bias,
  )
  size = prepared.prompt_tokens
  if request.max_new_tokens is None and given != ['question']:
    room = max(1, context_length - size)
    prepared = Prepared(**{**vars(prepared), 'max_new_tokens': min(most, room)})
  if size + prepared.max_new_tokens > context_length:
    raise errors.UserError(
      f'the prompt has {size:,} tokens; with max_new_tokens='
      f'{prepared.max_new_tokens:,} that is more than the {context_length:,} '
      'that the base takes: shorten one of them'
    )
  return prepared


def check_refusal_bias(value: Any, refuses: bool) -> float:
  """Checks a `refusal_bias`.

  Args:
    value: the bias.
    refuses: whether its virtual tokens were trained to refuse.

  Raises:
    errors.UserError: it is no number, too large, or not 0 and they were not.
  """
  bias = _number(value, 'refusal_bias')
  if abs(bias) > MOST_BIAS:
    raise errors.UserError(
      f'refusal_bias={bias:g}: expected a number from -{MOST_BIAS:g} to '
      f'{MOST_BIAS:g}'
    )
  if bias and not refuses:
    raise errors.UserError(
      f'refusal_bias={bias:g}: these virtual tokens were not trained to refuse '
      '(data.unanswerable=refuse); expected 0'
    )
  return bias


def _check_choices(request: Request) -> None:
  """Raises a `UserError` for a wrong setting of the answer."""
  most = request.max_new_tokens
  if most is not None:
    prompt_ids.check_number(most, 1, 1 << 24, 'max_new_tokens')
  prompt_ids.check_number(request.num_logprobs, 0, NUM_TOP, 'num_logprobs')
  prompt_ids.check_number(request.seed, -(1 << 63), (1 << 64) - 1, 'seed')
  heat = _number(request.temperature, 'temperature')
  if not (heat == 0 or _LEAST_TEMPERATURE <= heat <= 1e6):
    raise errors.UserError(
      f'temperature={heat}: expected 0, or a number from {_LEAST_TEMPERATURE} '
      'to 1e6'
    )
  top_p = _number(request.top_p, 'top_p')
  if not 0 < top_p <= 1:
    raise errors.UserError(
      f'top_p={top_p}: expected a number above 0 and at most 1'
    )
  if isinstance(request.stop, str) or not isinstance(request.stop, Sequence):
    raise errors.UserError(f'stop={request.stop!r}: expected a list of texts')
  for i, text in enumerate(request.stop):
    if not prompt_ids.check_text(text, f'stop[{i}]'):
      raise errors.UserError(f'stop[{i}]: expected a text that is not empty')


def _number(value: Any, where: str) -> float:
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not is_number or not math.isfinite(value):
    raise errors.UserError(
      f'{where}={errors.shorten(repr(value))}: expected a number'
    )
  return float(value)


def _of_question(
  request: Request, tokens: TrainedTokens | None, assembler: Assembler
) -> tuple[TrainedTokens | None, Example]:
  """The virtual tokens and ids of a question, as evaluation has them."""
  question = prompt_ids.check_question(request.question)
  passages = prompt_ids.read_passages(request.passages)
  name = request.condition
  if name is None:
    name = 'prompt' if tokens is None else 'tokens'
  if name not in CONDITIONS:
    raise errors.UserError(
      f'condition={errors.shorten(repr(name))}: expected one of '
      f'{", ".join(CONDITIONS)}'
    )
  condition = CONDITIONS[name]
  count = 0
  if condition.tokens:
    if tokens is None:
      raise errors.UserError(
        f'condition={name!r}: it needs virtual tokens; name their table'
      )
    count = len(tokens)
    if request.k is not None:
      count = prompt_ids.check_number(request.k, 1, count, 'k')
  else:
    tokens = None
  record = Record(
    id=request.id or 'question',
    dataset='',
    question=question,
    answers=(),
    passages={GIVEN: tuple(passages)},
  )
  # All the given passages, in the given order.
  shown = config.Shown(num_passages=len(passages), retriever=GIVEN)
  prompter = Prompter(assembler, shown, seed=0)
  variant = PromptVariant(name, condition, tokens, count)
  return tokens, prompter.example(record, variant)


def _check_messages(messages: Any) -> None:
  if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
    raise errors.UserError('messages: expected a list of dicts')
  if not messages:
    raise errors.UserError('messages: expected at least one message')
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise errors.UserError(
        f'messages[{i}]: expected a dict with "role" and "content"'
      )
    for key in ('role', 'content'):
      prompt_ids.check_text(message.get(key), f'messages[{i}]["{key}"]')


def _prompt_ids(prompt: Any, base: FrozenBase) -> list[int]:
  """The ids of a raw prompt."""
  if isinstance(prompt, str):
    text = prompt_ids.check_text(prompt, 'prompt')
    ids = [*base.tokenizer.prefix_ids, *base.tokenizer.encode(text)]
  elif isinstance(prompt, Sequence) and not isinstance(
    prompt, (bytes, bytearray)
  ):
    most = np.iinfo(np.int32).max
    ids = [
      prompt_ids.check_number(one, 0, most, f'prompt[{i}]')
      for i, one in enumerate(prompt)
    ]
  else:
    raise errors.UserError('prompt: expected a text or a list of ids')
  if not ids:
    raise errors.UserError('prompt: expected at least one token')
  return ids


def _of_ids(ids: Sequence[int], base: FrozenBase, count: int) -> Example:
  """The example of ids, all but the last of which can be kept as a prefix.

  Args:
    ids: the prompt; at least one.
    base: the model.
    count: number of virtual tokens that may be among them.
  """
  size = base.config.vocab_size
  virtual = [at for at, i in enumerate(ids) if i >= size]
  if not virtual:
    return Example(
      prefix=as_ids(ids[:-1]),
      before=as_ids([]),
      num_active=0,
      after=as_ids(ids[-1:]),
      targets=as_ids([]),
    )
  first, k = virtual[0], len(virtual)
  if k > count or [*ids[first : first + k]] != [*range(size, size + k)]:
    raise errors.UserError(
      f'prompt[{first}]={ids[first]}: ids from {size} on are virtual tokens of '
      f'a table: expected at most {count} of them, {size}, {size + 1} and so '
      'on, one after the other'
    )
  return Example(
    prefix=as_ids(ids[:first]),
    before=as_ids([]),
    num_active=k,
    after=as_ids(ids[first + k :]),
    targets=as_ids([]),
  )


def _placed(example: Example, tokens: TrainedTokens) -> Example:
  """An example of raw ids with virtual tokens of a kind."""
  in_suffix = tokens.trainable.in_suffix
  if not in_suffix and not len(example.after):
    raise errors.UserError(
      'prompt: keys and values as virtual tokens cannot be last; expected an '
      'ordinary id after them'
    )
  return Example(
    prefix=example.prefix,
    before=example.before,
    num_active=example.num_active,
    after=example.after,
    targets=example.targets,
    in_suffix=in_suffix,
  )
