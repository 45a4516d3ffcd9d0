"""Compares a config with the run in a work directory.

Two runs are the same if their numbers depend on the same things. Files are
compared by content, so they may be moved. Fields that change no number, or only
where and how a run computes, may change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import config
from vtokens.data import records, sources, training_set
from vtokens.host import json_diff
from vtokens.run import distillation
from vtokens.serving import trained_file
from vtokens.settings import schema

# Fields compared by content: of the base by base.json, of data by data.json.
PATHS = (
  'base.path',
  'virtual_tokens.init_path',
  'train.distill.run',
  'data.train',
  'data.validation',
  'data.test',
  'data.corpus',
)

# Fields that change no number of the training.
FREE = (
  'data.on_bad_record',
  'data.workers',
  'data.token_cache',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'eval.batch_size',
  # The records used are compared by content.
  'eval.max_validation',
  'eval.max_test',
)

# Fields that say where and how a run computes; config.json lacks them.
NOT_KEPT = ('workdir', 'mesh', 'distributed', 'tracking')

# Fields that matter only if another field has a certain value.
_ONLY_WITH: Mapping[str, tuple[str, Any]] = {
  'virtual_tokens.init_text': ('virtual_tokens.init', 'text'),
  'virtual_tokens.init_std': ('virtual_tokens.init', 'normal'),
  'virtual_tokens.draw_exponent': ('virtual_tokens.draw', 'power'),
  'virtual_tokens.num_active': ('virtual_tokens.draw', 'fixed'),
  'templates.chat_answer': ('templates.chat', True),
  'templates.refusal': ('data.unanswerable', 'refuse'),
  'data.max_text_bytes': ('data.on_bad_record', 'skip'),
  'data.mixture.temperature': ('data.mixture.weighting', 'temperature'),
  'data.num_shapes': ('data.shapes', []),
  'train.distill.text': ('train.distill.tokens', 'text'),
  'eval.refusal_bias': ('data.unanswerable', 'refuse'),
}


def to_dict(cfg: config.Config) -> dict[str, Any]:
  """Converts a config to the JSON values of config.json."""
  values = schema.to_dict(cfg)
  for name in NOT_KEPT:
    del values[name]
  del values['data']['token_cache'], values['data']['workers']
  return values


def compare(
  claimed: dict[str, Any], cfg: config.Config
) -> tuple[list[str], list[str]]:
  """Compares a config with the run in a work directory.

  Args:
    claimed: content of config.json there, maybe from an earlier version.
    cfg: the config now.

  Returns:
    One line per field that makes it another run, and one per path that has
    changed, whose content the caller must compare.
  """
  # Fields that a later version added are off by default.
  then = json_diff.flat(to_dict(config.Config())) | json_diff.flat(claimed)
  now = json_diff.flat(to_dict(cfg))
  blocking, moved = [], []
  for field, line in json_diff.differences(then, now, 'config.').items():
    if field in PATHS:
      moved.append(line)
    elif field not in FREE and _matters(field, then, now):
      blocking.append(line)
  return blocking, moved


def _matters(
  field: str, then: Mapping[str, Any], now: Mapping[str, Any]
) -> bool:
  if field == 'train.validate_every':
    return bool(then.get('data.validation') or now.get('data.validation'))
  if field == 'eval.top_p':
    return any(values.get('eval.temperature') for values in (then, now))
  taught = any(values.get('train.distill.weight') for values in (then, now))
  if field.startswith('train.distill.') and not taught:
    return False
  if field == 'data.unanswerable':
    # A run that skips them has none of them if it goes on with `error`.
    return 'refuse' in (then.get(field), now.get(field))
  if field in _ONLY_WITH:
    other, value = _ONLY_WITH[field]
    return any(values.get(other) == value for values in (then, now))
  return True


def content(
  cfg: config.Config, held_out: Sequence[training_set.HeldOut]
) -> dict[str, Any]:
  """Hashes all files of a run but the base.

  Args:
    cfg: of the run.
    held_out: validation and test data.

  Returns:
    The JSON values of data.json.

  Raises:
    errors.UserError: a file is missing or cannot be read.
  """
  tokens = cfg.virtual_tokens
  teacher = distillation.read_run(cfg.train.distill)
  return {
    'format': 2,
    'train': [sources.fingerprint(path) for path in cfg.data.train],
    'corpus': [sources.fingerprint(path) for path in cfg.data.corpus],
    # Draws depend on names of data sets; names of files are not listed.
    'train_sets': sources.regrouped(cfg.data.train),
    **{
      name: records.sha256(part.records)
      for name, part in zip(('validation', 'test'), held_out, strict=True)
    },
    # Of all records, used or not: no training question may be among them.
    'held_out': training_set.hash_questions(held_out)
    if cfg.data.mixture.remove_leaks
    else '',
    'init_table': trained_file.sha256(
      trained_file.load(tokens.init_path, tokens.kind)[0]
    )
    if tokens.init == 'table'
    else '',
    # Earlier versions had none.
    **({'teacher': teacher.sha256} if teacher else {}),
  }


def compare_content(
  claimed: dict[str, Any], found: dict[str, Any], cfg: config.Config
) -> list[str]:
  """Compares files with those of the run in a work directory.

  Args:
    claimed: content of data.json there, maybe from an earlier version.
    found: result of `content`.
    cfg: the config now.

  Returns:
    One line per file that has changed.
  """
  if 'format' not in claimed:
    claimed = _as_now(claimed, found, cfg)
  lines = []
  paths: Sequence[str]
  for name in ('corpus', 'train'):
    there, now = claimed.get(name), found[name]
    paths = getattr(cfg.data, name)
    if not isinstance(there, list) or len(there) != len(now):
      number = len(there) if isinstance(there, list) else 'none'
      lines.append(f'config.data.{name}: {number} there, {len(now)} now')
      continue
    lines += [
      f'config.data.{name}: {path}: {old} there, {new} now'
      for path, old, new in zip(paths, there, now, strict=True)
      if old != new
    ]
  old, new = claimed.get('train_sets') or {}, found['train_sets']
  lines += [
    f'config.data.train: {paths[int(i)]}: data set {old.get(i, "by its file")} '
    f'there, {new.get(i, "by its file")} now (NAME=PATH names it)'
    for i in sorted(old.keys() | new.keys(), key=int)
    if old.get(i) != new.get(i) and int(i) < len(paths)
  ]
  for key, what in _WHAT.items():
    if claimed.get(key) != found.get(key):
      lines.append(f'{what}: {claimed.get(key)} there, {found.get(key)} now')
  return lines


# Names of the fields of data.json, for messages.
_WHAT = {
  'validation': 'config.data.validation',
  'test': 'config.data.test',
  'held_out': 'questions of config.data.validation and test',
  'init_table': 'config.virtual_tokens.init_path',
  'teacher': 'config.train.distill.run',
}


def _as_now(
  claimed: dict[str, Any], found: dict[str, Any], cfg: config.Config
) -> dict[str, Any]:
  """Converts a data.json of an earlier version.

  It had one dict by path for training sources and corpus, and lacked `held_out`
  and `init_table`.
  """
  named = claimed.get('train')
  there = list(named.items()) if isinstance(named, dict) else []
  now = dict(zip(cfg.data.train, found['train'], strict=True)) | dict(
    zip(cfg.data.corpus, found['corpus'], strict=True)
  )
  same = len(there) == len(now) and all(
    # Names of data sets and ids can come from the name of the file.
    epath.Path(old_path).name == epath.Path(path).name and old == digest
    for (old_path, old), (path, digest) in zip(there, now.items(), strict=True)
  )
  if not same:
    number = len(cfg.data.train)
    hashes = [f'{digest} ({path})' for path, digest in there]
    return {
      **found,
      **claimed,
      'train': hashes[:number],
      'corpus': hashes[number:],
      'train_sets': {},
    }
  return {
    **found,
    **claimed,
    'train': found['train'],
    'corpus': found['corpus'],
    'train_sets': {},
  }
