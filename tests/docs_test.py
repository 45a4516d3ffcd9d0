"""Links of the Markdown files, and the config fields that they name.

The site is built by `.ci/run`.
"""

import itertools
import pathlib
import re
import unicodedata

import markdown_it
import pytest

from vtokens import config
from vtokens.data.build import build_config
from vtokens.evaluation import eval_config
from vtokens.exports import export_config
from vtokens.retrieval import retrieval_config
from vtokens.settings import schema

_CONFIGS = (
  config.Config,
  build_config.Config,
  eval_config.Config,
  export_config.Config,
  retrieval_config.Config,
)
_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = sorted(
  path.relative_to(_ROOT)
  for folder in ('.', 'docs', 'vtokens/data')
  for path in (_ROOT / folder).glob('**/*.md' if folder != '.' else '*.md')
)


def _anchors(path):
  """Of a page's headings, as GitHub makes them."""
  tokens = markdown_it.MarkdownIt().enable('table').parse(path.read_text())
  found = set()
  for before, token in itertools.pairwise(tokens):
    if before.type == 'heading_open':
      text = re.sub(r'[`*]', '', token.content).lower()
      kept = (
        c
        for c in text
        if c in ' -_' or unicodedata.category(c)[0] in ('L', 'N')
      )
      found.add(''.join(kept).replace(' ', '-'))
  return found


def _links(path):
  tokens = markdown_it.MarkdownIt().enable('table').parse(path.read_text())
  for token in tokens:
    for child in token.children or ():
      if child.type in ('link_open', 'image'):
        yield child.attrs.get('href') or child.attrs['src']


def _broken(path):
  for link in _links(path):
    target, _, anchor = str(link).partition('#')
    if '://' in target:
      continue
    file = (path.parent / target).resolve() if target else path
    if not file.exists() or (anchor and anchor not in _anchors(file)):
      yield link


@pytest.mark.parametrize('page', _PAGES, ids=str)
def test_links_lead_somewhere(page):
  assert list(_broken(_ROOT / page)) == []


def test_broken_links_are_found(tmp_path):
  page = tmp_path / 'a.md'
  page.write_text(
    '# One, `two`\n\n[a](#one-two) [b](b.md) [c](a.md#none) ![d](d.png)\n\n'
    '| [e](e.md) |\n| --- |\n| https://x.org [f](https://x.org/f) |\n'
  )
  assert list(_broken(page)) == ['b.md', 'a.md#none', 'd.png', 'e.md']


def _unknown_fields(text):
  """Fields of `--config.section.field` that no config has."""
  for field in re.findall(r'--config\.([a-z][a-z0-9_.]*[a-z0-9])', text):
    if not any(_has_field(kind, field) for kind in _CONFIGS):
      yield field


def _has_field(kind, field):
  try:
    schema.kind_of(kind, field)
  except schema.FieldError:
    return False
  return True


@pytest.mark.parametrize('page', _PAGES, ids=str)
def test_flags_name_config_fields(page):
  assert list(_unknown_fields((_ROOT / page).read_text())) == []


def test_unknown_fields_are_found():
  """A section or a dict is none that the command line can set."""
  text = (
    '--config.optim.learning_rate=1 `--config.SECTION.FIELD=VALUE` '
    "--config.optim.rate=1, --config.optim --config.tasks='' "
    '--config.gate.questions.'
  )
  assert list(_unknown_fields(text)) == ['optim.rate', 'optim', 'tasks']


def test_the_readme_is_short():
  assert len((_ROOT / 'README.md').read_text().splitlines()) <= 150
