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
from vtokens.data.records import Record
from vtokens.devices import distributed, partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.prompter import Prompter, tokens_variant
from vtokens.evaluation.trained_tokens import BranchTokens, TrainedTokens
from vtokens.host import aside, stopping, writers
from vtokens.method import padding
from vtokens.method.virtual_tokens import TABLE
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
  rows: Float[np.ndarray, 'n D'],
  asked: Asked,
) -> list[Probe]:
  """Asks our own model.

  Args:
    opened: the base; its weights are loaded and dropped again.
    table: the table.
    rows: its values as the export stores them, array of shape [n, D], float32.
    asked: the questions, and how they are asked.
  """
  records, settings, seed = asked.records, asked.decode, asked.seed
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = opened.load(mesh)
  assembler = prompt_ids.assembler(opened.tokenizer, table.meta.prompt)
  shown = config.Eval(
    num_passages=asked.num_passages,
    shuffle_passages=False,
    max_new_tokens=settings.max_new_tokens,
  )
  prompter = Prompter(assembler, shown, seed)
  answerer = Answerer(base, mesh, settings, seed)
  variant = tokens_variant(
    TrainedTokens('table', rows, assembler), table.meta.num_trained
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
          BranchTokens(rows),
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
      one, logits=_logits(base, rows, one, settings.max_new_tokens)
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
  return (*example.prefix.tolist(), *example.suffix(vocab_size).tolist())


def _to_end(answer: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
  for i, token in enumerate(answer):
    if token in ends:
      return tuple(answer[: i + 1])
  return tuple(answer)


def _logits(
  base: FrozenBase, rows: np.ndarray, one: Probe, most: int
) -> np.ndarray:
  """Logits at the positions that predict the answer, in one forward pass."""
  ids = [*one.ids, *one.answer[:-1]]
  size = padding.round_up(len(ids), _ROUND)
  padded = np.zeros((1, size), np.int32)
  positions = np.full((1, size), -1, np.int32)
  padded[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(len(ids))
  # The same number for each question: few shapes are compiled.
  at = np.minimum(np.arange(most) + len(one.ids), len(ids)) - 1
  found = _forward(base.graph, base.params, rows, padded, positions, at)
  return np.asarray(found)[: len(one.answer)]


@jax.jit(static_argnums=0)
def _forward(
  graph: nnx.GraphDef[Decoder],
  params: nnx.State[str, Any],
  table: Float[Array, 'n D'],
  ids: Int[Array, '1 T'],
  positions: Int[Array, '1 T'],
  at: Int[Array, 'A'],
) -> Float[Array, 'A V']:
  decoder = nnx.merge(graph, params)
  x = TABLE.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions)
  return decoder.logits(jnp.take(hidden[0], at, axis=0))
