"""Tests of vtokens.server.limits."""

import contextlib

import pytest

from vtokens.server.api_errors import ApiError
from vtokens.server.limits import Gate, Limits


def test_too_many():
  gate = Gate(Limits(queue=2))
  with gate.enter(), contextlib.suppress(ValueError), gate.enter():
    with pytest.raises(ApiError) as caught, gate.enter():
      pass
    assert caught.value.status == 429
    assert int(caught.value.headers['Retry-After']) >= 1
    raise ValueError
  assert gate.inside == 0
  with gate.enter():
    assert gate.inside == 1


def test_closed():
  gate = Gate(Limits())
  with gate.enter():
    gate.closed = True
    with pytest.raises(ApiError) as caught, gate.enter():
      pass
    assert caught.value.status == 503
    assert gate.inside == 1
