"""Whether a GGUF export does in llama.cpp what our own model does.

llama.cpp multiplies quantised weights with activations that it rounds to 8
bits, and keeps keys and values as f16; our model takes the same weights and
rounds nothing. So what must be equal is checked on a copy of the file whose
weights are the same numbers as f32, and what must not change next to the base
on the file itself. How often the file as it is answers like our model is told
besides: nothing can be required of it that the base would not fail as well.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vtokens.exports import gate
from vtokens.exports.gate import Check
from vtokens.exports.gguf import gguf_file, llama_consumer
from vtokens.exports.gguf.gguf_file import GGUFPlan
from vtokens.exports.gguf.llama_consumer import LlamaConsumer
from vtokens.exports.reference import Probe
from vtokens.host import errors
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving.artifact import Artifact

# llama.cpp's CPU takes GELU from a table of f16 whose step is 2^-11 of a value;
# of weights as f32 nothing else is rounded.
_GELU_TOLERANCE = 2**-10
# Of log probabilities of the same logits: the server takes softmax and its
# logarithm in float32, over the base's ids or those of virtual tokens too.
_ROUNDING = 2e-5
# Questions after which tokens are drawn: their prompts are computed once more.
_DRAWN = 16
# Below it a probability is no normal number of float32.
_LEAST = -80.0


def require(to: str) -> None:
  """Raises if llama.cpp is not installed.

  Args:
    to: format of the export.

  Raises:
    errors.UserError: it is not.
  """
  if importlib.util.find_spec('xllamacpp') is None:
    raise errors.UserError(
      f'--to {to}: the export is checked with llama.cpp; pip install xllamacpp'
    )


def check(
  file: pathlib.Path,
  base: str,
  plan: GGUFPlan,
  exported: Artifact,
  probes: Sequence[Probe],
  *,
  activation: str,
  most: int,
  sampled: int,
  seed: int,
) -> list[Check]:
  """All checks of an export.

  Args:
    file: the export's, in a directory for one more of it as f32.
    base: file of the base.
    plan: where its virtual tokens are.
    exported: the table, with the ids of the export.
    probes: questions and our answers, of the table as the export has it.
    activation: of the base; see `DecoderConfig`.
    most: tokens of an answer.
    sampled: tokens to be drawn.
    seed: of sampling.
  """
  tokenizer = gguf_tokenizer.read_tokenizer(file)
  meta = exported.meta
  drawn = probes[:_DRAWN]
  longest = max(len(one.ids) for one in probes)
  context = longest + max(most, -(-sampled // len(drawn))) + 64
  rows = exported.meta.base.vocab_size
  old = np.setdiff1d(np.arange(rows), plan.tokens.ids)
  texts = _encoded(base)

  tolerance = gate.TOLERANCE if activation == 'silu' else _GELU_TOLERANCE
  differ = gguf_file.differences(file, plan, plan.stored(exported.table), base)
  with llama_consumer.serve(pathlib.Path(base), context, 'served') as address:
    before = _on_texts(LlamaConsumer(address, tokenizer, meta), texts, rows)
  with llama_consumer.serve(file, context, 'served') as address:
    consumer = LlamaConsumer(address, tokenizer, meta)
    after = _on_texts(consumer, texts, plan.num_rows)
    checks = [
      Check(
        'metadata and tensors that are not as they should be',
        not differ,
        errors.several(differ),
        'none, bit by bit',
      ),
      _names(consumer, exported),
      gate.matched(consumer, probes, meta.num_trained),
      gate.same_prompts(consumer, probes, rows),
      *_same_texts(before, after, old),
      gate.never_said(consumer, drawn, sampled, seed),
    ]
    as_served = _compare(consumer, probes, most, old, plan.num_rows, 0.0)
  copy = file.with_name('float32.gguf')
  try:
    gguf_file.write_float32(copy, file)
    with llama_consumer.serve(copy, context, 'exact') as address:
      consumer = LlamaConsumer(address, tokenizer, meta)
      exact = _compare(consumer, probes, most, old, plan.num_rows, tolerance)
  finally:
    copy.unlink(missing_ok=True)
  return [
    *checks,
    Check(
      'with all weights as f32: log probabilities at answer positions, largest '
      'difference from ours',
      exact.asked > 0 and exact.worst <= tolerance,
      exact.worst,
      f'<= {tolerance:.2g}, relative to the largest logit, {exact.asked} '
      'questions',
    ),
    Check(
      'with all weights as f32: greedy answers equal to ours',
      exact.same + exact.ties == len(probes),
      f'{exact.same} of {len(probes)} questions, and {exact.ties} that part '
      'where two tokens are as likely',
      f'all, token by token; as likely is {2 * tolerance:.2g} of the largest '
      'logit',
    ),
    Check(
      'as it is: greedy answers equal to ours',
      True,
      f'{as_served.same} of {len(probes)} questions, log probabilities within '
      f'{as_served.worst:.2g} of the largest logit',
      'for information: llama.cpp rounds activations where weights are '
      'quantised, and keys and values to f16; ours rounds nothing',
    ),
    Check(
      'as it is: most that the head alone gives to all virtual tokens',
      True,
      f'a probability of {as_served.virtual:.2g}',
      'for information: llama.cpp before b9495 does not know that they are '
      'never to be sampled',
    ),
  ]


def _encoded(base: str) -> list[list[int]]:
  tokenizer = gguf_tokenizer.read_tokenizer(base)
  return [
    tokenizer.encode(text, add_special_tokens=False) for text in gate.TEXTS
  ]


def _names(consumer: LlamaConsumer, exported: Artifact) -> Check:
  """The names in a text, between passages and question, become the ids."""
  tokens = exported.meta.tokens
  text = f'A passage.\n\n{"".join(tokens.names)}Question: Is it?'
  virtual = set(tokens.ids)
  found = [i for i in consumer.tokenize(text) if i in virtual]
  return Check(
    'names of virtual tokens recognised in a text',
    found == list(tokens.ids),
    len(found),
    len(tokens.ids),
  )


@dataclasses.dataclass(frozen=True)
class _Text:
  """What a model makes of ordinary text.

  Attributes:
    hidden: of each token, what the head is given.
    logs: log probabilities of the ids after the last one.
  """

  hidden: Float[np.ndarray, 'T D']
  logs: Float[np.ndarray, '1 V']


def _on_texts(
  consumer: LlamaConsumer, texts: Sequence[Sequence[int]], size: int
) -> list[_Text]:
  return [
    _Text(consumer.hidden(ids), consumer.log_probabilities(ids, 1, size))
    for ids in texts
  ]


def _same_texts(
  before: Sequence[_Text], after: Sequence[_Text], old: np.ndarray
) -> list[Check]:
  """Text without virtual tokens, next to the base, both as they are.

  A head's rows being checked bit by bit in the file, equal hidden states are
  equal logits.
  """
  pairs = list(zip(before, after, strict=True))
  differ = sum(int((a.hidden != b.hidden).sum()) for a, b in pairs)
  size = sum(a.hidden.size for a in before)
  worst = float(
    np.max(
      [
        _difference(_normalised(a.logs[:, old]), _normalised(b.logs[:, old]))
        for a, b in pairs
      ]
    )
  )
  return [
    Check(
      'what the head is given on ordinary text, numbers that differ from the '
      'base',
      differ == 0,
      differ,
      f'0 of {size:,}, bit by bit',
    ),
    Check(
      'log probabilities of old ids after ordinary text, largest difference '
      'from the base',
      worst <= _ROUNDING,
      worst,
      f'<= {_ROUNDING}: float32 of a softmax over more ids',
    ),
  ]


@dataclasses.dataclass(frozen=True)
class _Compared:
  """How a file answers next to our model.

  Attributes:
    same: questions of equal answers.
    ties: those of answers that part where either token is as likely.
    asked: questions whose log probabilities are compared.
    worst: their largest difference, relative to the largest logit.
    virtual: the largest probability of all virtual tokens at their answers,
      before such tokens are left out.
  """

  same: int
  ties: int
  asked: int
  worst: float
  virtual: float


def _compare(
  consumer: LlamaConsumer,
  probes: Sequence[Probe],
  most: int,
  old: np.ndarray,
  size: int,
  tolerance: float,
) -> _Compared:
  """Answers, and log probabilities along ours, of old ids.

  Args:
    consumer: what is compared.
    probes: questions and our answers, some with logits.
    most: tokens of an answer.
    old: ids of the base but for those of virtual tokens.
    size: of the vocabulary.
    tolerance: of a logit, relative to the largest: of two logits as near as
      twice that, either may be the larger.
  """
  worst, said = [], []
  largest = max(
    float(np.abs(one.logits[:, old]).max())
    for one in probes
    if one.logits is not None
  )
  same = ties = 0
  for one in probes:
    prompt = consumer.prompt_ids(one.passages, one.record.question)
    found = consumer.answer(prompt, most)
    # llama.cpp may know more tokens that end a text than the tokenizer says.
    ended = len(found) < most
    expected = one.answer[: len(found)] if ended else one.answer
    if tuple(found) == expected:
      same += 1
    elif tolerance:
      ties += _tied(
        consumer, prompt, found, expected, size, 2 * tolerance * largest
      )
    if one.logits is None:
      continue
    text = [*prompt, *one.answer[:-1]]
    logs = consumer.log_probabilities(text, len(one.answer), size)
    ours = one.logits[:, old].astype(np.float64)
    difference = _difference(_normalised(ours), _normalised(logs[:, old]))
    worst.append(difference / np.abs(ours).max())
    said.append(np.exp(logs[:, consumer.virtual_ids()]).sum(axis=1).max())
  # Unlike Python's, numpy's largest is NaN if any is.
  return _Compared(
    same, ties, len(worst), float(np.max(worst)), float(np.max(said))
  )


def _tied(
  consumer: LlamaConsumer,
  prompt: Sequence[int],
  found: Sequence[int],
  expected: Sequence[int],
  size: int,
  most: float,
) -> bool:
  """Whether two answers part where their tokens' logits are within `most`."""
  pairs = enumerate(zip(found, expected, strict=False))
  for at, (theirs, ours) in pairs:
    if theirs != ours:
      text = [*prompt, *expected[:at]]
      (logs,) = consumer.log_probabilities(text, 1, size)
      return bool(abs(logs[theirs] - logs[ours]) <= most)
  return False


def _normalised(logs: Float[np.ndarray, 'T V']) -> Float[np.ndarray, 'T V']:
  """Log probabilities among these ids alone."""
  top = logs.max(axis=1, keepdims=True)
  return logs - top - np.log(np.exp(logs - top).sum(axis=1, keepdims=True))


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
  """The largest, of ids whose probability float32 can tell from 0."""
  seen = expected > _LEAST
  return float(np.abs(np.where(seen, found - expected, 0)).max())
