"""Serves tables over HTTP: the paths of OpenAI's API, and a page to try them.

python -m vtokens.serve --workdir runs/quickstart --port 8000

A request names a table as its `model`, or `base` for the base without tokens.
Fields beyond OpenAI's, such as `passages` and `k`, are in docs/server.md.

--backend=vllm, llama.cpp or openai passes questions on to a server of this kind
at --backend_url. Each --table is then a directory that vtokens export wrote for
it (--to vtokens, gguf, or hf).
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from vtokens.host import errors
from vtokens.serving import http_post
from vtokens.settings import flags

_WORKDIR = flags.define_path(
  'workdir',
  None,
  'Work directory of a finished run, whose name its table gets.',
)
_TABLE = absl_flags.DEFINE_multi_string(
  'table', [], 'NAME=DIR: a further table and its name.'
)
_INDEX = flags.define_path(
  'index', None, 'Index directory of vtokens.retrieve, to find passages in.'
)
_RETRIEVER = absl_flags.DEFINE_string(
  'retriever', None, 'Name of the retriever in --index, if it has several.'
)
_ENCODER = flags.define_path(
  'encoder', None, 'Model of a dense retriever in --index.'
)
_NUM_PASSAGES = absl_flags.DEFINE_integer(
  'num_passages',
  3,
  'Passages to find for a question.',
  lower_bound=1,
  upper_bound=100,
)
_HOST = absl_flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
_PORT = absl_flags.DEFINE_integer(
  'port',
  8000,
  'Port to listen on; 0 for any free one.',
  lower_bound=0,
  upper_bound=65535,
)
_KEY_FILE = flags.define_path(
  'key_file',
  None,
  'File with the API key; default: the variable VTOKENS_API_KEY.',
)
_ALLOW_NO_KEY = absl_flags.DEFINE_boolean(
  'allow_no_key', False, 'Let other machines in without an API key.'
)
_BACKEND = absl_flags.DEFINE_enum(
  'backend',
  'local',
  ['local', 'vllm', 'llama.cpp', 'openai'],
  'What answers: this process, or a server of this kind.',
)
_BACKEND_URL = absl_flags.DEFINE_string(
  'backend_url', None, 'URL of that server, without /v1.'
)
_BACKEND_MODEL = absl_flags.DEFINE_string(
  'backend_model',
  '',
  'Name of the model there; default: the first that it lists.',
)
_BASE = flags.define_path(
  'base', '', 'Directory or hub id of the base; for --backend=vllm.'
)
_BATCH_SIZE = absl_flags.DEFINE_integer(
  'batch_size',
  8,
  'Questions answered together by this process.',
  lower_bound=1,
  upper_bound=1024,
)
_MAX_TOKENS = absl_flags.DEFINE_integer(
  'max_tokens', 512, 'Longest answer that a request may ask for.', lower_bound=1
)
_MAX_BODY = absl_flags.DEFINE_integer(
  'max_body_bytes', 1 << 20, 'Longest body of a request.', lower_bound=1
)
_MAX_QUEUE = absl_flags.DEFINE_integer(
  'max_queue', 256, 'Most requests that run or wait.', lower_bound=1
)
_TIMEOUT = absl_flags.DEFINE_float(
  'timeout', 120.0, 'Most seconds until an answer is complete.', lower_bound=0.1
)
_DRAIN = absl_flags.DEFINE_float(
  'drain',
  30.0,
  'Seconds that running requests may take to end.',
  lower_bound=0.0,
)
_LAST_MESSAGE = absl_flags.DEFINE_boolean(
  'last_message',
  False,
  'Answer the last message of a chat alone; without it a table refuses chats '
  'with more messages.',
)
_LOG_QUESTIONS = absl_flags.DEFINE_boolean(
  'log_questions', False, 'Write the text of questions to the log.'
)
# Of the server behind --backend_url.
_BACKEND_KEY = 'VTOKENS_BACKEND_KEY'


def _tables() -> dict[str, str]:
  """Directories of the tables by name; the first one is the default.

  Raises:
    errors.UserError: a name is missing, or there twice.
  """
  found: dict[str, str] = {}
  given = list(_TABLE.value)
  if _WORKDIR.value is not None:
    name = pathlib.PurePath(os.path.abspath(_WORKDIR.value)).name
    given.insert(0, f'{name}={_WORKDIR.value}')
  for one in given:
    name, _, directory = one.partition('=')
    if not name or not directory:
      raise errors.UserError(f'--table={one}: expected NAME=DIRECTORY')
    if name in ('base', *found):
      raise errors.UserError(
        f'--table={one}: the name {name!r} is taken; choose another'
      )
    found[name] = os.path.expanduser(directory)
  return found


def _remote(kind: Any, tables: dict[str, str]) -> Any:
  """A backend that passes questions on."""
  from vtokens.server import remote_backend, remote_tables

  if _BACKEND_URL.value is None:
    raise errors.UserError(
      f'--backend_url is needed with --backend={kind}, e.g. '
      'http://127.0.0.1:8080'
    )
  if _WORKDIR.value is not None:
    raise errors.UserError(
      f'--workdir: --backend={kind} takes exports: run vtokens export --to '
      f'{remote_tables.FORMATS[kind]}, and name its --out as --table NAME=DIR'
    )
  url = http_post.check_url(_BACKEND_URL.value)
  found = remote_backend.RemoteBackend(
    kind,
    url,
    remote_tables.Reader(kind, url, _BASE.value),
    model=_BACKEND_MODEL.value,
    key=http_post.check_key(os.environ.get(_BACKEND_KEY, '')),
  )
  for name, directory in tables.items():
    found.load_now(name, directory)
  return found


def _local(tables: dict[str, str], metrics: Any) -> Any:
  """A backend in this process."""
  if not tables:
    raise errors.UserError('--workdir or --table NAME=DIR is needed')
  # JAX takes long to import.
  from vtokens import answering
  from vtokens.server import local_backend

  (name, directory), *_ = tables.items()
  engine = answering.Engine.open(directory, name, batch_size=_BATCH_SIZE.value)
  found = local_backend.LocalBackend(engine, metrics)
  for name, directory in tables.items():
    found.load_now(name, directory)
  return found


def _index() -> Any:
  """The index of passages, or None."""
  if _INDEX.value is None:
    return None
  from vtokens.retrieval import open_index

  return open_index.open_index(_INDEX.value, _RETRIEVER.value, _ENCODER.value)


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  try:
    from vtokens.server import access, app, limits, running, service
    from vtokens.server.json_log import JsonLog
    from vtokens.server.metrics import Metrics
  except ModuleNotFoundError as e:
    raise errors.UserError(
      f"serving needs the package {e.name}: pip install 'vtokens[serve]'"
    ) from None
  key = access.read_key(_KEY_FILE.value)
  access.check(_HOST.value, key, _ALLOW_NO_KEY.value)
  tables = _tables()
  # Before the base is loaded, which takes long.
  opened = running.listen(_HOST.value, _PORT.value)
  metrics = Metrics()
  index = _index()
  if _BACKEND.value == 'local':
    backend = _local(tables, metrics)
  else:
    backend = _remote(_BACKEND.value, tables)
  served = service.Service(
    backend,
    limits.Limits(
      body_bytes=_MAX_BODY.value,
      max_tokens=_MAX_TOKENS.value,
      queue=_MAX_QUEUE.value,
      seconds=_TIMEOUT.value,
      drain_seconds=_DRAIN.value,
    ),
    log=JsonLog(texts=_LOG_QUESTIONS.value),
    metrics=metrics,
    index=index,
    num_passages=_NUM_PASSAGES.value,
    last_message=_LAST_MESSAGE.value,
  )
  any_host = bool(key) or not access.is_loopback(_HOST.value)
  running.run(app.make(served, key, any_host=any_host), served, opened)


if __name__ == '__main__':
  flags.run(main)
