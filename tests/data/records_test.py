"""Tests of vtokens.data.records."""

import dataclasses

import pytest

from vtokens.data import records
from vtokens.host import errors

A, B, C = (records.Passage(name, '', f'Text {name}.') for name in 'abc')


def make(**passages):
  return records.Record('q', 'd', 'Who?', ('I',), passages)


def test_values_are_frozen():
  for value, field in ((make(), 'id'), (A, 'text')):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(value, field, 'x')


def test_ranked_by_name():
  record = make(gold=(A,), bm25=(B, C))
  assert record.ranked('gold') == (A,)
  assert record.ranked('bm25') == (B, C)
  assert record.ranked('e5') == ()


def test_ranked_without_a_name():
  assert make().ranked() == ()
  assert make(gold=(A,)).ranked() == (A,)
  assert make(gold=(A,), e5=(B,)).ranked() == (B,)
  with pytest.raises(errors.UserError, match=r'several retrievers, bm25, e5'):
    make(gold=(A,), bm25=(B,), e5=(C,)).ranked()


def test_hash_is_of_content_and_order():
  one, two = make(bm25=(A,)), make(bm25=(B,))
  hashes = {
    records.sha256(given)
    for given in ([one, two], [two, one], [one], [two], [])
  }
  assert len(hashes) == 5
  # What a dict's order is, says nothing.
  assert records.sha256([make(a=(A,), b=(B,))]) == records.sha256(
    [make(b=(B,), a=(A,))]
  )
