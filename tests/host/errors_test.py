"""Tests of vtokens.host.errors."""

from vtokens.host import errors


def test_a_short_list_is_whole():
  assert errors.several([]) == 'none'
  assert errors.several([], 'no key') == 'no key'
  assert errors.several(['a']) == 'a'
  assert errors.several('abcdefgh') == 'a, b, c, d, e, f, g, h'
  assert errors.lines([]) == ''
  assert errors.lines(['a', 'b']) == '\n  a\n  b'


def test_a_long_list_is_cut():
  names = (f'layer.{i}' for i in range(1234))
  assert errors.several(names) == ('layer.0, layer.1, layer.2 and 1,231 more')
  assert errors.lines(range(9)) == '\n  0\n  1\n  2\n  and 6 more'


def test_a_long_text_is_cut():
  assert errors.shorten('x' * 200) == 'x' * 200
  found = errors.shorten('a' * 500_000 + 'b' * 500_000)
  assert len(found) < 250
  assert found.startswith('aaa') and found.endswith('bbb')
  assert '(1,000,000 characters)' in found
  assert len(errors.several(['y' * 10**6] * 10)) < 800


def test_a_text_is_one_line_that_commands_no_terminal():
  assert errors.shorten('a\nb\x1b[2J\ud800é') == r'a\nb\x1b[2J\ud800é'


def test_what_names_have_in_common():
  names = ['_orig_mod.model.norm', '_orig_mod.model.embed', '_orig_mod.head']
  assert errors.common_prefix(names) == '_orig_mod.'
  assert errors.common_prefix(['model.layers.1', 'model.layers.10']) == (
    'model.layers.'
  )
  assert errors.common_prefix(['ab', 'ac']) == ''
  assert errors.common_prefix(['a.b']) == ''
