"""Builds a dataset of records: python -m vtokens.data.build --config FILE.

`vtokens.data.built_datasets` and tensorflow-datasets read the result, which is
in array_record; see docs/data.md.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tqdm
from etils import epath

from vtokens.data import built_datasets, dataset_names, sources
from vtokens.data.build import split_reading
from vtokens.data.build.build_config import Config
from vtokens.data.build.split_reading import SplitCounts
from vtokens.data.formats import row_formats
from vtokens.data.records import Record
from vtokens.host import (
  checksums,
  claimed_directory,
  errors,
  json_diff,
  json_files,
  paths,
  stopping,
  writers,
)
from vtokens.settings import schema


def build(cfg: Config) -> str:
  """Builds a dataset, or keeps it if it exists.

  The dataset gets its final name once it is written and checked.

  Args:
    cfg: a valid config.

  Returns:
    The dataset's directory.

  Raises:
    errors.UserError: the input is bad, or another dataset has this name.
  """
  from vtokens.data import retrieval_qa

  final = pathlib.Path(
    cfg.out, retrieval_qa.NAME, cfg.name, retrieval_qa.VERSION
  )
  built_from = _built_from(cfg)
  fingerprint = _fingerprint(built_from)
  if final.exists():
    _keep(str(final), fingerprint, built_from)
    return str(final)
  out = pathlib.Path(cfg.out)
  with paths.writing(out):
    out.mkdir(parents=True, exist_ok=True)
  writers.say(f'{cfg.name}: building in {final}')
  with claimed_directory.unfinished(
    final, str(out / f'.building-{cfg.name}-')
  ) as work:
    written, counts = _write(cfg, str(work))
    _finish(written, cfg, counts, fingerprint, built_from)
    final.parent.mkdir(parents=True, exist_ok=True)
    stopping.check()
    try:
      os.rename(written, final)
    except OSError as e:
      raise errors.UserError(
        f'{final}: the dataset cannot be moved here: {e}'
      ) from e
  return str(final)


def _built_from(cfg: Config) -> dict[str, Any]:
  """Everything that decides the content of the dataset."""
  values = schema.to_dict(cfg)
  for name in ('out', 'runner', 'beam_options', 'on_bad_record'):
    del values[name]
  for name, split in cfg.splits.items():
    for field in ('sources', 'corpus'):
      values['splits'][name][field] = [
        {'name': epath.Path(path).name, 'sha256': sources.fingerprint(path)}
        for path in getattr(split, field)
      ]
    for value, called in zip(
      values['splits'][name]['sources'],
      dataset_names.of(split.sources),
      strict=True,
    ):
      # Most datasets are named by their file.
      if called.dataset != dataset_names.by_file(called.location):
        value['dataset'] = called.dataset
    # It does not decide what is built.
    del values['splits'][name]['expected_records']
    # Datasets of versions without the field stay what they are.
    if split.unanswerable != 'keep':
      del values['splits'][name]['unanswerable']
  if others := row_formats.registered():
    values['formats'] = others
  return values


def _fingerprint(built_from: Mapping[str, Any]) -> str:
  return hashlib.sha256(
    json.dumps(built_from, sort_keys=True).encode()
  ).hexdigest()


def _keep(path: str, fingerprint: str, built_from: dict[str, Any]) -> None:
  """Checks that the existing dataset is the one to build.

  Raises:
    errors.UserError: it is another one, or damaged.
  """
  manifest = built_datasets.read_manifest(path)
  if manifest.fingerprint != fingerprint:
    differences = json_diff.diff(dict(manifest.built_from), built_from)
    raise errors.UserError(
      f'{path}: a dataset that was built from something else is here:'
      + errors.lines(differences)
      + '\nGive this one another --config.name, or delete that one'
    )
  built_datasets.verify(manifest)
  writers.say(
    f'{path}: is there, built from the same inputs and settings; all SHA-256 '
    'are right; kept'
  )


def _write(cfg: Config, work: str) -> tuple[str, dict[str, SplitCounts]]:
  """Writes the shards below `work`; returns their directory and the counts."""
  from vtokens.data import retrieval_qa

  write = functools.partial(
    retrieval_qa.write,
    work,
    cfg.name,
    num_shards=cfg.num_shards,
  )
  if cfg.runner == 'beam':
    from vtokens.data.build import beam_reading

    options = beam_reading.pipeline_options(cfg.beam_options)
    counts, splits = beam_reading.read_splits(
      cfg.splits,
      max_passages=cfg.max_passages,
      on_bad_record=cfg.on_bad_record,
      directory=work,
      options=options,
    )
    for name in cfg.splits:
      _check_number(cfg, name, counts[name])
    return write(splits, beam_options=options), counts
  counts = {name: SplitCounts() for name in cfg.splits}
  generators: dict[str, Callable[[], Iterator[Record]]] = {
    name: functools.partial(_read_split, cfg, name, counts[name])
    for name in cfg.splits
  }
  return write(generators), counts


def _read_split(
  cfg: Config, name: str, counts: SplitCounts
) -> Iterator[Record]:
  yield from tqdm.tqdm(
    split_reading.read_split(
      cfg.splits[name],
      max_passages=cfg.max_passages,
      on_bad_record=cfg.on_bad_record,
      counts=counts,
    ),
    desc=name,
    unit=' records',
    disable=None,
  )
  # Before tfds writes the shards.
  _check_number(cfg, name, counts)


def _check_number(cfg: Config, name: str, counts: SplitCounts) -> None:
  expected = cfg.splits[name].expected_records
  if expected and counts.kept != expected:
    raise errors.UserError(
      f'config.splits[{name}]: {counts.kept:,} records, expected_records says '
      f'{expected:,} ({_left_out(counts)}). Check that the sources are whole '
      'and of the right version, or set expected_records=0'
    )
  least = max(1, cfg.num_shards)
  if counts.kept < least:
    raise errors.UserError(
      f'config.splits[{name}]: {counts.kept} records, expected at least '
      f'{least} ({_left_out(counts)}): no split may be empty, and no shard'
    )


def _finish(
  directory: str,
  cfg: Config,
  counts: Mapping[str, SplitCounts],
  fingerprint: str,
  built_from: dict[str, Any],
) -> None:
  """Writes checksums, reports and, last, the manifest; then verifies all."""
  # Written by tfds.
  info = json_files.read(pathlib.Path(directory, 'dataset_info.json'))
  lengths = {
    split['name']: [int(n) for n in split['shardLengths']]
    for split in info['splits']
  }
  splits: dict[str, Any] = {}
  for name in cfg.splits:
    files = sorted(pathlib.Path(directory).glob(f'*-{name}.array_record-*'))
    shards = []
    for file, num_records in zip(files, lengths[name], strict=True):
      sha256 = built_datasets.sha256(str(file))
      # In the format of sha256sum.
      file.with_name(f'{file.name}.sha256').write_text(
        f'{sha256}  {file.name}\n'
      )
      shards.append(
        built_datasets.Shard(
          file.name, num_records, file.stat().st_size, sha256
        )
      )
    count = counts[name]
    if sum(lengths[name]) != count.kept:
      raise errors.UserError(
        f'{directory}: {sum(lengths[name])} records written to the split '
        f'{name}, {count.kept} read; this is a fault of this program'
      )
    if count.skipped:
      pathlib.Path(directory, f'skipped-{name}.txt').write_text(
        '\n'.join(count.skipped) + '\n', encoding='utf-8'
      )
    splits[name] = {
      'shards': [dataclasses.asdict(shard) for shard in shards],
      'datasets': dict(sorted(count.datasets.items())),
      'skipped': len(count.skipped),
      'no_answer': count.no_answer,
      'not_drawn': count.not_drawn,
      'passages_cut': count.passages_cut,
      'notes': dict(sorted(count.notes.items())),
    }
  manifest = {
    'format': built_datasets.FORMAT,
    'fingerprint': fingerprint,
    'built_from': built_from,
    'splits': splits,
  }
  pathlib.Path(directory, built_datasets.MANIFEST).write_text(
    json.dumps(checksums.seal(manifest), indent=1) + '\n', encoding='utf-8'
  )
  built_datasets.verify(built_datasets.read_manifest(directory))


def _left_out(counts: SplitCounts) -> str:
  parts = [
    f'{number:,} {what}'
    for number, what in (
      (len(counts.skipped), 'bad records skipped'),
      (counts.no_answer, 'without an answer'),
      (counts.not_drawn, 'not drawn'),
    )
    if number
  ]
  return ', '.join(parts) + ' left out' if parts else 'none left out'


def _report(path: str) -> None:
  """Prints the content of a dataset."""
  manifest = built_datasets.read_manifest(path)
  counts = {
    'skipped': int,
    'no_answer': int,
    'not_drawn': int,
    'passages_cut': int,
    'notes': {str: int},
    'datasets': {str: int},
  }
  values = json_files.read(
    pathlib.Path(path, built_datasets.MANIFEST), {'splits': {str: counts}}
  )['splits']
  for name, shards in manifest.splits.items():
    split = values[name]
    size = sum(shard.num_bytes for shard in shards)
    number = sum(shard.num_records for shard in shards)
    writers.say(
      f'{name}: {number:,} records, {size / 2**20:.1f} MiB in {len(shards)} '
      f'shard{"s" if len(shards) > 1 else ""}, {size / number:,.0f} bytes a '
      'record; '
      + ', '.join(f'{key} {n:,}' for key, n in split['datasets'].items())
    )
    for key, what in (
      ('skipped', f'bad records left out: {path}/skipped-{name}.txt'),
      ('no_answer', 'records left out for drop_answers'),
      ('not_drawn', 'records left out for max_records'),
      ('passages_cut', 'passages left out for max_passages'),
    ):
      if split[key]:
        writers.say(f'{name}: {split[key]:,} {what}')
    for note, count in split['notes'].items():
      writers.say(f'{name}: {count:,} {note}')
  writers.say(
    f'use it as {built_datasets.SOURCE}{path}:{next(iter(manifest.splits))}'
  )


def main(cfg: Config) -> None:
  """Entry point."""
  with stopping.at_once():
    _report(build(cfg))
