import jax.numpy as jnp
import pytest

from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.kernels import flash, flash_masks, kernel_check


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
  compare = kernel_check.compare.__wrapped__
  monkeypatch.setattr(flash, 'is_for', lambda *_: True)
  monkeypatch.setattr(
    kernel_check,
    'compare',
    lambda *args, **_: compare(*args, interpret=True),
  )


def _check(config):
  mesh = partitioning.make_mesh((1, 1, 1))
  kernel_check.check(config, jnp.dtype(jnp.bfloat16), mesh)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {
      'attention_softcap': 5.0,
      'layer_pattern': (LayerKind(window=9),),
      'sinks': True,
    },
  ],
)
def test_right(changes):
  _check(_config(**changes))


def test_both_loops_are_compared():
  _, new, cache = kernel_check.make_inputs(2, 64, jnp.dtype(jnp.bfloat16))
  for keys, own in ((cache, False), (new, True)):
    part = flash_masks.make_part(new, new.segments, keys, None, own=own)
    assert (part.begin < part.end).any()
    assert ((part.first < part.begin) | (part.end < part.last)).any()
  window = jnp.int32([kernel_check.WINDOW])
  part = flash_masks.make_part(new, new.segments, cache, window, own=False)
  assert (part.begin < part.end).any()


def test_wrong(monkeypatch):
  right = flash_masks.seen_by

  def one_too_many(masks, part, i, j):
    later = masks.replace(positions=masks.positions[...] + 1)
    return right(later, part, i, j)

  monkeypatch.setattr(flash_masks, 'seen_by', one_too_many)
  with pytest.raises(errors.UserError, match='attention=plain') as raised:
    _check(_config())
  assert 'values with a relative error' in str(raised.value)
  # Without kernels there is nothing to be wrong.
  _check(_config(kernels=False))


def test_a_block_too_many_that_is_not_masked(monkeypatch):
  right = flash_masks.make_part

  def all_of_it(*args, **settings):
    part = right(*args, **settings)
    return part.replace(begin=part.first, end=part.last)

  monkeypatch.setattr(flash_masks, 'make_part', all_of_it)
  with pytest.raises(errors.UserError, match='attention=plain'):
    _check(_config())


def test_not_a_number(monkeypatch):
  monkeypatch.setattr(
    flash, 'attend', lambda q, *_, **__: q + jnp.asarray(jnp.nan, q.dtype)
  )
  with pytest.raises(errors.UserError, match='relative error of nan'):
    _check(_config())
