"""Kills training runs at changes of files: python aimed_kills.py PLACE OUT N.

PLACE is what `tiny_run.make_place` made, OUT an empty directory. A run is
forked from this process, which has imported what it needs, and dies by SIGKILL
just before or after a change of a file around both series of checkpoints. Then
the same command goes on to its end. Prints one JSON object.
"""

import builtins
import io
import json
import os
import pathlib
import runpy
import shutil
import signal
import sys
import traceback

import tiny_run

_OVERRIDES = (
  '--config.train.num_steps=3',
  '--config.train.validate_every=1',
  '--config.train.checkpoint_every=2',
  '--config.data.test=()',
  '--config.eval.conditions=()',
  '--config.tracking.tensorboard=False',
)
# By whether the validation loss falls or rises: answers of the validation, and
# more of the command. Where it rises the best table is that of the first step,
# and a kill can come between it and the first of the latest checkpoints.
KINDS = {
  'falling': ('b', ()),
  'rising': (
    'zq',
    (
      '--config.seed=1',
      '--config.optim.learning_rate=100',
      '--config.optim.warmup_steps=0',
      '--config.optim.schedule=constant',
    ),
  ),
}
_CHANGES = ('rename', 'replace', 'mkdir', 'remove', 'unlink', 'rmdir')


def _watch(workdir: pathlib.Path, at: int, *, after: bool) -> None:
  """Lists changes of files around checkpoints; dies at one of them.

  Args:
    workdir: of the run.
    at: number of the change, from 0 on; -1 for none.
    after: dies when it is done rather than before.
  """
  log = open(workdir / 'changes', 'a')  # noqa: SIM115
  count = -1

  def wrap(module, name, path_of):
    old = getattr(module, name)

    def new(*args, **kwargs):
      nonlocal count
      path = path_of(*args, **kwargs)
      if path is None or not {'best', 'checkpoints'} & set(
        pathlib.Path(os.fsdecode(path)).parts
      ):
        return old(*args, **kwargs)
      count += 1
      hit = count == at
      print(f'{name} {os.path.relpath(path, workdir)}', file=log, flush=True)
      if hit and not after:
        os.kill(os.getpid(), signal.SIGKILL)
      try:
        return old(*args, **kwargs)
      finally:
        # Also where there was nothing to be removed.
        if hit:
          os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, new)

  def changed(*args, **unused):
    paths = [x for x in args if isinstance(x, (str, bytes, os.PathLike))]
    return paths[-1] if paths else None

  def written(file, mode='r', *unused, **unused_too):
    return (
      file if set(mode) & set('wax+') and not isinstance(file, int) else (None)
    )

  for name in _CHANGES:
    wrap(os, name, changed)
  wrap(builtins, 'open', written)
  wrap(io, 'open', written)


def _run(place, workdir, overrides, at=-1, *, after=False) -> int:
  """Exit status of a run, or minus the number of the signal that ended it."""
  workdir.mkdir(exist_ok=True)
  (workdir / 'changes').unlink(missing_ok=True)
  pid = os.fork()
  if pid:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  code = 1
  try:
    out = os.open(workdir / 'output', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    command = place.command(workdir, *_OVERRIDES, *overrides)
    sys.argv = command[command.index('vtokens.train') :]
    _watch(workdir, at, after=after)
    try:
      runpy.run_module('vtokens.train', run_name='__main__', alter_sys=True)
      code = 0
    except SystemExit as e:
      code = e.code if isinstance(e.code, int) else int(e.code is not None)
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(code)


def _result(workdir):
  losses = [r for r in tiny_run.rows(workdir) if 'validation_loss' in r]
  return {
    'table': tiny_run.summary(workdir)['table_sha256'],
    'rows': tiny_run.rows(workdir),
    'losses': [row['validation_loss'] for row in losses],
  }


def _plan(changes, number: int) -> list[int]:
  """At which changes to kill: half of them at manifests, the rest evenly."""
  aimed = [at for at, text in enumerate(changes) if 'manifest' in text]
  aimed = aimed[: (number + 1) // 2]
  rest = number - len(aimed)
  return aimed + [int((i + 0.5) * len(changes) / rest) for i in range(rest)]


def main(root: pathlib.Path, out: pathlib.Path, number: int) -> None:
  place = tiny_run.Place(root)
  runpy.run_module('vtokens.train', run_name='imported')
  found: dict = {'kills': 0, 'changes': {}, 'losses': {}, 'wrong': []}
  for kind, (answer, more) in KINDS.items():
    reference = out / kind
    asked = out / f'{kind}.jsonl'
    records = [
      tiny_run.record(i) | {'answers': [answer]} for i in range(60, 66)
    ]
    tiny_run.write(asked, records)
    overrides = [*more, f"--config.data.validation=('{asked}',)"]
    assert _run(place, reference, overrides) == 0, (
      reference / 'output'
    ).read_text()
    expected = _result(reference)
    found['losses'][kind] = expected['losses']
    changes = (reference / 'changes').read_text().splitlines()
    found['changes'][kind] = changes
    for i, at in enumerate(_plan(changes, number // len(KINDS))):
      workdir = out / f'{kind}-{i}'
      status = _run(place, workdir, overrides, at, after=bool(i % 2))
      found['kills'] += status == -signal.SIGKILL
      # The second start of half of them is killed likewise.
      if i % 4 > 1:
        status = _run(place, workdir, overrides, 2 * i % 25, after=bool(i % 2))
        found['kills'] += status == -signal.SIGKILL
      status = _run(place, workdir, overrides)
      problem = ''
      if status:
        problem = f'exit {status}'
      elif other := [
        key for key, value in _result(workdir).items() if value != expected[key]
      ]:
        problem = f'other {other}'
      elif left := [
        str(path)
        for path in workdir.rglob('*')
        if path.name.endswith(('.partial', '-tmp')) or path.name == 'unreadable'
      ]:
        problem = f'left {left}'
      if problem:
        found['wrong'].append(
          f'{kind}, {"after" if i % 2 else "before"} {changes[at]}: {problem}'
        )
      else:
        shutil.rmtree(workdir)
  print(json.dumps(found))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
