"""What answers cost: times of prefill and decoding, with and without tokens."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vtokens import config
from vtokens.data.assemble import Example
from vtokens.data.records import Record
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import stack_tables
from vtokens.evaluation.asking.prompter import Prompter, PromptVariant
from vtokens.host import stopping
from vtokens.models.frozen_base import FrozenBase


def measure(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  prompter: Prompter,
  records: Sequence[Record],
  variants: Sequence[PromptVariant],
  decode: config.Decode,
  *,
  repeats: int,
  stop: stopping.StopRequest,
) -> list[dict[str, Any]]:
  """Times the same questions asked in several ways, each way by itself.

  Compilation and host work (tokens to ids and back) are left out. Answers are
  `decode.max_new_tokens` long, whatever the model says, so that every variant
  does the same work but for its own tokens.

  Args:
    base: the model.
    mesh: the devices.
    prompter: makes the examples.
    records: the questions: one batch, and the first of it alone.
    variants: ways to ask; the others are compared with the first.
    decode: how answers are generated.
    repeats: of each, after one that is not counted.
    stop: drops the measurement.

  Returns:
    One dict of JSON values for each variant and batch size, with medians:
    prompt_tokens (mean of a question), prefill_tokens_per_second (prefix and
    suffix), first_token_seconds (of the whole batch), answer_seconds (one
    question's share of the batch's time), decode_tokens_per_second, and
    first_token_extra, answer_extra (ratio to the first variant, minus 1).
  """
  rows = []
  for size in sorted({1, len(records)}):
    settings = dataclasses.replace(decode, batch_size=size)
    answerer = Answerer(base, mesh, settings, seed=0)
    first: dict[str, Any] = {}
    for variant in variants:
      stop.check_together()
      examples = [
        prompter.example(record, variant) for record in records[:size]
      ]
      row: dict[str, Any] = {
        'condition': variant.name,
        'num_active': variant.num_active,
        'batch_size': answerer.batch_size,
        **stop.run(
          functools.partial(
            _time, answerer, examples, variant, base, decode, repeats
          )
        ),
      }
      first = first or row
      for name in ('first_token', 'answer'):
        ratio = row[f'{name}_seconds'] / first[f'{name}_seconds']
        row[f'{name}_extra'] = ratio - 1
      rows.append(row)
  return rows


def _time(
  answerer: Answerer,
  examples: Sequence[Example],
  variant: PromptVariant,
  base: FrozenBase,
  decode: config.Decode,
  repeats: int,
) -> dict[str, float | None]:
  table, first_ids = stack_tables([variant], base.config)
  suffixes = [[example] for example in examples]

  def run(new_tokens: int) -> None:
    cache = answerer.encode(examples)
    out = answerer.start(
      suffixes,
      cache,
      table,
      [''] * len(examples),
      first_ids,
      forced=new_tokens,
    )
    jax.block_until_ready(out)

  def median(new_tokens: int) -> float:
    run(new_tokens)
    times = []
    for _ in range(repeats):
      began = time.perf_counter()
      run(new_tokens)
      times.append(time.perf_counter() - began)
    return statistics.median(times)

  first, whole = median(1), median(decode.max_new_tokens)
  prompts = [len(e.prefix) + e.suffix_len for e in examples]
  more = len(examples) * (decode.max_new_tokens - 1)
  return {
    'prompt_tokens': float(np.mean(prompts)),
    'prefill_tokens_per_second': sum(prompts) / first,
    'first_token_seconds': first,
    # None where the difference drowns in noise.
    'decode_tokens_per_second': (
      more / (whole - first) if more and whole > first else None
    ),
    'answer_seconds': whole / len(examples),
  }


def device() -> str:
  """How many devices of which kind there are."""
  devices = jax.devices()
  return f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})'
