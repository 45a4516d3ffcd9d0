"""The base that tests of the method share."""

import pytest

from vtokens import config
from vtokens.devices import partitioning
from vtokens.models import frozen_base


@pytest.fixture(scope='module')
def base(tiny_dir) -> frozen_base.FrozenBase:
  """The tiny Llama in float32, over all devices along tensor."""
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((1, 1, -1)),
  )
