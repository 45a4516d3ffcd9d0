"""The reference of the gate: answers and logits of our own model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens import config
from vtokens.data.assemble import Example
from vtokens.data.batch import Spans
from vtokens.data.records import Record
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.prompter import Prompter, tokens_variant
from vtokens.evaluation.trained_tokens import BranchTokens, TrainedTokens
from vtokens.host import aside, stopping, writers
from vtokens.method import kinds, padding
from vtokens.method.trainable import Trainable, Values
from vtokens.models.decoder import Decoder
from vtokens.models.frozen_base import FrozenBase, OpenBase
from vtokens.serving import prompt_ids
from vtokens.serving.artifact import Artifact

# Prompts are padded to a multiple of this length: few shapes are compiled.
_ROUND = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
  """A question to our model and the answer.

  Attributes:
    record: the question.
    passages: passages shown, best first, as `plug.prompt_ids` takes them.
    ids: ids of the prompt; virtual token i is `vocab_size + i`.
    answer: ids of the greedy answer, with the id that ended it, if any.
    logits: logits that predict each id of the answer, array of shape [T, V],
      float32; None except for the first questions.
  """

  record: Record
  passages: tuple[dict[str, str], ...]
  ids: tuple[int, ...]
  answer: tuple[int, ...]
  logits: Float[np.ndarray, 'T V'] | None


@dataclasses.dataclass(frozen=True)
class Asked:
  """What our model is asked.

  Attributes:
    records: the questions.
    decode: how answers are generated, which are greedy.
    num_passages: most passages of a question.
    num_logits: number of questions whose logits are kept.
    seed: seed of ties in the choice of passages.
  """

  records: Sequence[Record]
  decode: config.Decode
  num_passages: int
  num_logits: int
  seed: int


def probe(
  opened: OpenBase,
  table: Artifact,
  values: Values,
  asked: Asked,
) -> list[Probe]:
  """Asks our own model.

  Args:
    opened: the base; its weights are loaded and dropped again.
    table: the virtual tokens.
    values: their values as the export stores them.
    asked: the questions, and how they are asked.
  """
  records, settings, seed = asked.records, asked.decode, asked.seed
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = opened.load(mesh)
  trainable = kinds.trainable_of(config.VirtualTokens(kind=table.meta.kind))
  assembler = dataclasses.replace(
    prompt_ids.assembler(opened.tokenizer, table.meta.prompt),
    in_suffix=trainable.in_suffix,
  )
  shown = config.Eval(
    num_passages=asked.num_passages,
    shuffle_passages=False,
    max_new_tokens=settings.max_new_tokens,
  )
  prompter = Prompter(assembler, shown, seed)
  answerer = Answerer(base, mesh, settings, seed)
  variant = tokens_variant(
    TrainedTokens('export', values, assembler, trainable),
    table.meta.num_trained,
  )
  prompter.check_fits(records, [variant])
  found: list[Probe] = []
  with writers.progress(
    total=len(records), desc='our answers', unit='question'
  ) as bar:
    for at in range(0, len(records), answerer.batch_size):
      batch = records[at : at + answerer.batch_size]
      examples = [prompter.example(record, variant) for record in batch]

      def ask(
        batch: Sequence[Record] = batch, examples: list[Example] = examples
      ) -> list[list[int]]:
        out = answerer.start(
          [[example] for example in examples],
          answerer.encode(examples),
          BranchTokens(values, trainable),
          [record.id for record in batch],
          [base.config.vocab_size],
        )
        ids: list[list[int]] = distributed.fetch(out.ids)[
          : len(batch), 0
        ].tolist()
        return ids

      answers = aside.call(ask, stopping.check)
      for record, example, answer in zip(batch, examples, answers, strict=True):
        found.append(
          Probe(
            record=record,
            passages=tuple(
              {'title': passage.title, 'text': passage.text}
              for _, passage in prompter.passages(record, variant)
            ),
            ids=_ids(example, base.config.vocab_size),
            answer=_to_end(answer, opened.tokenizer.end_ids),
            logits=None,
          )
        )
      bar.update(len(batch))
  return [
    dataclasses.replace(
      one,
      logits=_logits(base, values, one, settings.max_new_tokens, trainable),
    )
    if number < asked.num_logits
    else one
    for number, one in enumerate(found)
  ]


def quietest(ids: Sequence[int], probes: Sequence[Probe]) -> tuple[int, ...]:
  """Orders ids from the least to the most likely next token of an answer.

  All virtual tokens copy one row of the head, so their probabilities add up:
  that row has to be very unlikely. The name of a token does not tell. For
  SmolLM2 `<|endoftext|>` is one special token among others, since its turns end
  with another one.

  Args:
    ids: ids to order.
    probes: questions, some of them with logits.
  """
  logits = np.concatenate(
    [one.logits for one in probes if one.logits is not None]
  )
  below = logits.max(axis=1, keepdims=True) - logits[:, list(ids)]
  order = np.argsort(-below.min(axis=0), kind='stable')
  return tuple(ids[at] for at in order)


def _ids(example: Example, vocab_size: int) -> tuple[int, ...]:
  whole = dataclasses.replace(example, in_suffix=True)
  return (*whole.prefix.tolist(), *whole.suffix(vocab_size).tolist())


def _to_end(answer: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
  for i, token in enumerate(answer):
    if token in ends:
      return tuple(answer[: i + 1])
  return tuple(answer)


def _logits(
  base: FrozenBase, values: Values, one: Probe, most: int, trainable: Trainable
) -> np.ndarray:
  """Logits at the positions that predict the answer, in one forward pass."""
  ids: Any = np.array([*one.ids, *one.answer[:-1]], np.int32)
  positions: Any = np.arange(len(ids), dtype=np.int32)
  spans = None
  if not trainable.in_suffix:
    virtual = ids >= base.config.vocab_size
    start: Any = np.argmax(virtual, keepdims=True).astype(np.int32)
    count: Any = virtual.sum(keepdims=True, dtype=np.int32)
    spans = Spans(start[None], count[None])
    ids, positions = ids[~virtual], positions[~virtual]
  size = padding.round_up(len(ids), _ROUND)
  padded = np.zeros((1, size), np.int32)
  placed = np.full((1, size), -1, np.int32)
  padded[0, : len(ids)] = ids
  placed[0, : len(ids)] = positions
  # The same number for each question: few shapes are compiled.
  first = len(ids) - len(one.answer)
  at = np.minimum(np.arange(most) + first, len(ids) - 1)
  found = _forward(
    base.graph, trainable, base.params, values, padded, placed, spans, at
  )
  return np.asarray(found)[: len(one.answer)]


@jax.jit(static_argnums=(0, 1))
def _forward(
  graph: nnx.GraphDef[Decoder],
  trainable: Trainable,
  params: nnx.State[str, Any],
  values: Values,
  ids: Int[Array, '1 T'],
  positions: Int[Array, '1 T'],
  spans: Spans | None,
  at: Int[Array, 'A'],
) -> Float[Array, 'A V']:
  decoder = nnx.merge(graph, params)
  x = trainable.embed(decoder, values, ids)
  hidden, _ = decoder(
    x,
    positions,
    ids=ids,
    trained_caches=trainable.caches(decoder, values, spans),
  )
  return decoder.logits(jnp.take(hidden[0], at, axis=0))
