"""The launch scripts, against programs that only note how they were called."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import tiny_run
import yaml

_LAUNCH = tiny_run.ROOT / 'launch'
_SCRIPTS = sorted(
  str(path.relative_to(_LAUNCH))
  for path in _LAUNCH.rglob('*')
  if path.suffix in ('.sh', '.sbatch')
)
# Where the programs of this environment are.
_BIN = pathlib.Path(sys.executable).parent

# Notes its arguments; the n-th call of a kind is answered by the n-th file.
_STUB = """#!/usr/bin/env bash
here=$(dirname "$0")
name=${0##*/}
printf '%q ' "$name" "$@" >> "$here/calls"
echo >> "$here/calls"
[[ $name != kubectl || " $* " != *' -f - '* ]] || cat > "$here/stdin"
for rule in "$here"/answers/*; do
  [[ -e $rule ]] || continue
  IFS= read -r pattern < "$rule"
  if [[ "$name $*" == *$pattern* ]]; then
    code=$(sed -n 2p "$rule")
    [[ $code == 0 ]] || exec >&2
    sed -n 3p "$rule" | tr '|' '\\n'
    # Used up, unless it is the last for its pattern.
    next=$(grep -lxF -- "$pattern" "$here"/answers/* | sed -n 2p)
    [[ -z $next ]] || rm "$rule"
    exit "$code"
  fi
done
"""


# As gcloud puts it, with exit status 1.
_FAILURES = {
  'none': (
    "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'spring' "
    'was not found.',
    1,
  ),
  'no network': ('ERROR: gcloud crashed (ConnectionError): no route', 1),
}


class _Stubs:
  """A directory of programs for PATH."""

  def __init__(self, root: pathlib.Path):
    self.root = root / 'stubs'
    (self.root / 'answers').mkdir(parents=True)
    names = ('gcloud', 'kubectl', 'xpk', 'srun', 'scontrol', 'scancel')
    for name in names:
      path = self.root / name
      path.write_text(_STUB)
      path.chmod(0o755)
    self._count = 0

  def answer(self, pattern: str, text: str = '', code: int = 0) -> None:
    """What calls with this in them give; one answer after the other.

    With a code other than 0 the text is an error message.
    """
    path = self.root / 'answers' / f'{self._count:03d}'
    path.write_text(f'{pattern}\n{code}\n{text}\n')
    self._count += 1

  def states(self, kind: str, *states: str) -> None:
    """What gcloud says of a tpu-vm or queued-resources, in this order."""
    for state in states:
      self.answer(f'{kind} describe', *_FAILURES.get(state, (state,)))

  def called(self, *parts: str) -> list[str]:
    """Which of these the calls had in them, in the calls' order."""
    return [part for call in self.calls for part in parts if part in call]

  @property
  def calls(self) -> list[str]:
    path = self.root / 'calls'
    if not path.exists():
      return []
    return [shlex.join(shlex.split(x)) for x in path.read_text().splitlines()]

  def run(self, script, *arguments, stdin='', **variables):
    return subprocess.run(
      ['bash', str(_LAUNCH / script), *arguments],
      env={
        'PATH': f'{self.root}:/usr/bin:/bin',
        'HOME': str(self.root),
        **variables,
      },
      input=stdin,
      capture_output=True,
      text=True,
      timeout=60,
    )


@pytest.fixture
def stubs(tmp_path):
  return _Stubs(tmp_path)


@pytest.mark.parametrize('name', _SCRIPTS)
def test_shellcheck(name):
  done = subprocess.run(
    [str(_BIN / 'shellcheck'), '--external-sources', f'launch/{name}'],
    cwd=tiny_run.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', [n for n in _SCRIPTS if n != 'common.sh'])
def test_help(stubs, name):
  done = stubs.run(name, '--help')
  assert done.returncode == 0, done.stderr
  assert 'COMMAND' in done.stdout or 'sbatch' in done.stdout
  assert not stubs.calls


_VM = ('--name', 'spring', '--zone', 'us-west4-a')
_TRAIN = ('--', 'python', '-m', 'vtokens.train', '--config.workdir=gs://a b/$x')
_UP = (*_VM, '--type', 'v5litepod-16')
_COPY = [
  'gcloud compute tpus tpu-vm scp',
  "'--command=mkdir -p vtokens-run && tar -xzf vtokens.tar.gz -C vtokens-run'",
  "'--command=vtokens-run/launch/on_worker.sh install'",
]


class TestTpuVm:
  def test_create(self, stubs):
    done = stubs.run('tpu_vm.sh', 'create', *_UP, '--project', 'p', '--spot')
    assert done.returncode == 0, done.stderr
    assert stubs.calls == [
      'gcloud compute tpus tpu-vm create spring --zone=us-west4-a --project=p '
      '--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot'
    ]

  @pytest.mark.parametrize(
    'kind, version',
    [
      ('v4-32', 'tpu-ubuntu2204-base'),
      ('v5p-32', 'v2-alpha-tpuv5'),
      ('v6e-64', 'v2-alpha-tpuv6e'),
    ],
  )
  def test_version(self, stubs, kind, version):
    stubs.run('tpu_vm.sh', 'create', *_VM, '--type', kind)
    assert stubs.calls[0].endswith(f'--version={version}')

  def test_queued(self, stubs):
    state = 'queued-resources describe'
    stubs.answer(state, 'WAITING_FOR_RESOURCES')
    stubs.answer(state, 'PROVISIONING')
    stubs.answer(state, 'ACTIVE')
    done = stubs.run('tpu_vm.sh', 'create', *_UP, '--queued', '--poll', '1')
    assert done.returncode == 0, done.stderr
    assert stubs.calls[0] == (
      'gcloud compute tpus queued-resources create spring --node-id=spring '
      '--zone=us-west4-a --accelerator-type=v5litepod-16 '
      '--runtime-version=v2-alpha-tpuv5-lite'
    )
    assert done.stdout.splitlines() == [
      'spring: WAITING_FOR_RESOURCES',
      'spring: PROVISIONING',
      'spring: ACTIVE',
    ]

  def test_queued_and_refused(self, stubs):
    """As for want of quota: nothing to wait for then."""
    stubs.states('tpu-vm', 'none')
    stubs.answer('queued-resources create', 'ERROR: quota', code=1)
    done = stubs.run('tpu_vm.sh', 'up', *_UP, '--queued', *_TRAIN)
    assert done.returncode == 1
    assert 'queued-resources create' in stubs.calls[-1]

  def test_up(self, stubs):
    stubs.states('tpu-vm', 'none')
    done = stubs.run('tpu_vm.sh', 'up', *_UP, *_TRAIN)
    assert done.returncode == 0, done.stderr
    assert 'tpu-vm describe spring' in stubs.calls[0]
    assert 'tpu-vm create spring' in stubs.calls[1]
    for call, part in zip(stubs.calls[2:5], _COPY, strict=True):
      assert part in call
    # The command arrives at the worker's shell as it was typed here.
    *_, command = shlex.split(stubs.calls[5])
    assert shlex.split(command.removeprefix('--command=')) == [
      'vtokens-run/launch/on_worker.sh',
      'start',
      *_TRAIN[1:],
    ]
    assert len(stubs.calls) == 6

  def test_up_when_it_is_there(self, stubs):
    stubs.states('tpu-vm', 'READY')
    done = stubs.run('tpu_vm.sh', 'up', *_UP, *_TRAIN)
    assert done.returncode == 0, done.stderr
    assert not any(' create ' in call for call in stubs.calls)
    assert len(stubs.calls) == 5

  def test_up_ends_where_copying_fails(self, stubs):
    """And does not go on with what an earlier one has copied."""
    stubs.states('tpu-vm', 'READY')
    stubs.answer('tpu-vm scp', 'ERROR: no route', code=1)
    done = stubs.run('tpu_vm.sh', 'up', *_UP, *_TRAIN)
    assert done.returncode == 1
    assert len(stubs.calls) == 2

  @pytest.mark.parametrize(
    'state, message',
    [
      ('PREEMPTED', 'spring is PREEMPTED'),
      ('no network', 'no route\nspring is unknown'),
    ],
  )
  def test_up_touches_nothing_that_is_not_ready(self, stubs, state, message):
    stubs.states('tpu-vm', state)
    done = stubs.run('tpu_vm.sh', 'up', *_UP, *_TRAIN)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(stubs.calls) == 1

  def test_keep(self, stubs):
    """Preempted once, failed once, then finished."""
    stubs.states('tpu-vm', 'none', 'READY', 'PREEMPTED', 'READY')
    stubs.states('queued-resources', 'none')
    status = 'on_worker.sh status'
    stubs.answer(status, 'on|on')
    stubs.answer(status, '1|on')
    stubs.answer(status, '1|1')
    stubs.answer(status, '0|0')
    done = stubs.run('tpu_vm.sh', 'keep', *_UP, '--poll', '1', *_TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'the run has finished'
    assert 'restart 1: spring is PREEMPTED' in done.stdout
    assert 'restart 2: spring is READY' in done.stdout
    start = 'on_worker.sh start'
    assert stubs.called('tpu-vm create', 'tpu-vm delete', start) == [
      *('tpu-vm create', start),
      *('tpu-vm delete', 'tpu-vm create', start),
      start,
    ]

  @pytest.mark.parametrize(
    'states, requests',
    [
      # As seen in the middle of a run.
      (('no network',), ('ACTIVE',)),
      (('none',), ('no network',)),
      (('none',), ('ACTIVE', 'SUSPENDING')),
      (('none', 'CREATING'), ('WAITING_FOR_RESOURCES',)),
      (('STARTING', 'REPAIRING', 'RESTARTING', 'UNKNOWN', ''), ('ACTIVE',)),
      # It has to be seen to be no queued resource's, or one's.
      (('PREEMPTED',), ('no network',)),
    ],
  )
  def test_keep_deletes_nothing_else(self, stubs, states, requests):
    stubs.states('tpu-vm', 'READY', *states, *states, 'READY')
    stubs.states('queued-resources', *requests)
    stubs.answer('on_worker.sh status', '0|0')
    done = stubs.run(
      'tpu_vm.sh', 'keep', *_UP, '--queued', '--poll', '1', *_TRAIN
    )
    assert done.returncode == 0, done.stderr
    assert not stubs.called(' delete ', ' create ')
    # Nor is waiting a restart, of which there are so many.
    assert ('restart' in done.stdout) == (states == ('PREEMPTED',))

  @pytest.mark.parametrize(
    'state, request_state',
    [
      ('none', 'SUSPENDED'),
      ('none', 'FAILED'),
      ('PREEMPTED', 'SUSPENDING'),
      ('TERMINATED', 'ACTIVE'),
    ],
  )
  def test_keep_replaces_a_queued_resource(self, stubs, state, request_state):
    asked = 2 if state == 'none' else 1
    stubs.states('tpu-vm', 'READY', state, 'READY')
    stubs.states('queued-resources', *[request_state] * asked, 'ACTIVE')
    stubs.answer('on_worker.sh status', '0|0')
    done = stubs.run(
      'tpu_vm.sh', 'keep', *_UP, '--queued', '--poll', '1', *_TRAIN
    )
    assert done.returncode == 0, done.stderr
    delete, create = 'queued-resources delete', 'queued-resources create'
    assert stubs.called(delete, create) == [delete, create]

  def test_keep_installs_until_it_has(self, stubs):
    """Not only start is repeated where the installation failed."""
    stubs.states('tpu-vm', 'none', 'READY')
    stubs.states('queued-resources', 'none')
    install, start = 'on_worker.sh install', 'on_worker.sh start'
    stubs.answer(install, 'error: timeout', code=1)
    stubs.answer(install)
    stubs.answer('on_worker.sh status', '0|0')
    done = stubs.run('tpu_vm.sh', 'keep', *_UP, '--poll', '1', *_TRAIN)
    assert done.returncode == 0, done.stderr
    create = 'tpu-vm create'
    assert stubs.called(create, install, start) == [
      *(create, install),
      *(install, start),
    ]

  @pytest.mark.parametrize('failing', ['tpu-vm scp', 'on_worker.sh start'])
  def test_keep_believes_no_status_before_it_has_started(self, stubs, failing):
    """The TPU VM has the status of an earlier command."""
    stubs.states('tpu-vm', 'READY')
    stubs.answer(failing, 'ERROR: no route', code=1)
    stubs.answer(failing)
    stubs.answer('on_worker.sh status', '0|0')
    done = stubs.run('tpu_vm.sh', 'keep', *_UP, '--poll', '1', *_TRAIN)
    assert done.returncode == 0, done.stderr
    last = stubs.called('on_worker.sh start', 'on_worker.sh status')[-2:]
    assert last == ['on_worker.sh start', 'on_worker.sh status']
    assert len(stubs.called(failing)) == 2
    assert len(stubs.called('on_worker.sh status')) == 1

  def test_keep_gives_up(self, stubs):
    stubs.answer('tpu-vm describe', 'READY')
    stubs.answer('on_worker.sh status', '1|1')
    done = stubs.run(
      'tpu_vm.sh',
      *('keep', *_UP, '--poll', '1', '--max-restarts', '2', *_TRAIN),
    )
    assert done.returncode == 1
    assert 'gave up after 2 restarts' in done.stderr
    assert sum('on_worker.sh start' in call for call in stubs.calls) == 3
    assert not any('delete' in call for call in stubs.calls)

  def test_what_keep_deletes_is_said(self, stubs):
    text = stubs.run('tpu_vm.sh', '--help').stdout
    docs = (tiny_run.ROOT / 'docs' / 'devices.md').read_text()
    for state in ('PREEMPTED', 'TERMINATED', 'SUSPENDED', 'FAILED'):
      assert state in text
      assert f'`{state}`' in docs

  def test_delete_asks(self, stubs):
    stubs.states('queued-resources', 'none')
    done = stubs.run('tpu_vm.sh', 'delete', *_VM, stdin='sprint\n')
    assert done.returncode == 2
    assert "'sprint' is not spring; nothing deleted" in done.stderr
    # No one there to ask.
    assert stubs.run('tpu_vm.sh', 'delete', *_VM).returncode != 0
    assert not stubs.calls
    done = stubs.run('tpu_vm.sh', 'delete', *_VM, stdin='spring\n')
    assert done.returncode == 0, done.stderr
    assert stubs.calls[-1] == (
      'gcloud compute tpus tpu-vm delete spring --zone=us-west4-a --quiet'
    )

  def test_delete_of_a_queued_resource(self, stubs):
    stubs.answer('queued-resources describe', 'SUSPENDED')
    done = stubs.run('tpu_vm.sh', 'delete', *_VM, '--yes')
    assert done.returncode == 0, done.stderr
    assert stubs.calls[-1] == (
      'gcloud compute tpus queued-resources delete spring --zone=us-west4-a '
      '--force --quiet'
    )

  def test_delete_of_what_cannot_be_seen(self, stubs):
    stubs.states('queued-resources', 'no network')
    done = stubs.run('tpu_vm.sh', 'delete', *_VM, '--yes')
    assert done.returncode == 1
    assert 'nothing deleted' in done.stderr
    assert len(stubs.calls) == 1

  def test_logs_status_and_stop(self, stubs):
    assert stubs.run('tpu_vm.sh', 'logs', *_VM, '--worker', '3').returncode == 0
    assert '--worker=3' in stubs.calls[0]
    assert 'tail -n 100 -F vtokens-run/run.log' in stubs.calls[0]
    assert stubs.run('tpu_vm.sh', 'stop', *_VM).returncode == 0
    assert '--worker=all' in stubs.calls[1]
    assert 'on_worker.sh stop' in stubs.calls[1]
    assert stubs.run('tpu_vm.sh', 'status', *_VM).returncode == 0

  def test_dry_run(self, stubs):
    done = stubs.run(
      'tpu_vm.sh', 'keep', *_UP, '--queued', '--dry-run', *_TRAIN
    )
    assert done.returncode == 0, done.stderr
    assert not stubs.calls
    lines = done.stdout.splitlines()
    assert 'queued-resources create' in lines[0]
    assert 'git' in lines[1]
    assert 'on_worker.sh\\ start' in lines[-1]

  @pytest.mark.parametrize(
    'arguments, message',
    [
      ((), 'unknown action'),
      (('fly',), "unknown action 'fly'"),
      (('stop', '--zone', 'us-west4-a'), "--name: ''"),
      (('stop', *_VM[2:], '--name', 'A'), "--name: 'A'"),
      (('stop', *_VM[:2], '--zone', 'mars'), "--zone: 'mars'"),
      (('create', *_VM), "--type: ''"),
      (('create', *_VM, '--type', 'tpu'), "--type: 'tpu'"),
      (('run', *_VM), 'no command after --'),
      (('stop', *_VM, *_TRAIN), 'stop takes no command'),
      (('stop', *_VM, '--zome', 'x'), "unknown argument '--zome'"),
      (('stop', *_VM, '--poll'), '--poll needs a value'),
      (('stop', *_VM, '--poll', 'x'), "--poll: 'x', expected seconds"),
    ],
  )
  def test_mistakes(self, stubs, arguments, message):
    done = stubs.run('tpu_vm.sh', *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not stubs.calls


class TestOnWorker:
  @pytest.fixture
  def worker(self, tmp_path):
    root = tmp_path / 'vtokens-run'
    (root / 'launch').mkdir(parents=True)
    shutil.copy(_LAUNCH / 'on_worker.sh', root / 'launch')
    return root

  def call(self, worker, *arguments):
    # Its output is closed with it, although what it starts goes on.
    done = subprocess.run(
      ['bash', str(worker / 'launch' / 'on_worker.sh'), *arguments],
      capture_output=True,
      text=True,
      timeout=30,
    )
    return done.returncode, done.stdout.strip(), done.stderr

  def wait(self, worker, status):
    for _ in range(200):
      if self.call(worker, 'status')[1] == status:
        return
      time.sleep(0.05)
    raise AssertionError(self.call(worker, 'status'))

  def test_until_it_ends(self, worker):
    assert self.call(worker, 'status')[1] == 'none'
    code, _, _ = self.call(
      worker, 'start', 'bash', '-c', 'echo "$1"; sleep 0.5; exit 3', 'x', 'a  b'
    )
    assert code == 0
    assert self.call(worker, 'status')[1] == 'on'
    self.wait(worker, '3')
    assert (worker / 'run.log').read_text() == 'a  b\n'
    # Again, with the same log.
    assert self.call(worker, 'start', 'echo', 'again')[0] == 0
    self.wait(worker, '0')
    assert (worker / 'run.log').read_text() == 'a  b\nagain\n'

  def test_stop(self, worker):
    program = (
      'import signal, sys, time\n'
      'signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))\n'
      'print("ready", flush=True)\n'
      'time.sleep(60)'
    )
    self.call(worker, 'start', sys.executable, '-c', program)
    for _ in range(200):
      if 'ready' in (worker / 'run.log').read_text():
        break
      time.sleep(0.05)
    code, _, message = self.call(worker, 'start', 'true')
    assert (code, message) == (1, 'error: a run is on already\n')
    # The same again, as where another worker could not be reached.
    pid = (worker / 'run.pid').read_text()
    same = self.call(worker, 'start', sys.executable, '-c', program)
    assert same == (0, 'on already', '')
    assert (worker / 'run.pid').read_text() == pid
    assert self.call(worker, 'status')[1] == 'on'
    assert self.call(worker, 'stop')[0] == 0
    self.wait(worker, '143')
    assert self.call(worker, 'stop')[0] == 0

  def test_one_that_is_stopping_is_not_taken_for_a_new_one(self, worker):
    command = ('bash', '-c', 'trap "sleep 2; exit 143" TERM; echo; sleep 60')
    self.call(worker, 'start', *command)
    while not (worker / 'run.log').read_text():
      time.sleep(0.05)
    self.call(worker, 'stop')
    assert self.call(worker, 'start', *command)[0] == 1
    os.killpg(int((worker / 'run.pid').read_text()), signal.SIGKILL)

  def test_a_start_that_fails_leaves_no_old_status(self, worker):
    self.call(worker, 'start', 'true')
    self.wait(worker, '0')
    (worker / '.venv' / 'bin').mkdir(parents=True)
    (worker / '.venv' / 'bin' / 'activate').write_text('return 1\n')
    assert self.call(worker, 'start', 'true')[0] == 1
    assert self.call(worker, 'status')[1] == 'none'

  def test_lost(self, worker):
    """As after the machine was restarted."""
    self.call(worker, 'start', 'bash', '-c', 'echo $$; exec sleep 60')
    while not (worker / 'run.log').read_text():
      time.sleep(0.05)
    os.kill(int((worker / 'run.pid').read_text()), signal.SIGKILL)
    os.kill(int((worker / 'run.log').read_text()), signal.SIGKILL)
    self.wait(worker, 'lost')


_JOBSET = (
  *('submit', '--name', 'spring', '--image', 'r/vtokens:tpu'),
  *('--accelerator', 'tpu-v5-lite-podslice', '--topology', '4x4'),
)
# What of https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 is used.
_JOBSET_SCHEMA = {
  'type': 'object',
  'additionalProperties': False,
  'required': ['apiVersion', 'kind', 'metadata', 'spec'],
  'properties': {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': {'type': 'object'},
    'spec': {
      'type': 'object',
      'additionalProperties': False,
      'required': ['replicatedJobs'],
      'properties': {
        'failurePolicy': {
          'type': 'object',
          'additionalProperties': False,
          'properties': {'maxRestarts': {'type': 'integer', 'minimum': 0}},
        },
        'replicatedJobs': {
          'type': 'array',
          'minItems': 1,
          'items': {
            'type': 'object',
            'additionalProperties': False,
            'required': ['name', 'template'],
            'properties': {
              'name': {'type': 'string'},
              'replicas': {'type': 'integer', 'minimum': 1},
              'template': {'type': 'object'},
            },
          },
        },
      },
    },
  },
}


def _validate(manifest):
  """By JobSet's fields, and the Jobs in it by Kubernetes' own schemas."""
  jsonschema.validate(manifest, _JOBSET_SCHEMA)
  for job in manifest['spec']['replicatedJobs']:
    kubernetes_validate.validate(
      {
        'apiVersion': 'batch/v1',
        'kind': 'Job',
        'metadata': {'name': manifest['metadata']['name']},
        **job['template'],
      },
      kubernetes_validate.latest_version(),
      strict=True,
    )


def _expanded(word: str, values: dict[str, str]) -> str:
  """As Kubernetes reads a word of a command (its package `expansion`)."""
  out, at = '', 0
  while at < len(word):
    rest = word[at + 1 :]
    if word[at] != '$' or not rest:
      out, at = out + word[at], at + 1
    elif rest[0] == '$':
      out, at = out + '$', at + 2
    elif rest[0] == '(' and ')' in rest:
      name = rest[1 : rest.index(')')]
      out += values.get(name, f'$({name})')
      at += len(name) + 3
    else:
      out, at = out + '$' + rest[0], at + 2
  return out


class TestJobSet:
  def test_a_command_stays_as_it_is(self, stubs):
    words = [
      *('echo', '$(HOME)', '$$(HOME)', '$HOME', '$$', '$', 'a$', '${HOME}'),
      *('$(HOME', '$$$(HOME)$', '\\$(HOME)', '"$(HOME)"', "'", 'ü\ud83d\ude00'),
    ]
    words[-1] = words[-1].encode('utf-16', 'surrogatepass').decode('utf-16')
    done = stubs.run('gke/jobset.sh', *_JOBSET, '--', *words)
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load((stubs.root / 'stdin').read_text())
    _validate(manifest)
    (job,) = manifest['spec']['replicatedJobs']
    (container,) = job['template']['spec']['template']['spec']['containers']
    assert container['command'][1] == '$$(HOME)'
    found = [_expanded(x, {'HOME': '/root'}) for x in container['command']]
    assert found == words

  @pytest.mark.parametrize('name', ['no', 'yes', 'y', 'null', 'true', 'on'])
  def test_a_name_that_yaml_reads_otherwise(self, stubs, name):
    arguments = [x if x != 'spring' else name for x in _JOBSET]
    done = stubs.run('gke/jobset.sh', *arguments, '--dry-run', *_TRAIN)
    manifest = yaml.safe_load(done.stdout.split('---')[0])
    assert manifest['metadata']['name'] == name

  def test_submit(self, stubs):
    done = stubs.run(
      'gke/jobset.sh',
      *_JOBSET,
      *('--spot', '--namespace', 'team', '--service-account', 'writer'),
      *('--slices', '2', '--', 'python', '-c', 'print("a\\b")', '0', 'no', '#'),
    )
    assert done.returncode == 0, done.stderr
    assert stubs.calls == ['kubectl --namespace=team create -f -']
    manifest = yaml.safe_load((stubs.root / 'stdin').read_text())
    _validate(manifest)
    (job,) = manifest['spec']['replicatedJobs']
    assert job['replicas'] == 2
    spec = job['template']['spec']
    assert spec['parallelism'] == spec['completions'] == 4
    pod = spec['template']['spec']
    assert pod['serviceAccountName'] == 'writer'
    assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
      'cloud.google.com/gke-tpu-topology': '4x4',
      'cloud.google.com/gke-spot': 'true',
    }
    (container,) = pod['containers']
    assert container['resources'] == {'limits': {'google.com/tpu': 4}}
    # No word becomes a number, a bool or a comment.
    assert container['command'] == [
      'python',
      '-c',
      'print("a\\b")',
      '0',
      'no',
      '#',
    ]

  def test_the_schemas_refuse(self, stubs):
    done = stubs.run('gke/jobset.sh', *_JOBSET, '--dry-run', *_TRAIN)
    manifest = yaml.safe_load(done.stdout.split('---')[0])
    _validate(manifest)
    spec = manifest['spec']['replicatedJobs'][0]['template']['spec']
    spec['template']['spec']['containers'][0]['comand'] = []
    with pytest.raises(kubernetes_validate.ValidationError):
      _validate(manifest)
    assert not stubs.calls

  def test_three_dimensions(self, stubs):
    arguments = [x if x != '4x4' else '2x2x4' for x in _JOBSET]
    done = stubs.run('gke/jobset.sh', *arguments, '--dry-run', *_TRAIN)
    assert 'parallelism: 4\n' in done.stdout

  def test_the_mesh_of_several_slices_is_said(self, stubs):
    """What vtokens.devices.partitioning.make_mesh would refuse."""
    docs = (tiny_run.ROOT / 'docs' / 'devices.md').read_text()
    _, _, starting = docs.partition('## Starting it')
    texts = [
      stubs.run(f'gke/{name}.sh', '--help').stdout for name in ('jobset', 'xpk')
    ]
    for text in (*texts, starting.partition('\n## ')[0]):
      assert "'(2,-1,1)'" in text
      assert '--slices 2' in text

  def test_logs_status_delete(self, stubs):
    name = ('--name', 'spring')
    assert stubs.run('gke/jobset.sh', 'logs', *name).returncode == 0
    assert stubs.run('gke/jobset.sh', 'status', *name).returncode == 0
    assert stubs.run('gke/jobset.sh', 'delete', *name).returncode != 0
    assert not any('delete' in call for call in stubs.calls)
    assert stubs.run('gke/jobset.sh', 'delete', *name, '--yes').returncode == 0
    assert stubs.calls[-1] == 'kubectl delete jobset spring'

  @pytest.mark.parametrize(
    'arguments, message',
    [
      (('submit', '--name', 'x'), 'no command'),
      (('submit', '--name', 'X_', *_TRAIN), "--name: 'X_'"),
      (('submit', '--name', 'x', *_TRAIN), "--image: ''"),
      ((*_JOBSET, '--chips-per-host', '3', *_TRAIN), '16 chips, no multiple'),
      ((*_JOBSET, '--topology', '16', *_TRAIN), "--topology: '16'"),
      ((*_JOBSET, '--', 'a\nb'), 'a line break'),
      ((*_JOBSET, '--', 'a\x1b'), 'control character'),
      ((*_JOBSET, '--', 'a\x85b'), 'a line break'),
      ((*_JOBSET, '--', 'a\u2028b'), 'a line break'),
      ((*_JOBSET, '--topology', '08x4', *_TRAIN), '--topology'),
      ((*_JOBSET, '--slices', '9' * 20, *_TRAIN), '--slices'),
      ((*_JOBSET, '--max-restarts', '010', *_TRAIN), '--max-restarts'),
      *(
        ((*_JOBSET, f'--{option}', value, *_TRAIN), f'--{option}')
        for option in ('service-account', 'namespace', 'image', 'accelerator')
        for value in (
          *('a b', 'a\nb: c', 'a"', 'a: b', '-a', '$(A)', '{}', 'a\x07', 'ä'),
          *('a ', "a'", '#', '*', '&a', '!a', '%'),
        )
      ),
      ((*_JOBSET, '--service-account', 'A', *_TRAIN), '--service-account'),
      ((*_JOBSET, '--service-account', 'a' * 254, *_TRAIN), '--service-acc'),
    ],
  )
  def test_mistakes(self, stubs, arguments, message):
    done = stubs.run('gke/jobset.sh', *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not stubs.calls


class TestXpk:
  def test_submit(self, stubs):
    done = stubs.run(
      'gke/xpk.sh',
      *('submit', '--name', 'spring', '--cluster', 'tpus', '--zone', 'z'),
      *('--type', 'v5litepod-16', '--image', 'i', '--slices', '2', *_TRAIN),
    )
    assert done.returncode == 0, done.stderr
    (call,) = stubs.calls
    *words, command = shlex.split(call)
    assert words == [
      *('xpk', 'workload', 'create', '--workload=spring', '--cluster=tpus'),
      *('--zone=z', '--tpu-type=v5litepod-16', '--num-slices=2'),
      *('--docker-image=i', '--max-restarts=20'),
    ]
    assert shlex.split(command.removeprefix('--command=')) == [*_TRAIN[1:]]

  def test_delete_asks(self, stubs):
    where = ('delete', '--name', 'spring', '--cluster', 'tpus')
    assert stubs.run('gke/xpk.sh', *where).returncode != 0
    assert not stubs.calls
    assert stubs.run('gke/xpk.sh', *where, '--yes').returncode == 0
    assert stubs.calls == [
      'xpk workload delete --workload=spring --cluster=tpus'
    ]

  def test_mistakes(self, stubs):
    done = stubs.run('gke/xpk.sh', 'submit', '--name', 'a', '--cluster', 'c')
    assert done.returncode == 2
    assert 'no command' in done.stderr


class TestSlurm:
  def run(self, stubs, *command):
    stubs.answer('show hostnames', 'node3|node4')
    return stubs.run(
      'slurm_gpu.sbatch',
      *command,
      SLURM_JOB_ID='12345',
      SLURM_JOB_NODELIST='node[3-4]',
    )

  def test_it_runs(self, stubs):
    done = self.run(stubs, 'python', '-m', 'vtokens.train', 'a b')
    assert done.returncode == 0, done.stderr
    assert stubs.calls == [
      "scontrol show hostnames 'node[3-4]'",
      "srun --kill-on-bad-exit=0 python -m vtokens.train 'a b'",
    ]

  def test_coordinator(self, stubs):
    (stubs.root / 'srun').write_text(
      '#!/bin/bash\necho "$JAX_COORDINATOR_ADDRESS"\n'
    )
    assert self.run(stubs, 'x').stdout == 'node3:22345\n'

  def signalled(self, stubs, code):
    """The time is up; ends once Slurm was asked to tell the steps."""
    (stubs.root / 'srun').write_text(
      '#!/bin/bash\n'
      'kill -USR1 $PPID\n'
      'for _ in {1..200}; do\n'
      f'  grep -q scancel "${{0%/*}}/calls" && exit {code}\n'
      '  sleep 0.05\n'
      'done\n'
    )

  def test_its_signal_is_for_the_script_alone(self):
    """As scancel sends TERM, which has to mean something else."""
    text = (_LAUNCH / 'slurm_gpu.sbatch').read_text()
    assert '\n#SBATCH --signal=B:USR1@180\n' in text

  def test_runs_whose_time_is_up_are_queued_again(self, stubs):
    self.signalled(stubs, 143)
    stubs.answer('show job ', 'JobState=RUNNING Reason=None')
    assert self.run(stubs, 'x').returncode == 143
    assert stubs.calls[1:] == [
      'scancel --signal=TERM 12345',
      'scontrol show job 12345',
      'scontrol requeue 12345',
    ]

  @pytest.mark.parametrize('code', [0, 1])
  def test_runs_that_end_nonetheless_are_not(self, stubs, code):
    self.signalled(stubs, code)
    assert self.run(stubs, 'x').returncode == code
    assert stubs.calls[1:] == ['scancel --signal=TERM 12345']

  def test_preempted_runs_are_queued_again(self, stubs):
    stubs.answer('srun', code=143)
    stubs.answer(
      'show job ',
      'JobState=RUNNING Reason=None|'
      'PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T01:00:00',
    )
    assert self.run(stubs, 'x').returncode == 143
    assert stubs.calls[-1] == 'scontrol requeue 12345'

  @pytest.mark.parametrize('state', ['RUNNING', 'COMPLETING', 'CANCELLED'])
  def test_cancelled_runs_are_not(self, stubs, state):
    """RUNNING is the answer after scancel --signal=TERM."""
    stubs.answer('srun', code=143)
    stubs.answer(
      'show job ',
      f'JobState={state} Reason=None|'
      'PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None',
    )
    assert self.run(stubs, 'x').returncode == 143
    assert not any('requeue' in call for call in stubs.calls)

  def test_runs_cancelled_when_their_time_is_up_are_not(self, stubs):
    self.signalled(stubs, 143)
    stubs.answer('show job ', 'JobState=COMPLETING Reason=None')
    assert self.run(stubs, 'x').returncode == 143
    assert not any('requeue' in call for call in stubs.calls)

  def test_failed_runs_are_not(self, stubs):
    stubs.answer('srun', code=1)
    assert self.run(stubs, 'x').returncode == 1
    assert not any('requeue' in call for call in stubs.calls)

  def test_mistakes(self, stubs):
    assert stubs.run('slurm_gpu.sbatch').returncode == 2
    done = stubs.run('slurm_gpu.sbatch', 'x')
    assert (done.returncode, stubs.calls) == (2, [])
    assert 'submit it with sbatch' in done.stderr


class TestLocal:
  def run(self, *arguments):
    return subprocess.run(
      ['bash', str(_LAUNCH / 'local_multiprocess.sh'), *arguments],
      capture_output=True,
      text=True,
      timeout=60,
    )

  def test_what_each_is_given(self):
    done = self.run(
      *('--processes', '3', '--devices', '2', '--port', '4321', '--'),
      *('bash', '-c', 'echo $JAX_PROCESS_ID $JAX_NUM_PROCESSES'),
    )
    assert done.returncode == 0
    assert done.stdout == '0 3\n'
    assert sorted(done.stderr.splitlines()) == ['[1] 1 3', '[2] 2 3']

  def test_dry_run(self):
    done = self.run('--port', '4321', '--dry-run', '--', 'x', 'a b')
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [
      [
        'env',
        'JAX_COORDINATOR_ADDRESS=127.0.0.1:4321',
        'JAX_NUM_PROCESSES=2',
        f'JAX_PROCESS_ID={i}',
        f'CUDA_VISIBLE_DEVICES={i}',
        'x',
        'a b',
      ]
      for i in range(2)
    ]

  def test_status(self):
    done = self.run(
      *('--processes', '3', '--', 'bash', '-c', 'exit $((JAX_PROCESS_ID * 4))')
    )
    assert done.returncode == 4

  @pytest.mark.parametrize(
    'arguments, message',
    [
      ((), 'no command'),
      (('--processes', '0', '--', 'x'), "'0', expected a number above 0"),
      (('x',), "unknown argument 'x'"),
      (('--port',), '--port needs a value'),
    ],
  )
  def test_mistakes(self, arguments, message):
    done = self.run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize('name', ['tpu', 'cuda'])
def test_docker_files_copy_what_setup_needs(name):
  text = (_LAUNCH / f'Dockerfile.{name}').read_text()
  for line in text.splitlines():
    if line.startswith('COPY'):
      for source in line.split()[1:-1]:
        assert (tiny_run.ROOT / source).exists(), source
  # What setup.py and pip read.
  for file in (
    *('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'),
    *('vtokens', 'configs'),
  ):
    assert file in text
