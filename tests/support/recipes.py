"""The recipes of docs/serving.md: their commands, and their lines of Python."""

import pathlib
import re
import shlex
from typing import Any

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'serving.md'
# Of the page's addresses, which tests replace.
_ADDRESS = re.compile(r'http://127\.0\.0\.1:\d+')


def headings() -> list[str]:
  """Of all sections."""
  return re.findall(r'^## (.*)', PAGE.read_text(), re.MULTILINE)


def _section(heading: str) -> tuple[str, str]:
  """What comes before all sections, and the section."""
  first, *sections = PAGE.read_text().split('\n## ')
  [found] = [text for text in sections if text.startswith(heading + '\n')]
  return first, found


def _blocks(text: str, language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def python(heading: str, k: int = 5) -> tuple[str, str]:
  """The lines of Python of all recipes, and those under a heading.

  Args:
    heading: of the recipe.
    k: virtual tokens, in place of the page's 50: tables here are smaller.
  """
  first, found = _section(heading)
  [common] = _blocks(first, 'python')
  [own] = _blocks(found, 'python')
  return common, own.replace('k=50', f'k={k}').replace(' 50,', f' {k},')


def block(heading: str, language: str) -> str:
  """The only block of a language under a heading."""
  [found] = _blocks(_section(heading)[1], language)
  return found


def command(heading: str, port: int) -> list[str]:
  """The command that starts the server, with another port."""
  words = shlex.split(_blocks(_section(heading)[1], '')[0])
  at = words.index('--port')
  return [*words[: at + 1], str(port), *words[at + 2 :]]


def enter(place: pathlib.Path, kind: str, monkeypatch: Any) -> None:
  """Goes where recipes are run: `exported` is what is exported, `base` there.

  Args:
    place: the directory.
    kind: name there of what is exported.
    monkeypatch: pytest's.
  """
  link = place / 'exported'
  link.unlink(missing_ok=True)
  link.symlink_to(kind)
  monkeypatch.chdir(place)


def execute(
  heading: str, address: str = '', k: int = 5, **names: Any
) -> dict[str, Any]:
  """What the lines of Python leave behind; see `enter`.

  Args:
    heading: of the recipe.
    address: of the server, in place of the page's.
    k: virtual tokens.
    **names: in place of the page's, e.g. another question.
  """
  common, own = python(heading, k)
  if address:
    own, count = _ADDRESS.subn(address, own)
    assert count == 1
  found: dict[str, Any] = {}
  exec(common, found)
  found |= names
  exec(own, found)
  return found
