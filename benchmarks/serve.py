"""Loads a server with many clients, and compares each answer.

    python benchmarks/serve.py --minutes 5 --json benchmarks/serve_cpu.json

It serves two tables of a tiny random base with `python -m vtokens.serve`, and
asks it with OpenAI's client: questions of both tables with several numbers of
tokens, half of the answers streamed. One request in twenty is given up. Every
whole answer has to equal that of an evaluation (`Evaluator`), which does not go
through the server. Memory and threads of the server are noted every second.

Then a llama.cpp server is the backend. It is killed (SIGKILL) under load and
started again: replies have to be right, or have the status 502.

Needs the extra `test`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT / 'tests' / 'support'))

import httpx  # noqa: E402
import openai  # noqa: E402

import vtokens  # noqa: E402

_TABLES = {'one': (1, 3, 5), 'two': (5,)}
_QUESTIONS = 24
_GIVEN_UP = 0.05
_STREAMED = 0.5


class Server:
  """A program that serves, whose output is JSON lines.

  Args:
    arguments: of `python -m vtokens.serve`.
    log: gets its output.
  """

  def __init__(self, arguments: list[str], log: pathlib.Path):
    self._log = log
    with log.open('w') as out:
      self.process = subprocess.Popen(
        [sys.executable, '-m', 'vtokens.serve', '--port=0', *arguments],
        stdout=out,
        stderr=subprocess.STDOUT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)},
      )
    last = time.monotonic() + 120
    while not (found := self.events('listening')):
      assert self.process.poll() is None, log.read_text()
      assert time.monotonic() < last, log.read_text()
      time.sleep(0.1)
    self.url = found[0]['url']

  def events(self, name: str) -> list[dict[str, Any]]:
    """Events of its log."""
    lines = self._log.read_text(errors='replace').splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"time"')]
    return [event for event in found if event['event'] == name]

  def status(self) -> dict[str, int]:
    """Resident memory in KiB, and threads."""
    lines = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
    rows = dict(line.split(':', 1) for line in lines.splitlines())
    return {
      'rss_kib': int(rows['VmRSS'].split()[0]),
      'threads': int(rows['Threads']),
    }

  def stop(self) -> int:
    """Ends it as an operator would; its exit status."""
    self.process.send_signal(signal.SIGTERM)
    return self.process.wait(60)


def offline(root: pathlib.Path) -> list[dict[str, Any]]:
  """Questions with the answers of an evaluation."""
  from vtokens.data.assemble import Assembler
  from vtokens.data.records import GIVEN, Passage, Record
  from vtokens.devices import partitioning
  from vtokens.evaluation.asking.answering import Answerer
  from vtokens.evaluation.asking.evaluator import Evaluator
  from vtokens.evaluation.asking.prompter import Prompter, tokens_variant
  from vtokens.evaluation.trained_tokens import TrainedTokens
  from vtokens.models import frozen_base
  from vtokens.run.workdir import RunDir

  records = [
    Record(
      id=f'q{i}',
      dataset='',
      question=f'When was tower {i} completed?',
      answers=(),
      passages={
        GIVEN: (Passage('', f'Tower {i}', f'It was completed in 18{i}.'),)
        * (1 + i % 2)
      },
    )
    for i in range(_QUESTIONS)
  ]
  found = []
  for table, numbers in _TABLES.items():
    finished = RunDir(root / table).read('')
    cfg = finished.config
    cfg.eval.retriever, cfg.eval.num_passages = GIVEN, 2
    mesh = partitioning.make_mesh((-1, 1, 1))
    base = frozen_base.load_base(cfg.base, mesh, cfg.context_length)
    assembler = Assembler.for_run(base.tokenizer, cfg)
    evaluator = Evaluator(
      Answerer(base, mesh, cfg.eval, cfg.seed),
      Prompter(assembler, cfg.eval, cfg.seed),
    )
    tokens = TrainedTokens('', finished.values, assembler)
    for k in numbers:
      variant = tokens_variant(tokens, k)
      answers = evaluator.answers(records, [variant], label='')[variant.name]
      for record, answer in zip(records, answers, strict=True):
        shown = [
          {'title': p.title, 'text': p.text} for p in record.passages[GIVEN]
        ]
        found.append(
          {
            'model': table,
            'question': record.question,
            'extra_body': {'passages': shown, 'k': k},
            'text': answer.text,
          }
        )
  return found


class Load:
  """Clients that ask, and what became of their requests.

  Args:
    url: of the server.
    cases: questions with answers.
    clients: number of clients.
    seed: of their choices.
  """

  def __init__(
    self, url: str, cases: list[dict[str, Any]], clients: int, seed: int
  ):
    self._client = openai.AsyncOpenAI(
      base_url=f'{url}/v1',
      api_key='unused',
      max_retries=0,
      timeout=120,
    )
    self._cases = cases
    self._clients = clients
    self._random = random.Random(seed)
    self.ending = False
    self.seconds: list[float] = []
    self.first_seconds: list[float] = []
    self.wrong: list[tuple[str, str]] = []
    self.statuses: dict[str, int] = {}

  async def run(self) -> None:
    """Asks until `ending` is set."""
    await asyncio.gather(*(self._ask_on() for _ in range(self._clients)))

  async def _ask_on(self) -> None:
    while not self.ending:
      case = self._random.choice(self._cases)
      streamed = self._random.random() < _STREAMED
      given_up = self._random.random() < _GIVEN_UP
      try:
        name = await self._ask(case, streamed, given_up)
      except openai.APIStatusError as e:
        name = str(e.status_code)
        await asyncio.sleep(0.05)
      except openai.APIError as e:
        name = type(e).__name__
        await asyncio.sleep(0.05)
      self.statuses[name] = self.statuses.get(name, 0) + 1

  async def _ask(
    self, case: dict[str, Any], streamed: bool, given_up: bool
  ) -> str:
    began = time.monotonic()
    fields: Any = {
      'model': case['model'],
      'messages': [{'role': 'user', 'content': case['question']}],
      'extra_body': case['extra_body'],
    }
    if not streamed:
      asked = self._client.chat.completions.create(**fields)
      if given_up:
        with contextlib.suppress(TimeoutError):
          await asyncio.wait_for(asked, 0.01)
        return 'given up'
      reply = await asked
      text = reply.choices[0].message.content
    else:
      text, first = '', True
      async with await self._client.chat.completions.create(
        **fields, stream=True
      ) as events:
        async for event in events:
          if given_up:
            return 'given up'
          part = event.choices[0].delta.content or ''
          if part and first:
            self.first_seconds.append(time.monotonic() - began)
            first = False
          text += part
    self.seconds.append(time.monotonic() - began)
    if text != case['text']:
      self.wrong.append((case['text'], text))
      return 'wrong'
    return 'right'


def percentile(values: list[float], percent: int) -> float:
  """A percentile, in milliseconds."""
  return round(1000 * statistics.quantiles(values, n=100)[percent - 1], 1)


async def load_tables(
  root: pathlib.Path, minutes: float, warm_up: float, clients: int
) -> dict[str, Any]:
  """The first part: this program as its own backend."""
  cases = offline(root)
  server = Server(
    ['--batch_size=16', *(f'--table={name}={root / name}' for name in _TABLES)],
    root / 'serve.log',
  )
  async with asyncio.TaskGroup() as group:
    warm = Load(server.url, cases, clients, 1)
    group.create_task(warm.run())
    # Its first batches of each size compile programs.
    await asyncio.sleep(60 * warm_up)
    warm.ending = True
  load = Load(server.url, cases, clients, 0)
  noted: list[dict[str, int]] = []
  began = time.monotonic()
  async with asyncio.TaskGroup() as group:
    group.create_task(load.run())
    while time.monotonic() - began < 60 * minutes:
      await asyncio.sleep(1)
      noted.append(server.status())
    load.ending = True
  seconds = time.monotonic() - began
  status = server.stop()
  logged = len(server.events('request'))
  asked = sum(load.statuses.values()) + sum(warm.statuses.values())
  part = max(1, len(noted) // 5)
  return {
    'clients': clients,
    'seconds': round(seconds, 1),
    'requests': load.statuses,
    'requests_per_second': round(sum(load.statuses.values()) / seconds, 1),
    'warm_up_requests': warm.statuses,
    'different_answers': len({case['text'] for case in cases}),
    # Not those that the client gave up before they were sent.
    'logged_minus_asked': logged - asked,
    'milliseconds': {
      f'p{p}': percentile(load.seconds, p) for p in (50, 90, 99)
    },
    'milliseconds_to_first_text': {
      f'p{p}': percentile(load.first_seconds, p) for p in (50, 99)
    },
    'rss_mib_by_fifth': [
      round(max(one['rss_kib'] for one in noted[i : i + part]) / 1024, 1)
      for i in range(0, 5 * part, part)
      if noted[i : i + part]
    ],
    'threads_by_fifth': [
      max(one['threads'] for one in noted[i : i + part])
      for i in range(0, 5 * part, part)
      if noted[i : i + part]
    ],
    'exit_status': status,
    'wrong': load.wrong[:5] + warm.wrong[:5],
  }


def start_llama(file: pathlib.Path, port: int) -> subprocess.Popen[bytes]:
  """A llama.cpp server."""
  program = _ROOT / 'tests' / 'support' / 'llama_program.py'
  process = subprocess.Popen(
    [sys.executable, program, file, str(port)],
    env={**os.environ, 'OMP_WAIT_POLICY': 'passive'},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  last = time.monotonic() + 60
  while True:
    with contextlib.suppress(OSError):
      with urllib.request.urlopen(f'http://127.0.0.1:{port}/health') as reply:
        if reply.status == 200:
          return process
    assert process.poll() is None and time.monotonic() < last
    time.sleep(0.05)


async def kill_a_backend(root: pathlib.Path, clients: int) -> dict[str, Any]:
  """The second part: a backend that is killed twice."""
  import gguf_runs
  import server_process

  from vtokens.exports import trained_table
  from vtokens.exports.gguf import gguf_file
  from vtokens.serving import artifact

  base = gguf_runs.save(root, 'llama_tied_q4_0', kind=gguf_runs.Type.F32)
  source = trained_table.read(str(root / 'run'))
  out = root / 'gguf'
  out.mkdir()
  plan = gguf_file.place(source.table, source.base, str(base))
  gguf_file.write(out / gguf_file.FILE, source.table, plan, str(base))
  meta = {**vars(source.table.meta), 'tokens': plan.tokens}
  artifact.write(
    out,
    artifact.Artifact(source.table.table, type(source.table.meta)(**meta)),
  )
  port = server_process.free_port()
  llama = start_llama(out / gguf_file.FILE, port)
  server = Server(
    [
      '--backend=llama.cpp',
      f'--backend_url=http://127.0.0.1:{port}',
      f'--table=one={out}',
    ],
    root / 'front.log',
  )
  cases = []
  async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
    for i in range(_QUESTIONS):
      case: dict[str, Any] = {
        'model': 'one',
        'question': f'When was tower {i} completed?',
        'extra_body': {'passages': [{'text': f'It was in 18{i}.'}], 'k': 5},
      }
      reply = await client.post(
        f'{server.url}/v1/chat/completions',
        json={
          'model': 'one',
          'messages': [{'role': 'user', 'content': case['question']}],
          **case['extra_body'],
        },
      )
      reply.raise_for_status()
      case['text'] = reply.json()['choices'][0]['message']['content']
      cases.append(case)
  load = Load(server.url, cases, clients, 0)
  down = []
  async with asyncio.TaskGroup() as group:
    group.create_task(load.run())
    for _ in range(2):
      await asyncio.sleep(4)
      llama.kill()
      llama.wait()
      await asyncio.sleep(2)
      down.append(load.statuses.get('502', 0))
      llama = await asyncio.to_thread(start_llama, out / gguf_file.FILE, port)
    before = load.statuses.get('right', 0)
    await asyncio.sleep(4)
    load.ending = True
  status = server.stop()
  llama.kill()
  llama.wait()
  return {
    'clients': clients,
    'requests': load.statuses,
    'refused_with_502_after_each_kill': down,
    'right_after_the_last_start': load.statuses.get('right', 0) - before,
    'exit_status': status,
    'wrong': load.wrong[:5],
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=5.0)
  parser.add_argument('--warm_up', type=float, default=2.0, help='minutes')
  parser.add_argument('--clients', type=int, default=64)
  parser.add_argument('--json', type=pathlib.Path)
  arguments = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  import tiny_service

  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    tiny_service.write_runs(root)
    (root / 'llama').mkdir()
    found: dict[str, Any] = {
      'machine': {
        'processor': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'vtokens': vtokens.__version__,
      },
      'tables': asyncio.run(
        load_tables(
          root, arguments.minutes, arguments.warm_up, arguments.clients
        )
      ),
      'backend_killed': asyncio.run(kill_a_backend(root / 'llama', 16)),
    }
  # Of what else the machine does.
  found['machine']['load_average'] = os.getloadavg()
  text = json.dumps(found, indent=2, ensure_ascii=True)
  print(text)
  if arguments.json:
    arguments.json.write_text(f'{text}\n')
  assert not found['tables']['wrong'] + found['backend_killed']['wrong']


if __name__ == '__main__':
  main()
