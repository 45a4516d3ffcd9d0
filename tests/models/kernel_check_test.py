import jax.numpy as jnp
import pytest

from vtokens import errors, partitioning
from vtokens.models import flash, kernel_check
from vtokens.models.config import DecoderConfig, LayerKind


def _config(**changes):
  return DecoderConfig(
    vocab_size=8,
    embed_dim=8,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=8,
    **changes,
  )


@pytest.fixture(autouse=True)
def _on_gpu(monkeypatch):
  """As if there were a GPU, with its kernels interpreted."""
  compare = kernel_check._compare.__wrapped__
  monkeypatch.setattr(flash, 'is_for', lambda *_: True)
  monkeypatch.setattr(
    kernel_check,
    '_compare',
    lambda *args, **_: compare(*args, interpret=True),
  )


def _check(config):
  mesh = partitioning.make_mesh((1, 1, 1))
  kernel_check.check(config, jnp.dtype(jnp.bfloat16), mesh)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'attention_softcap': 5.0, 'layer_pattern': (LayerKind(window=9),)},
  ],
)
def test_right(changes):
  _check(_config(**changes))


def test_wrong(monkeypatch):
  right = flash._seen

  def one_too_many(masks, part, i, j):
    later = masks.replace(positions=masks.positions[...] + 1)
    return right(later, part, i, j)

  monkeypatch.setattr(flash, '_seen', one_too_many)
  with pytest.raises(errors.UserError, match='attention=plain') as raised:
    _check(_config())
  assert 'values with a relative error' in str(raised.value)
  # Without kernels there is nothing to be wrong.
  _check(_config(kernels=False))


def test_not_a_number(monkeypatch):
  monkeypatch.setattr(
    flash, 'attend', lambda q, *_, **__: q + jnp.asarray(jnp.nan, q.dtype)
  )
  with pytest.raises(errors.UserError, match='relative error of nan'):
    _check(_config())
