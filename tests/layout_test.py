"""The layout that CONTRIBUTING.md draws is the package's."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = _ROOT / 'vtokens'
# These two use each other.
_PAIR = {'data', 'scoring'}


def _drawn():
  """Packages in the picture, from the top down."""
  text = (_ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
  return re.findall(r'^  [├└]── (\w+)/ ', text, re.MULTILINE)


def _imported(path):
  """Packages that a module imports, directly under vtokens."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      first, *rest = name.split('.')
      if first == 'vtokens' and rest and (_PACKAGE / rest[0]).is_dir():
        yield rest[0]


def test_the_picture_has_all_packages():
  packages = {path.parent.name for path in _PACKAGE.glob('*/__init__.py')}
  assert sorted(_drawn()) == sorted(packages)


def test_packages_import_only_those_below_them():
  order = {name: level for level, name in enumerate(_drawn())}
  wrong = set()
  for package, level in order.items():
    for path in (_PACKAGE / package).rglob('*.py'):
      for other in _imported(path):
        if order[other] < level and {package, other} != _PAIR:
          wrong.add(f'{path.relative_to(_ROOT)} imports vtokens.{other}')
  assert not wrong


def test_the_check_sees_imports():
  assert 'host' in set(_imported(_PACKAGE / 'run/loop.py'))
