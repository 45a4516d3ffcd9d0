"""From the sources of a config to the training examples of a run.

sources --sources.py--> records --tokens.py--> token sets
  --leaks.py: minus held-out questions--> mixture
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vtokens import config
from vtokens.data import dataset_names, formats, leaks, sources
from vtokens.data import token_cache as tokens
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import TrainingMixture
from vtokens.data.records import Record
from vtokens.devices import distributed
from vtokens.host import errors, paths


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Validation or test data.

  Attributes:
    records: those that are used. Of their passages only those are kept that
      may be shown: a hundred of each question would not fit the memory.
    question_keys: `leaks.hash_questions` by data set, of all records there
      are, used or not.
  """

  records: list[Record]
  question_keys: dict[str, np.ndarray]


def read_held_out(
  cfg: config.Config, field: str, most: int, report: BadRecords
) -> HeldOut:
  """Reads validation or test records.

  Args:
    cfg: of the run.
    field: validation or test.
    most: the first so many are used; 0 for all.
    report: of bad records.

  Raises:
    errors.UserError: a source or record is bad, or none has passages of
      config.eval.retriever.
  """
  found = getattr(cfg.data, field)
  if not found:
    return HeldOut([], {})
  kept: list[Record] = []
  questions: dict[str, list[str]] = {}
  for record in _read(found, cfg.data, report):
    questions.setdefault(record.dataset, []).append(record.question)
    if not most or len(kept) < most:
      shown = {
        name: ranked[: cfg.eval.num_passages]
        for name, ranked in record.passages.items()
      }
      kept.append(dataclasses.replace(record, passages=shown))
  name = cfg.eval.retriever
  if name and cfg.eval.num_passages:
    without = sum(not record.ranked(name) for record in kept)
    if without == len(kept):
      there = sorted({n for record in kept for n in record.passages})
      raise errors.UserError(
        f'config.eval.retriever: no record of config.data.{field} has '
        f'passages of {name!r}; there are those of {errors.several(there)}'
      )
    if without:
      report.notes[f'questions without passages of {name}'] += without
  return HeldOut(
    kept,
    {name: leaks.hash_questions(asked) for name, asked in questions.items()},
  )


def bad_records(data: config.Data) -> BadRecords:
  """An empty account of bad records, with the policy of the config."""
  return BadRecords(data.on_bad_record, max_text_bytes=data.max_text_bytes)


def _read(
  found: Sequence[str], data: config.Data, report: BadRecords
) -> Iterator[Record]:
  return sources.read(
    found, report=report, corpus=data.corpus, turns=data.turns
  )


def open_training_set(
  cfg: config.Config,
  assembler: Assembler,
  held_out: Sequence[HeldOut],
  say: Callable[[str], None],
  check: Callable[[], None] = lambda: None,
) -> tuple[TrainingMixture, list[str]]:
  """Tokenises the training sources, or finds them tokenised.

  Args:
    cfg: of the run.
    assembler: of the run.
    held_out: validation and test data, whose questions are removed.
    say: is told what was removed.
    check: called while tokenising; may raise to stop.

  Returns:
    The training examples, and a message for each record left out as bad or
    too long.

  Raises:
    errors.UserError: a source or record is bad, or does not fit.
  """
  data = cfg.data
  policies = [data.passages, *data.mixture.passages.values()]
  directory = _token_cache(cfg, say)
  assembler.check_before(assembler.in_chat(None))
  assembler.check_shapes(
    data.shapes,
    data.examples_per_row,
    cfg.virtual_tokens.draws_per_example,
  )
  run = distributed.run_name()
  token_sets = []
  for group in sources.groups(data.train):
    report = bad_records(data)
    token_set = tokens.tokenize(
      _read(group, data, report),
      report,
      assembler.encoder,
      depth=max(policy.depth for policy in policies),
      directory=directory,
      identity={
        # In order, which decides what comes first and which of two records
        # with one id is the duplicate.
        'sources': _contents(group),
        'read': formats.version(),
        'names': sources.called(group),
        'corpus': _contents(data.corpus),
        'turns': data.turns,
        # What `skip` has left out is still an error to who wants none.
        'on_bad_record': data.on_bad_record,
        'max_text_bytes': data.max_text_bytes,
      },
      label=f'tokenizing {group[0]}',
      check=check,
      run=run,
    )
    token_sets.append(token_set)
  leaked = _leaks(token_sets, held_out, data.mixture.remove_leaks, say)
  for token_set in token_sets:
    for note, count in token_set.meta['notes'].items():
      say(f'training data: {count:,} {note}')
  messages = [m for tokens in token_sets for m in tokens.meta['skipped']]
  mixture = TrainingMixture(
    token_sets,
    [
      {
        'leaked': mask,
        'too long': _too_long(token_set, ~mask, assembler, cfg, say, messages),
      }
      for mask, token_set in zip(leaked, token_sets, strict=True)
    ],
    cfg,
    assembler,
  )
  if mixture.num_without_passages:
    say(
      f'training data: {mixture.num_without_passages:,} of '
      f'{sum(mixture.sizes):,} questions have no passages to show'
    )
  return mixture, messages


def _contents(group: Sequence[str]) -> list[list[str]]:
  """What sources are called by the config, and their fingerprints."""
  return [[dataset_names.split(s)[0], sources.fingerprint(s)] for s in group]


def hash_questions(held_out: Sequence[HeldOut]) -> str:
  """Hash of what is asked in held-out data, used or not."""
  digest = hashlib.sha256()
  for part in held_out:
    for name, keys in sorted(part.question_keys.items()):
      digest.update(f'{name} {len(keys)}\n'.encode() + keys.tobytes())
  return digest.hexdigest()


def _token_cache(
  cfg: config.Config, say: Callable[[str], None]
) -> pathlib.Path:
  """Where tokenised data is kept: always on a disk, to be mapped to memory."""
  if cfg.data.token_cache:
    return pathlib.Path(cfg.data.token_cache)
  if not paths.on_object_store(cfg.workdir):
    return pathlib.Path(cfg.workdir, 'tokens')
  caches = paths.expand_home(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  directory = pathlib.Path(caches, 'vtokens', 'tokens')
  say(
    f'tokenised data: {directory}, since {cfg.workdir} is no disk '
    '(config.data.token_cache)'
  )
  return directory


def _too_long(
  token_set: tokens.TokenSet,
  wanted: np.ndarray,
  assembler: Assembler,
  cfg: config.Config,
  say: Callable[[str], None],
  messages: list[str],
) -> np.ndarray:
  """Which of the wanted records have no answer that fits; tells, or raises.

  At the start, rather than hours into the run when one is first drawn.
  """
  most = cfg.virtual_tokens.num_virtual_tokens
  prompts, answers, owners = token_set.all_lens()
  fits = np.asarray(assembler.fits(most, prompts[owners], answers))
  usable = ~wanted
  usable[owners[fits]] = True
  bad = np.flatnonzero(~usable).tolist()
  if len(bad) and cfg.data.on_bad_record == 'error':
    shortest = int(answers[owners == bad[0]].min())
    assembler.check(
      most, int(prompts[bad[0]]), shortest, f'record {token_set.id(bad[0])}'
    )
  fields = 'config.data.max_answer_tokens and max_suffix_tokens'
  messages += [
    f'record {token_set.id(i)}: no answer fits {fields}' for i in bad
  ]
  spare = int((~fits & usable[owners] & wanted[owners]).sum())
  if len(bad):
    say(
      f'{len(bad):,} training questions are left out: no answer fits {fields}'
    )
  if spare:
    say(f'{spare:,} alternative answers do not fit them and are never drawn')
  return ~usable


def _leaks(
  token_sets: Sequence[tokens.TokenSet],
  held_out: Sequence[HeldOut],
  remove: bool,
  say: Callable[[str], None],
) -> list[np.ndarray]:
  """Which training records ask a held-out question; tells how many do."""
  keys: dict[str, list[np.ndarray]] = {}
  for part in held_out:
    for name, hashes in part.question_keys.items():
      keys.setdefault(name, []).append(hashes)
  # Of each data set, which records of which token set are in it.
  rows: dict[str, list[tuple[int, np.ndarray]]] = {}
  for number, token_set in enumerate(token_sets):
    for code, name in enumerate(token_set.datasets):
      index = np.flatnonzero(token_set.dataset == code)
      rows.setdefault(name, []).append((number, index))
  found = leaks.find_leaks(
    {
      name: np.concatenate(
        [token_sets[number].question_key[index] for number, index in parts]
      )
      for name, parts in rows.items()
    },
    {name: np.concatenate(parts) for name, parts in keys.items()},
  )
  masks = [np.zeros(len(token_set), bool) for token_set in token_sets]
  for name, parts in rows.items():
    cuts = np.cumsum([len(index) for _, index in parts])[:-1]
    for (number, index), leaked in zip(
      parts, np.split(found.remove[name], cuts), strict=True
    ):
      masks[number][index] = leaked
  text = leaks.format_leaks(found)
  if any(mask.any() for mask in masks):
    verdict = 'removed from training' if remove else 'kept all the same'
    text = (
      'training questions that are also in the validation or test data, '
      f'{verdict}:\n{text}'
    )
  if keys:
    say(text)
  return masks if remove else [np.zeros_like(mask) for mask in masks]
