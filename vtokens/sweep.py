r"""Finds good settings: trains many candidates, and the best of them further.

    python -m vtokens.sweep --config configs/x.py --config.workdir=runs/sweep \
      --over optim.learning_rate=3e-3,1e-2,3e-2 \
      --over virtual_tokens.init=text,vocab

A candidate is a training run with one value of each field; all combinations are
tried. All candidates train to a first step (a rung), one in `--eta` of them to
the next rung, and so on. The best one trains to its end in its own directory,
as `vtokens.train` would have trained it. The same command continues a sweep
that was stopped or killed. See docs/training.md.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

import vtokens.train as train_command
from vtokens import config
from vtokens.devices import distributed
from vtokens.host import errors, stopping, writers
from vtokens.method import kinds
from vtokens.models.frozen_base import BaseKeeper
from vtokens.run import run_summary
from vtokens.run.loop import DivergedError
from vtokens.settings import flags
from vtokens.sweeping import candidates as candidates_lib
from vtokens.sweeping import halving, results_table
from vtokens.sweeping.candidates import Candidate
from vtokens.sweeping.halving import Rung
from vtokens.sweeping.scores import Record, Score, score_of
from vtokens.sweeping.sweep_directory import SweepDirectory


@dataclasses.dataclass(frozen=True)
class Options:
  """What a sweep does besides its config.

  Attributes:
    over: texts FIELD=VALUE,VALUE...; see `candidates.parse`.
    by: what the validation compares: loss, em or f1.
    eta: one in so many candidates goes on to the next rung.
    finalists: candidates that train to the end.
  """

  over: Sequence[str]
  by: str = 'loss'
  eta: int = 3
  finalists: int = 1

  def as_dict(self) -> dict[str, Any]:
    """JSON values that decide a sweep besides its candidates."""
    return {'by': self.by, 'eta': self.eta, 'finalists': self.finalists}


def sweep(
  cfg: config.Config, options: Options, stop: stopping.StopRequest
) -> dict[str, Any]:
  """Runs or continues a sweep.

  Args:
    cfg: a validated config; its work directory is the sweep's.
    options: of the sweep.
    stop: a request that ends the sweep early, its state saved.

  Returns:
    The content of summary.json of the best candidate's run.

  Raises:
    errors.UserError: bad input, or no candidate could be trained.
    stopping.Stopped: the sweep was asked to stop.
  """
  candidates, same = candidates_lib.make(
    cfg, candidates_lib.parse(options.over)
  )
  rungs = halving.plan(
    len(candidates),
    cfg.train.num_steps,
    cfg.train.validate_every,
    eta=options.eta,
    finalists=options.finalists,
  )
  if same:
    writers.say(f'{same} combinations left out: the same runs as others')
  with distributed.sole_writer(cfg.workdir):
    distributed.check_shared(cfg.workdir)
    return _Sweep(cfg, options, candidates, rungs, stop).run()


class _Sweep:
  """A sweep at work.

  Args:
    cfg: its config.
    options: of the sweep.
    candidates: all of them.
    rungs: where they are compared.
    stop: a request that ends the sweep early.
  """

  def __init__(
    self,
    cfg: config.Config,
    options: Options,
    candidates: Sequence[Candidate],
    rungs: Sequence[Rung],
    stop: stopping.StopRequest,
  ):
    self._cfg = cfg
    self._options = options
    self._candidates = candidates
    self._rungs = rungs
    self._stop = stop
    self._bases = BaseKeeper()
    self._directory = SweepDirectory(cfg.workdir, candidates)
    self._records: dict[str, Record] = {}

  def run(self) -> dict[str, Any]:
    """See `sweep`."""
    options = self._options.as_dict()
    distributed.from_first(lambda: self._directory.check(options))
    self._check_tokens()
    if distributed.is_first():
      self._directory.claim(options)
    found = distributed.from_first(
      lambda: {
        name: dataclasses.asdict(record)
        for name, record in self._directory.read().items()
      }
    )
    self._records = {
      name: Record.from_dict(values) for name, values in found.items()
    }
    writers.say(f'sweep: {self._plan()}')
    longest = max(one.config.optim.warmup_steps for one in self._candidates)
    if longest >= self._rungs[0].step:
      writers.say(
        f'the first rung ends at step {self._rungs[0].step}, within '
        f'optim.warmup_steps={longest}: a low rate compares badly there'
      )
    alive = list(self._candidates)
    for number, rung in enumerate(self._rungs, 1):
      writers.say(
        f'rung {number} of {len(self._rungs)}, to step {rung.step}; '
        f'candidates: {rung.candidates}'
      )
      alive = self._climb(rung, alive)
    return self._finish(alive[0])

  def _check_tokens(self) -> None:
    """Checks the virtual tokens of all candidates against the base."""
    problems = []
    for one in self._candidates:
      cfg = one.config
      base = self._stop.run(
        functools.partial(self._bases.open, cfg.base, cfg.context_length)
      )
      try:
        tokens = cfg.virtual_tokens
        kinds.trainable_of(tokens).check(tokens, base.config)
      except errors.UserError as e:
        problems.append(f'candidate {one}: {e}')
    if problems:
      raise errors.UserError(errors.lines(problems).lstrip())

  def _plan(self) -> str:
    """The rungs, and how many steps they take."""
    steps = before = 0
    for rung in self._rungs:
      steps += rung.candidates * (rung.step - before)
      before = rung.step
    whole = len(self._candidates) * before
    ends = ', '.join(f'{r.candidates} to step {r.step}' for r in self._rungs)
    return (
      f'{len(self._candidates)} candidates, {ends}: {steps:,} steps; all to '
      f'the end would be {whole:,}'
    )

  def _climb(self, rung: Rung, ranked: Sequence[Candidate]) -> list[Candidate]:
    """Trains candidates up to a rung.

    Args:
      rung: where they stop.
      ranked: the best come first; the next one takes the place of one that
        diverges.

    Returns:
      Who is there, best first.
    """
    there: list[tuple[tuple[float, float], Candidate]] = []
    for one in ranked:
      if len(there) < rung.candidates:
        score = self._train(one, rung.step)
        if score is not None:
          there.append((score.key(self._options.by), one))
    if not there:
      raise errors.UserError(
        f'no candidate came to step {rung.step}: the losses of all are not '
        f'finite. {self._records[ranked[0].name].diverged}'
      )
    return [one for _, one in sorted(there, key=lambda pair: pair[0])]

  def _train(self, one: Candidate, step: int) -> Score | None:
    """Trains a candidate up to a step; None if it has diverged."""
    record = self._records[one.name]
    if record.at(step) is None and not record.diverged:
      writers.say(f'candidate {one}, to step {step}')
      try:
        train_command.train_until(one.config, self._stop, step, self._bases)
      except DivergedError as e:
        record.diverged = str(e)
        writers.say(f'candidate {one.name} has diverged: {e}')
      except errors.NotWrittenError:
        raise
      except errors.UserError as e:
        raise errors.UserError(f'candidate {one}: {e}') from e
      else:
        found = distributed.from_first(
          lambda: dataclasses.asdict(score_of(one, step))
        )
        record.scores.append(Score(**found))
      self._write(None)
    return record.at(step)

  def _finish(self, best: Candidate) -> dict[str, Any]:
    """Scores the best candidate, as the end of its training run."""
    writers.say(f'best: candidate {best}')
    summary = train_command.train(best.config, self._stop, self._bases)
    sha256 = f'{best.config.virtual_tokens.kind}_sha256'
    if distributed.is_first():
      self._directory.write_best(best)
    self._write(
      {
        'name': best.name,
        'workdir': best.config.workdir,
        'config': str(self._directory.best),
        'conditions': summary['conditions'],
        'k': summary['k'],
        sha256: summary[sha256],
      }
    )
    rows = results_table.rows(
      self._candidates, self._records, self._rungs, self._options.by
    )
    run_summary.report(summary, best.config.workdir)
    writers.say(
      f'{results_table.aligned(rows)}\n'
      f'written to {self._directory.path}: results.json, results.md, best.py'
    )
    return summary

  def _write(self, winner: dict[str, Any] | None) -> None:
    if distributed.is_first():
      self._directory.write(
        self._records, self._options.as_dict(), self._rungs, winner
      )


def main(cfg: config.Config) -> None:
  """Entry point."""
  given = absl_flags.FLAGS
  options = Options(given.over, given.by, given.eta, given.finalists)
  with distributed.session(cfg.distributed):
    among, may_leave = distributed.AnyProcess(), distributed.may_leave()
    with stopping.StopRequest(among, may_leave=may_leave) as stop:
      sweep(cfg, options, stop)


if __name__ == '__main__':
  absl_flags.DEFINE_multi_string(
    'over',
    [],
    'A field and its values, FIELD=VALUE,VALUE..., e.g. '
    'optim.learning_rate=3e-3,1e-2.',
  )
  absl_flags.DEFINE_enum(
    'by',
    'loss',
    ['loss', 'em', 'f1'],
    'The validation score that compares candidates.',
  )
  absl_flags.DEFINE_integer(
    'eta', 3, 'One in this many candidates goes on to the next rung.', 2
  )
  absl_flags.DEFINE_integer(
    'finalists', 1, 'How many candidates train to the end.', 1
  )
  flags.run_config(
    main, config.Config, config.validate, 'configs/quickstart.py'
  )
