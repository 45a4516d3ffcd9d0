"""What an export has to equal: our own model's answers and logits."""

import dataclasses
from collections.abc import Sequence

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
from vtokens.evaluation.conditions import TokenTable
from vtokens.host import aside, stopping, writers
from vtokens.method import padding
from vtokens.method.virtual_tokens import TABLE
from vtokens.models.frozen_base import FrozenBase, OpenBase
from vtokens.serving import prompt_ids
from vtokens.serving.artifact import Artifact

# Prompts are padded to multiples of it, so that few shapes are compiled.
_ROUND = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
  """A question, as it was put to our model, and what that said.

  Attributes:
    record: the question.
    passages: that were shown, best first, as `plug.prompt_ids` takes them.
    ids: of the prompt, virtual token i being `vocab_size + i`.
    answer: ids of the greedy answer, with the one that ended it, if any.
    logits: after each of them and before the first, f32; None but for the
      first questions.
  """

  record: Record
  passages: tuple[dict[str, str], ...]
  ids: tuple[int, ...]
  answer: tuple[int, ...]
  logits: Float[np.ndarray, 'T V'] | None


def probe(
  opened: OpenBase,
  table: Artifact,
  rows: Float[np.ndarray, 'n D'],
  records: Sequence[Record],
  settings: config.Decode,
  *,
  num_passages: int,
  num_logits: int,
  seed: int,
) -> list[Probe]:
  """Asks our own model.

  Args:
    opened: the base; its weights are loaded and dropped again.
    table: what is exported.
    rows: its values as the export will store them.
    records: the questions.
    settings: of the answers, which are greedy.
    num_passages: most passages of a question.
    num_logits: of so many questions logits are kept.
    seed: of ties in the choice of passages.
  """
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = opened.load(mesh)
  assembler = prompt_ids.assembler(opened.tokenizer, table.meta.prompt)
  shown = config.Eval(
    num_passages=num_passages,
    shuffle_passages=False,
    max_new_tokens=settings.max_new_tokens,
  )
  prompter = Prompter(assembler, shown, seed)
  answerer = Answerer(base, mesh, settings, seed)
  variant = tokens_variant(
    TokenTable('table', rows, assembler), table.meta.num_trained
  )
  prompter.check_fits(records, [variant])
  found: list[Probe] = []
  with writers.progress(
    total=len(records), desc='our answers', unit='question'
  ) as bar:
    for at in range(0, len(records), answerer.batch_size):
      batch = records[at : at + answerer.batch_size]
      examples = [prompter.example(record, variant) for record in batch]

      def ask(batch=batch, examples=examples):
        out = answerer.start(
          [[example] for example in examples],
          answerer.encode(examples),
          rows,
          [record.id for record in batch],
          [base.config.vocab_size],
        )
        return distributed.fetch(out)[: len(batch), 0].tolist()

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
    if number < num_logits
    else one
    for number, one in enumerate(found)
  ]


def quietest(ids: Sequence[int], probes: Sequence[Probe]) -> tuple[int, ...]:
  """Ids, the one first that comes least near to being an answer's next token.

  As many rows of a head as there are virtual tokens, all of them equal, are as
  loud together as one that is much louder; and names do not tell which are
  quiet: to SmolLM2 `<|endoftext|>` is a special token like others, since its
  turns end with another.

  Args:
    ids: to choose from.
    probes: some of them with logits.
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
  """Logits at the positions that predict the answer, in one plain pass."""
  ids = [*one.ids, *one.answer[:-1]]
  size = padding.round_up(len(ids), _ROUND)
  padded = np.zeros((1, size), np.int32)
  positions = np.full((1, size), -1, np.int32)
  padded[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(len(ids))
  # As many of each question, be its answer short: few shapes are compiled.
  at = np.minimum(np.arange(most) + len(one.ids), len(ids)) - 1
  found = _forward(base.graph, base.params, rows, padded, positions, at)
  return np.asarray(found)[: len(one.answer)]


@jax.jit(static_argnums=0)
def _forward(
  graph: nnx.GraphDef,
  params: nnx.State,
  table: Float[Array, 'n D'],
  ids: Int[Array, '1 T'],
  positions: Int[Array, '1 T'],
  at: Int[Array, 'A'],
) -> Float[Array, 'A V']:
  decoder = nnx.merge(graph, params)
  x = TABLE.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions)
  return decoder.logits(jnp.take(hidden[0], at, axis=0))
