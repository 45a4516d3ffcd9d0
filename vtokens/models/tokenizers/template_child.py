"""Renders a chat template in a separate process; see `chat_template`.

It imports only Jinja, so that it starts in a tenth of a second. It is run by
its path: as a module of vtokens it would import the parent packages.
"""

import contextlib
import datetime
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`, which marks the assistant's text for training."""

  tags = {'generation'}  # noqa: RUF012 (as Jinja has it)

  def parse(self, parser: Any) -> Any:
    """Parses the block's body, which has its own variable scope."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    block = jinja2.nodes.CallBlock(self.call_method('_same'), [], [], body)
    return block.set_lineno(line)

  def _same(self, caller: Callable[[], str]) -> str:
    return caller()


class _Namespace(jinja2.utils.Namespace):
  """Jinja's namespace without access to names with leading underscores."""

  def __init__(*args: Any, **values: Any) -> None:
    self, *more = args
    values = dict(*more, **values)
    for name in values:
      _check_name(name)
    jinja2.utils.Namespace.__init__(self, values)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, value)


def _check_name(name: Any) -> None:
  if str(name).startswith('_'):
    raise jinja2.exceptions.SecurityError(f'namespace: the name {name!r}')


def _environment() -> jinja2.Environment:
  """A copy of transformers' environment; importing that takes seconds."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
  ) -> str:
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  environment.globals['namespace'] = _Namespace
  environment.globals['strftime_now'] = lambda format: (
    datetime.datetime.now().strftime(format)
  )
  return environment


def _limit(kind: int, most: int) -> None:
  # macOS has no memory limit.
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(kind, (most, most))


def main() -> None:
  """Reads a request from standard input and writes the answer, as JSON."""
  request = json.load(sys.stdin)
  _limit(resource.RLIMIT_CPU, request['seconds'])
  _limit(resource.RLIMIT_AS, request['memory'])
  _limit(resource.RLIMIT_CORE, 0)
  size = 0
  parts: list[str] = []
  try:
    template = _environment().from_string(request['template'])
    # Piece by piece, because a template may write without end.
    for part in template.generate(**request['variables']):
      size += len(part)
      if size > request['length']:
        raise ValueError(
          f'it writes more than {request["length"]:,} characters'
        )
      parts.append(part)
    answer = {'text': ''.join(parts)}
  except MemoryError:
    parts.clear()
    answer = {'error': f'it takes more than {request["memory"]:,} bytes'}
  except RecursionError:
    answer = {'error': 'it calls itself without end'}
  # A template is a program by the model's author; it can raise anything.
  except Exception as e:
    answer = {'error': str(e)[:1000] or type(e).__name__}
  json.dump(answer, sys.stdout)


if __name__ == '__main__':
  main()
