"""What answers cost: time of prefill and decoding, with and without tokens."""

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
from vtokens.evaluation.asking.prompter import Prompter, PromptVariant
from vtokens.evaluation.trained_tokens import stack
from vtokens.host import stopping
from vtokens.models.frozen_base import FrozenBase


@dataclasses.dataclass(frozen=True)
class Timed:
  """What is timed.

  Attributes:
    prompter: makes the examples.
    records: the questions: timed as one batch, and the first one alone.
    variants: prompt variants; the others are compared with the first.
    decode: how answers are generated.
    repeats: timed runs of each, after one that is not counted.
  """

  prompter: Prompter
  records: Sequence[Record]
  variants: Sequence[PromptVariant]
  decode: config.Decode
  repeats: int


def measure(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  timed: Timed,
  stop: stopping.StopRequest,
) -> list[dict[str, Any]]:
  """Times the same questions in several prompt variants, one after the other.

  Compilation and host work (text to ids and back) are not timed. Answers have
  `decode.max_new_tokens` tokens, whatever the model answers, so that variants
  differ in the work for their own tokens alone.

  Args:
    base: the model.
    mesh: the devices.
    timed: what is timed.
    stop: a stop drops the measurement.

  Returns:
    A dict of JSON values for each variant and batch size, with medians:
    prompt_tokens (mean of a question), prefill_tokens_per_second (prefix and
    suffix), first_token_seconds (of the whole batch), answer_seconds (one
    question's share of the batch's time), decode_tokens_per_second, and
    first_token_extra, answer_extra (ratio to the first variant, minus 1).
  """
  rows = []
  for size in sorted({1, len(timed.records)}):
    settings = dataclasses.replace(timed.decode, batch_size=size)
    answerer = Answerer(base, mesh, settings, seed=0)
    first: dict[str, Any] = {}
    for variant in timed.variants:
      stop.check_together()
      examples = [
        timed.prompter.example(record, variant)
        for record in timed.records[:size]
      ]
      row: dict[str, Any] = {
        'condition': variant.name,
        'num_active': variant.num_active,
        'batch_size': answerer.batch_size,
        **stop.run(
          functools.partial(
            _time,
            answerer,
            examples,
            variant,
            timed.decode.max_new_tokens,
            timed.repeats,
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
  max_new_tokens: int,
  repeats: int,
) -> dict[str, float | None]:
  [tokens], first_ids = stack([variant.tokens], answerer.base.config)
  suffixes = [[example] for example in examples]

  def run(new_tokens: int) -> None:
    cache = answerer.encode(examples)
    out = answerer.start(
      suffixes,
      cache,
      tokens,
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

  first, whole = median(1), median(max_new_tokens)
  prompts = [len(e.prefix) + e.suffix_len for e in examples]
  more = len(examples) * (max_new_tokens - 1)
  return {
    'prompt_tokens': float(np.mean(prompts)),
    'prefill_tokens_per_second': sum(prompts) / first,
    'first_token_seconds': first,
    # None if the difference is smaller than the noise.
    'decode_tokens_per_second': (
      more / (whole - first) if more and whole > first else None
    ),
    'answer_seconds': whole / len(examples),
  }


def device() -> str:
  """Number and kind of the devices."""
  devices = jax.devices()
  return f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})'
