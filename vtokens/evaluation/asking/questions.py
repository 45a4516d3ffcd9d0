"""The questions of an evaluation, by dataset."""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from vtokens.data import sources, training_set
from vtokens.data.checks import BadRecords
from vtokens.data.records import Record
from vtokens.evaluation import answer_rules
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.eval_config import UNTOUCHED, Config
from vtokens.host import errors

# Names the stream of random numbers that is derived from the seed.
_CHOICE = 21


def read(cfg: Config, say: Callable[[str], None]) -> dict[str, list[Record]]:
  """Reads the questions of an evaluation.

  Only passages that may be shown are kept: a hundred of each question would not
  fit into memory.

  Args:
    cfg: settings of the evaluation.
    say: prints what was left out.

  Returns:
    Records by dataset, in the order of the sources.

  Raises:
    errors.UserError: a source or record is bad, a dataset has no passages of
      a retriever, or there are no questions at all.
  """
  if not set(cfg.conditions) - {UNTOUCHED}:
    return {}
  data = cfg.data
  report = BadRecords(
    data.on_bad_record,
    on_unanswerable=training_set.on_unanswerable(data.unanswerable),
    max_text_bytes=data.max_text_bytes,
  )
  depth = max(cfg.num_passages)
  found: dict[str, list[Record]] = {}
  for record in sources.read(
    data.sources, report=report, corpus=data.corpus, turns=data.turns
  ):
    shown = {name: ranked[:depth] for name, ranked in record.passages.items()}
    found.setdefault(record.dataset, []).append(
      dataclasses.replace(record, passages=shown)
    )
  for note, count in report.notes.items():
    say(f'{count:,} {note}')
  if report.messages:
    say(
      f'skipped {len(report.messages)} bad records; the first: '
      f'{report.messages[0]}'
    )
  if not found:
    raise errors.UserError(
      f'config.data.sources: no questions in {errors.several(data.sources)}'
    )
  chosen = {name: _choose(cfg, name, part) for name, part in found.items()}
  _check(cfg, chosen, say)
  return chosen


def _choose(cfg: Config, dataset: str, records: list[Record]) -> list[Record]:
  most = cfg.data.max_questions
  if not most or len(records) <= most:
    return records
  rng = np.random.default_rng([cfg.seed, _CHOICE, zlib.crc32(dataset.encode())])
  kept = sorted(rng.choice(len(records), most, replace=False).tolist())
  return [records[i] for i in kept]


def _check(
  cfg: Config, found: dict[str, list[Record]], say: Callable[[str], None]
) -> None:
  for name in cfg.data.rules:
    if name not in found:
      raise errors.UserError(
        f'config.data.rules: no dataset {name!r}; there are '
        f'{errors.several(found)}'
      )
  shows = any(
    CONDITIONS[name].passages for name in cfg.conditions if name != UNTOUCHED
  )
  for dataset, records in found.items():
    if not any(record.answerable for record in records):
      raise errors.UserError(
        f'config.data.sources: none of the {len(records):,} questions of '
        f'{dataset} has an answer; expected some that have one, to score EM '
        'and F1: give them the same name, as NAME=PATH'
      )
    answer_rules.check_answers(cfg.data.rules.get(dataset, 'text'), records)
    for retriever in cfg.retrievers if shows and max(cfg.num_passages) else ():
      counts = [len(record.ranked(retriever)) for record in records]
      label = f'passages of {retriever}' if retriever else 'passages'
      if not any(counts):
        there = sorted({name for record in records for name in record.passages})
        raise errors.UserError(
          f'config.retrievers: no question of {dataset} has {label}; there are '
          f'passages of {errors.several(there)}'
        )
      few = sum(count < max(cfg.num_passages) for count in counts)
      if few:
        say(
          f'{dataset}: {few:,} of {len(records):,} questions have fewer than '
          f'{max(cfg.num_passages)} {label}'
        )
