"""From the sources of a config to the training examples of a run.

sources --sources.py--> records --tokens.py--> token sets
  --leaks.py: minus held-out questions--> mixture
"""

import collections
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from vtokens import config
from vtokens.data import leaks, sources, tokens
from vtokens.data.assemble import Assembler
from vtokens.data.mixture import Mixture
from vtokens.data.records import Record
from vtokens.data.sources import BadRecords


def read_held_out(
  data: config.Data, field: str, most: int, report: BadRecords
) -> list[Record]:
  """Reads validation or test records.

  Args:
    data: names the sources.
    field: validation or test.
    most: the first so many; 0 for all.
    report: of bad records.

  Returns:
    The records.

  Raises:
    errors.UserError: a source or record is bad.
  """
  paths = getattr(data, field)
  if not paths:
    return []
  # All of them: a bad record is told of wherever it is.
  records = list(sources.read(paths, corpus=data.corpus, report=report))
  return records[: most or None]


def open_training_set(
  cfg: config.Config,
  assembler: Assembler,
  held_out: Sequence[Record],
  say: Callable[[str], None],
) -> tuple[Mixture, list[str]]:
  """Tokenises the training sources, or finds them tokenised.

  Args:
    cfg: of the run.
    assembler: of the run.
    held_out: validation and test records, whose questions are removed.
    say: is told what was removed.

  Returns:
    The training examples, and a message for each bad record left out.

  Raises:
    errors.UserError: a source or record is bad, or does not fit.
  """
  data = cfg.data
  policies = [data.passages, *data.mixture.passages.values()]
  directory = pathlib.Path(data.token_cache or f'{cfg.workdir}/tokens')
  assembler.check_before(assembler.in_chat(None))
  token_sets = []
  for source in data.train:
    report = BadRecords(data.on_bad_record)
    token_set = tokens.tokenize(
      sources.read([source], corpus=data.corpus, report=report),
      report,
      assembler.encoder,
      depth=max(policy.depth for policy in policies),
      directory=directory,
      identity={
        'sources': sources.identity([source], data.corpus),
        # What `skip` has left out is still an error to who wants none.
        'on_bad_record': data.on_bad_record,
      },
      label=f'tokenizing {source}',
    )
    token_sets.append(token_set)
  leaked = _leaks(token_sets, held_out, data.mixture.remove_leaks, say)
  mixture = Mixture(
    token_sets,
    [
      mask | _too_long(token_set, assembler, cfg, say)
      for mask, token_set in zip(leaked, token_sets, strict=True)
    ],
    cfg,
    assembler,
  )
  return mixture, [m for tokens in token_sets for m in tokens.meta['skipped']]


def _too_long(
  token_set: tokens.TokenSet,
  assembler: Assembler,
  cfg: config.Config,
  say: Callable[[str], None],
) -> np.ndarray:
  """Which records have no answer that fits; tells how many, or raises.

  At the start, rather than hours into the run when one is first drawn.
  """
  most = cfg.virtual_tokens.num_virtual_tokens
  prompts, answers, owners = token_set.all_lens()
  fits = np.asarray(assembler.fits(most, prompts[owners], answers))
  usable = np.zeros(len(token_set), bool)
  usable[owners[fits]] = True
  bad = np.flatnonzero(~usable)
  if len(bad) and cfg.data.on_bad_record == 'error':
    shortest = int(answers[owners == bad[0]].min())
    assembler.check(
      most, int(prompts[bad[0]]), shortest, f'record {token_set.id(bad[0])}'
    )
  spare = int((~fits & usable[owners]).sum())
  if len(bad):
    say(
      f'{len(bad):,} training questions are left out: no answer fits '
      'config.data.max_answer_tokens and max_suffix_tokens'
    )
  if spare:
    say(f'{spare:,} alternative answers do not fit them and are never drawn')
  return ~usable


def _leaks(
  token_sets: Sequence[tokens.TokenSet],
  held_out: Sequence[Record],
  remove: bool,
  say: Callable[[str], None],
) -> list[np.ndarray]:
  """Which training records ask a held-out question; tells how many do."""
  questions: dict[str, list[str]] = {}
  for record in held_out:
    questions.setdefault(record.dataset, []).append(record.question)
  keys = {name: leaks.question_keys(asked) for name, asked in questions.items()}
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  masks = []
  for token_set in token_sets:
    mask = np.zeros(len(token_set), bool)
    for name, wanted in keys.items():
      hit = np.isin(token_set.question_key, wanted)
      mask |= hit
      for code in token_set.dataset[hit]:
        counts[token_set.datasets[code], name] += 1
    masks.append(mask)
  if counts:
    say(
      f'{sum(mask.sum() for mask in masks):,} training questions are also in '
      f'the validation or test data; '
      + ('removed from training:' if remove else 'kept all the same:')
    )
    for (ours, theirs), count in sorted(counts.items()):
      say(f'  {ours}: {count:,} of {theirs}')
  return masks if remove else [np.zeros_like(mask) for mask in masks]
