"""Fixtures of the endpoint's tests."""

import pytest
import tiny_service


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A directory with two runs of one tiny base."""
  root = tmp_path_factory.mktemp('served')
  tiny_service.write_runs(root)
  return root


@pytest.fixture(scope='module')
def engine(place):
  """An engine with their base."""
  return tiny_service.open_engine(place)
