"""The directory of a sweep: its files, and what is known of candidates.

sweep.json      what the sweep is; written before a candidate trains
candidates/N/   work directories of training runs
tokens/         the tokenised training data, unless data.token_cache is set
results.json    all candidates at their rungs; written after each training
results.md      the same as a table
best.py         the config of the best candidate; written when it has ended
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vtokens.host import (
  claimed_directory,
  errors,
  json_diff,
  json_files,
  paths,
  writers,
)
from vtokens.run import run_identity
from vtokens.run.workdir import RunDir
from vtokens.settings import config_file
from vtokens.sweeping import results_table
from vtokens.sweeping.candidates import Candidate
from vtokens.sweeping.halving import Rung
from vtokens.sweeping.scores import Record, Score

_SWEEP, _RESULTS = 'sweep.json', 'results.json'
_OTHER = 'choose another --config.workdir'
_ADVICE = (
  'delete it to have it made again from the work directories of the candidates'
)


_SCORE = {field.name: field.type for field in dataclasses.fields(Score)}
_SHAPE = {'candidates': [{'name': str, 'diverged': str, 'scores': [_SCORE]}]}


class SweepDirectory:
  """The directory of a sweep.

  Args:
    path: on a disk or an object store.
    candidates: of the sweep.

  Attributes:
    path: the same.
    best: the config of the best candidate.
  """

  def __init__(self, path: epath.PathLike, candidates: Sequence[Candidate]):
    self.path = epath.Path(path)
    self.best = self.path / 'best.py'
    self._candidates = candidates

  def check(self, options: Mapping[str, Any]) -> None:
    """Raises unless the directory is free or holds this sweep.

    A sweep of which no candidate has begun may be replaced.

    Args:
      options: JSON values that decide the sweep besides its candidates.

    Raises:
      errors.UserError: it holds something else, or a file is damaged.
    """
    if not paths.exists(self.path / _SWEEP):
      found = (
        [p.name for p in self.path.iterdir()] if self.path.exists() else []
      )
      found = [n for n in found if not n.startswith(('.', _SWEEP))]
      if found:
        raise errors.UserError(
          f'config.workdir: {self.path} is not empty and holds no sweep '
          f'({errors.several(sorted(found))}); {_OTHER}'
        )
      return
    there = json_files.read(
      self.path / _SWEEP,
      {'config': dict, 'over': dict},
      f'it says what the sweep is: put it back, or {_OTHER}',
    )
    if not self._is_begun():
      return
    blocking, _ = run_identity.compare(
      there.pop('config'), self._candidates[0].config
    )
    now = self._identity(options)
    del now['config']
    varied = tuple(f'config.{f}:' for f in {**there['over'], **now['over']})
    lines = [line for line in blocking if not line.startswith(varied)]
    message = claimed_directory.difference(
      self.path, 'another sweep', [*lines, *json_diff.diff(there, now, '--')]
    )
    if message:
      raise errors.UserError(
        f'{message}\n{_OTHER}, or repeat the same command to continue that '
        'sweep'
      )

  def _is_begun(self) -> bool:
    runs = self.path / 'candidates'
    return runs.exists() and any(
      RunDir(run).read_claim()['settings'] is not None for run in runs.iterdir()
    )

  def claim(self, options: Mapping[str, Any]) -> None:
    """Writes what the sweep is."""
    writers.write_json(self.path / _SWEEP, self._identity(options))

  def _identity(self, options: Mapping[str, Any]) -> dict[str, Any]:
    over: dict[str, list[Any]] = {}
    for candidate in self._candidates:
      for field, value in candidate.values.items():
        if value not in over.setdefault(field, []):
          over[field].append(value)
    return {
      'config': run_identity.to_dict(self._candidates[0].config),
      'over': over,
      **options,
    }

  def read(self) -> dict[str, Record]:
    """Returns what is known of each candidate, by its name.

    Raises:
      errors.UserError: results.json is damaged.
    """
    records = {candidate.name: Record() for candidate in self._candidates}
    # Without runs the results are those of another sweep.
    if self._is_begun() and paths.exists(self.path / _RESULTS):
      found = json_files.read(self.path / _RESULTS, _SHAPE, _ADVICE)
      for one in found['candidates']:
        if one['name'] in records:
          records[one['name']] = Record.from_dict(one)
    return records

  def write(
    self,
    records: Mapping[str, Record],
    options: Mapping[str, Any],
    rungs: Sequence[Rung],
    winner: Mapping[str, Any] | None,
  ) -> None:
    """Writes results.json and results.md.

    Args:
      records: of all candidates.
      options: see `check`.
      rungs: of the sweep.
      winner: JSON values about the best candidate, once it has ended.
    """
    content = {
      **options,
      'rungs': [dataclasses.asdict(rung) for rung in rungs],
      'candidates': [
        {
          'name': one.name,
          'workdir': one.config.workdir,
          'values': one.values,
          **dataclasses.asdict(records[one.name]),
        }
        for one in self._candidates
      ],
      'winner': winner,
    }
    writers.write_json(self.path / _RESULTS, content)
    writers.write_text(
      self.path / 'results.md',
      results_table.page(self._candidates, records, rungs, options, winner),
    )

  def write_best(self, best: Candidate) -> None:
    """Writes the config of the best candidate."""
    about = (
      f'The best candidate of the sweep in {self.path}, written by vtokens '
      'sweep.'
    )
    writers.write_text(self.best, config_file.write(best.config, about))
