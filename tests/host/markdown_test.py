"""Tests of vtokens.host.markdown, as CommonMark's reference rules read it."""

import re

import markdown_it
import pytest

from vtokens.host import markdown

AWKWARD = (
  *(
    'a|b',
    '`code`',
    '``',
    '<b>',
    '<script>alert(1)</script>',
    '<!-- x',
    '&lt;',
  ),
  *(
    '[a](http://b)',
    '![a](b)',
    '[a]',
    '[1](2)',
    '<http://a.b>',
    'http://a.b/c',
  ),
  *(
    '*a*',
    '**a**',
    '_a_',
    '__a__',
    'a_b_c',
    '~~a~~',
    '# a',
    'a #',
    '$a$',
    '\\',
  ),
  *(
    'a\\|b',
    '\\|',
    '- a',
    '1. a',
    '> a',
    'www.a.b',
    'me@a.b',
    '|',
    '||',
    '---',
  ),
  *('a`b``c', '` a', 'a `', '1.50 [1.00, 2.00]', '<0.0001', 'ä 東京', ']: a'),
  *('1_000', 'file:///a', '*', '<3', '[x]: http://a.b', 'a\\'),
)
_MARKDOWN = markdown_it.MarkdownIt('commonmark').enable('table')


def _inline(kind: str, text: str) -> list:
  """The pieces of the only element of a kind."""
  tokens = _MARKDOWN.parse(text)
  opened = [i for i, token in enumerate(tokens) if token.type == kind]
  assert len(opened) == 1, (text, [t.type for t in tokens])
  return tokens[opened[0] + 1].children


@pytest.mark.parametrize('name', AWKWARD)
def test_text_is_shown_as_itself(name):
  escaped = markdown.text(name)
  for kind, text in (
    ('heading_open', f'## {escaped}'),
    ('paragraph_open', f'Of {escaped}, too'),
    ('td_open', f'| a |\n| --- |\n| {escaped} |'),
    ('th_open', f'| {escaped} |\n| --- |'),
  ):
    pieces = _inline(kind, text)
    # Nothing but text: no link, image, code, emphasis or HTML.
    assert {piece.type for piece in pieces} <= {'text', 'text_special'}
    shown = ''.join(piece.content for piece in pieces)
    assert shown == (f'Of {name}, too' if kind == 'paragraph_open' else name)


@pytest.mark.parametrize('name', AWKWARD)
def test_code_is_shown_as_itself(name):
  (piece,) = _inline('paragraph_open', markdown.code(name))
  assert piece.type == 'code_inline'
  assert piece.content == name


@pytest.mark.parametrize('lines', ['a\n```\nb', '````', '~~~', '```python\nx'])
def test_a_block_is_not_left(lines):
  (token,) = _MARKDOWN.parse(markdown.block(lines, 'json'))
  assert (token.type, token.info, token.content) == (
    'fence',
    'json',
    f'{lines}\n',
  )


def test_lines_and_unseen_characters():
  assert markdown.text('a\n\n# b\r\nc\td') == r'a \# b c d'
  assert markdown.text('a\x1b[31m\u202eb') == '\ufffd'.join(
    ('a', r'\[31m', 'b')
  )
  assert not re.search(r'[\x00-\x1f]', markdown.code('a\x00\nb'))


def test_links_that_need_no_brackets():
  """GitHub makes links of plain URLs, too; a mark in them keeps it from it."""
  for name in ('http://a.b', 'https://a.b', 'www.a.b', 'me@a.b'):
    assert re.search(r'(?<!\\)(://|(?<=www)\.|@)', markdown.text(name)) is None
