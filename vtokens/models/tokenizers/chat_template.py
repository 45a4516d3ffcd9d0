"""Renders chat templates of bases under limits of time and memory.

A template is a program by the model's author. It may loop or grow without end,
so it runs in a separate process.
"""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_CHILD = pathlib.Path(__file__).with_name('template_child.py')

# Limits, far above the needs of a template with a few messages: processor time
# in seconds, seconds to wait on a busy machine, bytes, characters.
PROCESSOR_SECONDS = 5
_PATIENCE = 60
_MEMORY = 1 << 30
_LENGTH = 1 << 18
# Longest template, in characters.
_LONGEST = 4 << 20

_TOO_LONG = f'it does not end within {PROCESSOR_SECONDS} s'
# Templates that did not end. They are not tried again with other messages.
_endless: set[str] = set()


class TemplateError(Exception):
  """A template failed, or exceeded a limit."""


def render(template: str, variables: Mapping[str, Any]) -> str:
  """Renders a template in the environment that transformers provides.

  It takes about a tenth of a second; results are cached.

  Args:
    template: the Jinja template.
    variables: JSON values, e.g. the messages.

  Raises:
    TemplateError: the template fails, runs longer than 5 s, takes more than
      1 GiB (macOS does not limit this) or writes more than 262,144
      characters.
  """
  text, error = _render(template, json.dumps(variables))
  if error:
    raise TemplateError(error)
  return text


# Failures are cached, too: each may have taken seconds.
@functools.lru_cache(maxsize=256)
def _render(template: str, variables: str) -> tuple[str, str]:
  """Text and error, one of them empty."""
  if len(template) > _LONGEST:
    return '', f'it has {len(template):,} characters, more than {_LONGEST:,}'
  if template in _endless:
    return '', _TOO_LONG
  request = {
    'template': template,
    'variables': json.loads(variables),
    'seconds': PROCESSOR_SECONDS,
    'memory': _MEMORY,
    'length': _LENGTH,
  }
  try:
    done = subprocess.run(
      [sys.executable, str(_CHILD)],
      input=json.dumps(request).encode(),
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      timeout=_PATIENCE,
      # The child imports from the same places as this process.
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
      check=False,
    )
    status = done.returncode
  except subprocess.TimeoutExpired:
    status = -signal.SIGXCPU
  if status in (-signal.SIGXCPU, -signal.SIGKILL):
    _endless.add(template)
    return '', _TOO_LONG
  if status:
    return '', f'the process that renders it ended with status {status}'
  answer = json.loads(done.stdout)
  return answer.get('text', ''), answer.get('error', '')
