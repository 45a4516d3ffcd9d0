"""Whether a work directory's run is the one that a config describes.

A run is what its numbers depend on. Files are known by their content, so they
may lie elsewhere than when it began; fields that change no number of it, or say
only how it runs, may change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import config
from vtokens.data import records, sources, training_set
from vtokens.host import json_diff
from vtokens.serving import table_file
from vtokens.settings import schema

# By content: base.json has the base's, data.json that of the others.
PATHS = (
  'base.path',
  'virtual_tokens.init_path',
  'data.train',
  'data.validation',
  'data.test',
  'data.corpus',
)

# Change no number of the training.
FREE = (
  'data.on_bad_record',
  'data.workers',
  'data.token_cache',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'eval.batch_size',
  # The records that are used count, as content.
  'eval.max_validation',
  'eval.max_test',
)

# Where and how it runs, which is not even noted.
NOT_KEPT = ('workdir', 'mesh', 'distributed', 'tracking')

# Have a say only with some values of another field.
_ONLY_WITH: Mapping[str, tuple[str, Any]] = {
  'virtual_tokens.init_text': ('virtual_tokens.init', 'text'),
  'virtual_tokens.init_std': ('virtual_tokens.init', 'normal'),
  'virtual_tokens.draw_exponent': ('virtual_tokens.draw', 'power'),
  'virtual_tokens.num_active': ('virtual_tokens.draw', 'fixed'),
  'templates.chat_answer': ('templates.chat', True),
  'data.max_text_bytes': ('data.on_bad_record', 'skip'),
  'data.mixture.temperature': ('data.mixture.weighting', 'temperature'),
  'data.num_shapes': ('data.shapes', []),
}


def to_dict(cfg: config.Config) -> dict[str, Any]:
  """The config as config.json has it: JSON values."""
  values = schema.to_dict(cfg)
  for name in NOT_KEPT:
    del values[name]
  del values['data']['token_cache'], values['data']['workers']
  return values


def compare(
  claimed: dict[str, Any], cfg: config.Config
) -> tuple[list[str], list[str]]:
  """Compares a config with that of the run in a work directory.

  Args:
    claimed: content of config.json there, maybe of an earlier version.
    cfg: the config now.

  Returns:
    A line for each field that makes another run, and one for each path that
    is another: whether the content is the same is to be seen.
  """
  # What came with a later version is off by default.
  then = json_diff.flat(to_dict(config.Config())) | json_diff.flat(claimed)
  now = json_diff.flat(to_dict(cfg))
  blocking, moved = [], []
  for field, line in json_diff.differences(then, now, 'config.').items():
    if field in PATHS:
      moved.append(line)
    elif field not in FREE and _has_a_say(field, then, now):
      blocking.append(line)
  return blocking, moved


def _has_a_say(
  field: str, then: Mapping[str, Any], now: Mapping[str, Any]
) -> bool:
  if field == 'train.validate_every':
    return bool(then.get('data.validation') or now.get('data.validation'))
  if field == 'eval.top_p':
    return any(values.get('eval.temperature') for values in (then, now))
  if field in _ONLY_WITH:
    other, value = _ONLY_WITH[field]
    return any(values.get(other) == value for values in (then, now))
  return True


def content(
  cfg: config.Config, held_out: Sequence[training_set.HeldOut]
) -> dict[str, Any]:
  """What tells the run's files but for the base from any others.

  Args:
    cfg: of the run.
    held_out: validation and test data.

  Returns:
    JSON values, as data.json has them.

  Raises:
    errors.UserError: a file is not there, or not to be read.
  """
  tokens = cfg.virtual_tokens
  return {
    'format': 2,
    'train': [sources.fingerprint(path) for path in cfg.data.train],
    'corpus': [sources.fingerprint(path) for path in cfg.data.corpus],
    # Draws go by data set; those called after their files are not listed.
    'train_sets': sources.regrouped(cfg.data.train),
    **{
      name: records.sha256(part.records)
      for name, part in zip(('validation', 'test'), held_out, strict=True)
    },
    # Also of those that are not used: what they ask is no training question.
    'held_out': training_set.hash_questions(held_out)
    if cfg.data.mixture.remove_leaks
    else '',
    'init_table': table_file.sha256(table_file.load(tokens.init_path)[0])
    if tokens.init == 'table'
    else '',
  }


def compare_content(
  claimed: dict[str, Any], found: dict[str, Any], cfg: config.Config
) -> list[str]:
  """A line for each file that is another than in data.json.

  Args:
    claimed: content of data.json, maybe of an earlier version.
    found: of `content`.
    cfg: the config now.
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
    if claimed.get(key) != found[key]:
      lines.append(f'{what}: {claimed.get(key)} there, {found[key]} now')
  return lines


# Of data.json, as messages call it.
_WHAT = {
  'validation': 'config.data.validation',
  'test': 'config.data.test',
  'held_out': 'questions of config.data.validation and test',
  'init_table': 'config.virtual_tokens.init_path',
}


def _as_now(
  claimed: dict[str, Any], found: dict[str, Any], cfg: config.Config
) -> dict[str, Any]:
  """What an earlier version wrote, as this one does.

  It had one dict by path for training sources and corpus, and nothing of
  `held_out` and `init_table`.
  """
  named = claimed.get('train')
  there = list(named.items()) if isinstance(named, dict) else []
  now = dict(zip(cfg.data.train, found['train'], strict=True)) | dict(
    zip(cfg.data.corpus, found['corpus'], strict=True)
  )
  same = len(there) == len(now) and all(
    # Data sets and ids can be called after the file.
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
