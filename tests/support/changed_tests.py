"""Runs the quick tests of what changed since the branch left main.

  python tests/support/changed_tests.py [--since BRANCH] [arguments of pytest]

It runs each changed test file, and for a changed module the test file of its
name: `tests/data/mixture_test.py` for `vtokens/data/mixture.py`. A module
without one is tested by the test files that import it; if there are none, by
those of the modules that import it. For `configs/`, `docs/` and `launch/` it
runs `configs_test.py` and so on, for a Markdown file beside them
`docs_test.py`. Tests marked `slow` or `exhaustive` are left
out.
"""

import argparse
import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Set

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def changed_files(since: str, root: pathlib.Path = _ROOT) -> list[str]:
  """Files that differ from where this branch left another, or are new."""

  def git(*arguments: str) -> list[str]:
    out = subprocess.check_output(['git', *arguments], cwd=root)
    return out.decode().split('\0')[:-1]

  return [
    *git('diff', '-z', '--name-only', '--merge-base', since),
    *git('ls-files', '-z', '--others', '--exclude-standard'),
  ]


def module_name(path: str) -> str:
  """As tests and modules import it: `tests/support` is on their path."""
  name = path.removeprefix('tests/support/').removesuffix('.py')
  return name.removesuffix('/__init__').replace('/', '.')


def _imports(path: pathlib.Path, modules: Set[str]) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        found.add(name if name in modules else node.module)
  return found


def tests_of(changed: Iterable[str], root: pathlib.Path = _ROOT) -> list[str]:
  """Test files of changed files.

  Args:
    changed: paths, relative to the root.
    root: the repository.

  Returns:
    Sorted paths, relative to the root.
  """
  files = {
    path.relative_to(root).as_posix()
    for top in ('vtokens', 'tests')
    for path in (root / top).rglob('*.py')
  }
  modules = {module_name(path) for path in files}

  @functools.cache
  def imports(path: str) -> set[str]:
    return _imports(root / path, modules)

  def nearest(path: str) -> set[str]:
    seen = level = {path}
    while level:
      stems = (p.removeprefix('vtokens/').removesuffix('.py') for p in level)
      if own := files & {f'tests/{stem}_test.py' for stem in stems}:
        return own
      names = {module_name(p) for p in level}
      level = {p for p in files - seen if imports(p) & names}
      if tests := {p for p in level if p.endswith('_test.py')}:
        return tests
      seen = seen | level
    return set()

  found: set[str] = set()
  for path in changed:
    if path.endswith('_test.py'):
      found |= {path}
    elif path.startswith(('vtokens/', 'tests/')) and path.endswith('.py'):
      found |= nearest(path)
    elif path.endswith('.md') and '/' not in path:
      found |= {'tests/docs_test.py'}
    else:
      found |= {f'tests/{path.split("/")[0]}_test.py'}
  return sorted(found & files)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--since', default='main', metavar='BRANCH')
  settings, more = parser.parse_known_args()
  tests = tests_of(changed_files(settings.since))
  if not tests:
    print(f'no test belongs to what changed since {settings.since}')
    return 0
  print('\n'.join(tests), flush=True)
  return pytest.main(
    ['--rootdir', str(_ROOT), '-m', 'not slow and not exhaustive', *more]
    + [str(_ROOT / path) for path in tests]
  )


if __name__ == '__main__':
  sys.exit(main())
