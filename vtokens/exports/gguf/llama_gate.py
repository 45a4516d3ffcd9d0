"""Whether a GGUF export does in llama.cpp what our own model does.

llama.cpp rounds activations to 8 bits before it multiplies them by quantised
weights, and keeps keys and values as float16; our model has the same weights
and rounds nothing. So equality with our model is checked on a copy of the file
with the same numbers as float32. Equality with the base is checked on the file
itself. How often the file itself answers like our model is told as information:
the base would differ from our model as much.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vtokens.exports import gate
from vtokens.exports.export_format import ExportJob
from vtokens.exports.gate import Check
from vtokens.exports.gguf import gguf_file, llama_consumer
from vtokens.exports.gguf.llama_consumer import LlamaConsumer
from vtokens.exports.reference import Probe
from vtokens.host import errors
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving.artifact import Artifact

# On the CPU llama.cpp reads GELU from a float16 table whose step is 2^-11 of a
# value. With float32 weights it rounds nothing else.
_GELU_TOLERANCE = 2**-10
# Difference of log probabilities of equal logits: the server computes them in
# float32, over the ids of the base with and without virtual tokens.
_ROUNDING = 2e-5
# Questions after which tokens are drawn. The server computes each prompt again.
_DRAWN = 16
# A smaller log probability is of a subnormal number in float32.
_LEAST = -80.0


def check(job: ExportJob) -> list[Check]:
  """All checks of an export.

  Args:
    job: the export. Its directory has room for a copy of the file in float32.
  """
  file = job.directory / gguf_file.FILE
  base, placement, probes = job.base_path, job.placement, job.probes
  most, seed = job.max_new_tokens, job.settings.seed
  sampled = job.settings.gate.sampled
  tokenizer = gguf_tokenizer.read_tokenizer(file)
  exported, meta = job.exported, job.exported.meta
  drawn = probes[:_DRAWN]
  longest = max(len(one.ids) for one in probes)
  context = longest + max(most, -(-sampled // len(drawn))) + 64
  rows = meta.base.vocab_size
  old = np.setdiff1d(np.arange(rows), placement.tokens.ids)
  texts = _encoded(base)

  activation = job.source.base.config.activation
  tolerance = gate.TOLERANCE if activation == 'silu' else _GELU_TOLERANCE
  differ = gguf_file.differences(
    file, placement, placement.stored(exported.table), base
  )
  with llama_consumer.serve(pathlib.Path(base), context, 'served') as address:
    before = _on_texts(LlamaConsumer(address, tokenizer, meta), texts, rows)
  with llama_consumer.serve(file, context, 'served') as address:
    consumer = LlamaConsumer(address, tokenizer, meta)
    after = _on_texts(consumer, texts, placement.num_rows)
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
    as_served = compare(consumer, probes, most, old, placement.num_rows, 0.0)
  copy = file.with_name('float32.gguf')
  try:
    gguf_file.write_float32(copy, file)
    with llama_consumer.serve(copy, context, 'exact') as address:
      consumer = LlamaConsumer(address, tokenizer, meta)
      exact = compare(
        consumer, probes, most, old, placement.num_rows, tolerance
      )
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
  """What a model computes for ordinary text.

  Attributes:
    hidden: hidden states before the head, array of shape [T, D], float32.
    logs: log probabilities of the next id, array of shape [1, V].
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
  """Text without virtual tokens, compared with the base.

  The rows of the head are compared bit by bit in the file, so equal hidden
  states mean equal logits.
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
class Compared:
  """How a file answers, compared with our model.

  Attributes:
    same: number of questions with equal answers.
    ties: number of questions whose answers differ first at two tokens that are
      equally likely.
    asked: number of questions whose log probabilities were compared.
    worst: largest difference, relative to the largest logit.
    virtual: largest probability of all virtual tokens together, before
      llama.cpp excludes them.
  """

  same: int
  ties: int
  asked: int
  worst: float
  virtual: float


def compare(
  consumer: LlamaConsumer,
  probes: Sequence[Probe],
  most: int,
  old: np.ndarray,
  size: int,
  tolerance: float,
) -> Compared:
  """Compares answers, and the log probabilities of old ids along ours.

  Args:
    consumer: the model that is compared.
    probes: questions and our answers, some with logits.
    most: most tokens of an answer.
    old: ids of the base, without ids of virtual tokens.
    size: size of the vocabulary.
    tolerance: error of a logit, relative to the largest one. Of two logits that
      differ by less than twice the error, either may be the larger.
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
    # llama.cpp may know more end tokens than the tokenizer.
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
  # numpy's max is NaN if any value is; Python's is not.
  return Compared(
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
  """Whether answers first differ at tokens whose logits differ by `most`."""
  pairs = enumerate(zip(found, expected, strict=False))
  for at, (theirs, ours) in pairs:
    if theirs != ours:
      text = [*prompt, *expected[:at]]
      (logs,) = consumer.log_probabilities(text, 1, size)
      return bool(abs(logs[theirs] - logs[ours]) <= most)
  return False


def _normalised(logs: Float[np.ndarray, 'T V']) -> Float[np.ndarray, 'T V']:
  """Log probabilities among these ids only."""
  top: np.ndarray = logs.max(axis=1, keepdims=True)
  total: np.ndarray = np.exp(logs - top).sum(axis=1, keepdims=True)
  normalised: np.ndarray = logs - top - np.log(total)
  return normalised


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
  """Largest difference over the ids whose probability is not 0 in float32."""
  seen = expected > _LEAST
  return float(np.abs(np.where(seen, found - expected, 0)).max())
