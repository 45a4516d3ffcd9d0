"""The layout that CONTRIBUTING.md draws is the package's; rules of tests."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = _ROOT / 'vtokens'


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
        if order[other] < level:
          wrong.add(f'{path.relative_to(_ROOT)} imports vtokens.{other}')
  assert not wrong


def test_the_check_sees_imports():
  assert 'host' in set(_imported(_PACKAGE / 'run/loop.py'))


def test_tests_patch_public_names():
  """Ruff sees `module._name`, but not a name in a string."""
  found = []
  for path in (_ROOT / 'tests').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Call) and (
        getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        in ('setattr', 'delattr', 'getattr')
      ):
        found += [
          f'{path.name}:{node.lineno}: {name.value}'
          for name in node.args[:2]
          if isinstance(name, ast.Constant)
          and re.search(r'(^|\.)_[^_]', str(name.value))
        ]
  assert not found
