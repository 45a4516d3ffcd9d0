"""Tests of vtokens.host.json_diff."""

from vtokens.host import json_diff


def test_nested_objects_are_compared_field_by_field():
  old = {
    'name': 'n',
    'files': ['a', 'b'],
    'branch': {'leaf': {'size': 1, 'share': 0.25}},
    'numbers': {'x': 0.5, 'y': 1},
  }
  new = {
    'name': 'm',
    'files': ['a'],
    'branch': {'leaf': {'size': 1}},
    'numbers': {'x': 0.75, 'y': 1},
  }
  assert json_diff.diff(old, old) == []
  assert json_diff.diff(old, new) == [
    "config.branch.leaf.share: 0.25 there, '(absent)' now",
    "config.files: ['a', 'b'] there, ['a'] now",
    "config.name: 'n' there, 'm' now",
    'config.numbers.x: 0.5 there, 0.75 now',
  ]
  assert json_diff.diff({'a': 1}, {'a': 2}, 'base.') == [
    'base.a: 1 there, 2 now'
  ]


def test_null_and_false_are_not_absent():
  assert json_diff.diff({'a': None}, {}) == [
    "config.a: None there, '(absent)' now"
  ]
  assert json_diff.diff({}, {'a': {'b': 0}}) == [
    "config.a.b: '(absent)' there, 0 now"
  ]
