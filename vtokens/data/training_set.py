"""Turns the sources of a config into the training examples of a run.

sources --sources.py--> records --token_cache.py--> token sets
  --leaks.py removes held-out questions--> mixture
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vtokens import config
from vtokens.data import dataset_names, formats, leaks, sources, token_cache
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import TrainingMixture
from vtokens.data.records import Record
from vtokens.data.token_set import TokenSet
from vtokens.devices import distributed
from vtokens.host import errors, paths, user_cache


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Validation or test data.

  Attributes:
    records: the records used. They keep only the passages that may be shown:
      a hundred for each question would not fit into memory.
    question_keys: `leaks.hash_questions` of all records, used or not, by
      dataset.
  """

  records: list[Record]
  question_keys: dict[str, np.ndarray]


def read_held_out(
  cfg: config.Config, field: str, most: int, report: BadRecords
) -> HeldOut:
  """Reads validation or test records.

  Args:
    cfg: config of the run.
    field: validation or test.
    most: number of records used, from the first on; 0 for all.
    report: account of bad records.

  Raises:
    errors.UserError: a source or record is bad, or no record has passages of
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
  if kept and not any(record.answerable for record in kept):
    raise errors.UserError(
      f'config.data.{field}: none of the {len(kept):,} questions used has an '
      'answer; expected some that have one, to score EM and F1'
    )
  name = cfg.eval.retriever
  if name and cfg.eval.num_passages:
    without = sum(not record.ranked(name) for record in kept)
    if without == len(kept):
      there = sorted({n for record in kept for n in record.passages})
      raise errors.UserError(
        f'config.eval.retriever: no record of config.data.{field} has '
        f'passages of {name!r}; found passages of {errors.several(there)}'
      )
    if without:
      report.notes[f'questions without passages of {name}'] += without
  return HeldOut(
    kept,
    {name: leaks.hash_questions(asked) for name, asked in questions.items()},
  )


def on_unanswerable(policy: str) -> str:
  """The policy of `BadRecords`: what is to be refused is kept."""
  return 'keep' if policy == 'refuse' else policy


def bad_records(data: config.Data) -> BadRecords:
  """Starts an account of bad records with the config's policy."""
  return BadRecords(
    data.on_bad_record,
    on_unanswerable=on_unanswerable(data.unanswerable),
    max_text_bytes=data.max_text_bytes,
  )


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
  """Tokenises the training sources, or opens them from the token cache.

  Args:
    cfg: config of the run.
    assembler: assembler of the run.
    held_out: validation and test data; training leaves out their questions.
    say: called with notes on what was removed.
    check: called while tokenising; may raise to stop.

  Returns:
    The training examples, and a message for each record that was bad or too
    long and was left out.

  Raises:
    errors.UserError: a source or record is bad, or a record does not fit.
  """
  data = cfg.data
  _check_refusal(cfg, assembler)
  policies = [data.passages, *data.mixture.passages.values()]
  assembler.check_before(assembler.in_chat(None))
  assembler.check_shapes(
    data.shapes,
    data.examples_per_row,
    cfg.virtual_tokens.draws_per_example,
  )
  cache = token_cache.TokenCache(
    _token_cache_directory(cfg, say),
    assembler.encoder,
    depth=max(policy.depth for policy in policies),
    run=distributed.run_name(),
  )
  token_sets = []
  for group in sources.groups(data.train):
    report = bad_records(data)
    token_set = cache.open(
      _read(group, data, report),
      report,
      identity={
        # The order of sources decides the order of records, and which of two
        # records with one id is the duplicate.
        'sources': _contents(group),
        'read': formats.version(),
        'names': sources.called(group),
        'corpus': _contents(data.corpus),
        'turns': data.turns,
        # What `skip` left out must still stop a run with `error`.
        'on_bad_record': data.on_bad_record,
        'max_text_bytes': data.max_text_bytes,
        # Token caches of versions without the field stay what they are.
        **(
          {'unanswerable': data.unanswerable}
          if data.unanswerable != 'skip'
          else {}
        ),
      },
      label=f'tokenizing {group[0]}',
      check=check,
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
  """NAME, or '', and fingerprint of each source."""
  return [[dataset_names.split(s)[0], sources.fingerprint(s)] for s in group]


def hash_questions(held_out: Sequence[HeldOut]) -> str:
  """Hash of all held-out questions, used or not."""
  digest = hashlib.sha256()
  for part in held_out:
    for name, keys in sorted(part.question_keys.items()):
      digest.update(f'{name} {len(keys)}\n'.encode() + keys.tobytes())
  return digest.hexdigest()


def _token_cache_directory(
  cfg: config.Config, say: Callable[[str], None]
) -> pathlib.Path:
  """Directory of tokenised data: on a disk, since memory maps need one."""
  if cfg.data.token_cache:
    return pathlib.Path(cfg.data.token_cache)
  if not paths.on_object_store(cfg.workdir):
    return pathlib.Path(cfg.workdir, 'tokens')
  directory = user_cache.directory() / 'tokens'
  say(
    f'tokenised data: {directory}, since {cfg.workdir} is not on a disk '
    '(config.data.token_cache)'
  )
  return directory


def _check_refusal(cfg: config.Config, assembler: Assembler) -> None:
  """Raises a `UserError` unless refusals can be trained and generated."""
  if not cfg.data.refuses:
    return
  length = len(assembler.refusal())
  for field, most, what in (
    ('data.max_answer_tokens', cfg.data.max_answer_tokens, length),
    # The end need not be generated.
    ('eval.max_new_tokens', cfg.eval.max_new_tokens, length - 1),
  ):
    if what > most:
      raise errors.UserError(
        f'config.{field}: expected room for templates.refusal='
        f'{cfg.templates.refusal!r}, {what} tokens, got {most}'
      )


def _too_long(
  token_set: TokenSet,
  wanted: np.ndarray,
  assembler: Assembler,
  cfg: config.Config,
  say: Callable[[str], None],
  messages: list[str],
) -> np.ndarray:
  """Mask of the wanted records without an answer that fits.

  Raises a `UserError` under on_bad_record=error: now, not hours into the run.
  """
  most = cfg.virtual_tokens.num_virtual_tokens
  prompts, answers, owners = token_set.all_lens()
  fits = np.asarray(assembler.fits(most, prompts[owners], answers))
  usable = ~wanted
  usable[owners[fits]] = True
  refusal = len(assembler.refusal())
  if cfg.data.refuses:
    # The target can be the refusal of every record; of some it is no other.
    usable |= np.bincount(owners, minlength=len(prompts)) == 0
    refuses = assembler.fits(most, prompts, refusal, cites=False)
    usable &= ~wanted | np.asarray(refuses)
  bad = np.flatnonzero(~usable).tolist()
  if len(bad) and cfg.data.on_bad_record == 'error':
    found = answers[owners == bad[0]]
    prompt, where = int(prompts[bad[0]]), f'record {token_set.id(bad[0])}'
    if len(found):
      assembler.check(most, prompt, int(found.min()), where)
    assembler.check(most, prompt, refusal, where, cites=False)
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
    say(f'{spare:,} alternative answers do not fit and are never drawn')
  return ~usable


def _leaks(
  token_sets: Sequence[TokenSet],
  held_out: Sequence[HeldOut],
  remove: bool,
  say: Callable[[str], None],
) -> list[np.ndarray]:
  """Masks of the training records that ask a held-out question."""
  keys: dict[str, list[np.ndarray]] = {}
  for part in held_out:
    for name, hashes in part.question_keys.items():
      keys.setdefault(name, []).append(hashes)
  # By dataset: (number of a token set, indices of its records).
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
    verdict = 'removed from training' if remove else 'kept'
    text = (
      'training questions that are also in the validation or test data, '
      f'{verdict}:\n{text}'
    )
  if keys:
    say(text)
  return masks if remove else [np.zeros_like(mask) for mask in masks]
