"""The Pallas kernels for GPUs against `attention.attend`.

Interpreted, unless JAX has a GPU: `JAX_PLATFORMS=cuda pytest -n 0` runs those
in bfloat16 on it.
"""

import functools
import os
import pathlib
import subprocess
import sys

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla_flags

from vtokens.data import assemble, pipeline
from vtokens.devices import partitioning
from vtokens.method import steps
from vtokens.models import decoder
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.kernels import flash, flash_masks
from vtokens.models.kv_cache import KVCache
from vtokens.models.mixers import attention

_B, _N = 2, 4
_INTERPRET = jax.default_backend() != 'gpu'
# GPUs round what the products of float32 take.
exact = pytest.mark.skipif(not _INTERPRET, reason='not in float32 on a GPU')


def _normal(rng, *shape, dtype=np.float32):
  return jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype)


def _inputs(length, segments, *, kv_heads=2, head_dim=64, dtype=np.float32):
  """Queries and keys of two rows, the second shorter than the first.

  Args:
    length: of a row.
    segments: of the examples in it, their (start, stop); None for one example
      without segments.
    kv_heads: fewer than the queries' heads.
    head_dim: width of a head.
    dtype: of both.
  """
  rng = np.random.default_rng(length)
  q = 2 * _normal(rng, _B, length, _N, head_dim, dtype=dtype)
  k = _normal(rng, _B, kv_heads, head_dim, length, dtype=dtype)
  v = _normal(rng, _B, kv_heads, length, head_dim, dtype=dtype)
  positions = np.full((_B, length), -1, np.int32)
  numbers = np.full((_B, length), -1, np.int32)
  parts = segments or [(0, length - 9)]
  for number, (start, stop) in enumerate(parts):
    positions[:, start:stop] = np.arange(stop - start)
    numbers[:, start:stop] = number
  positions[1, parts[-1][1] - 5 :] = -1
  numbers[1, parts[-1][1] - 5 :] = -1
  return q, KVCache(
    k, v, jnp.asarray(positions), None if segments is None else numbers
  )


def _after(new, cache):
  """New tokens in the positions that follow those of a cache of theirs."""
  ends = np.zeros((_B, 99), np.int32)
  numbers = cache.segments
  for row in range(_B):
    for slot, position in enumerate(np.asarray(cache.positions)[row]):
      number = 0 if numbers is None else int(numbers[row][slot])
      if position >= 0:
        ends[row, number] = position + 1
  positions = np.array(new.positions)
  mine = (
    np.zeros_like(positions)
    if numbers is None
    else np.maximum(np.asarray(new.segments), 0)
  )
  shift = np.take_along_axis(ends, mine, axis=1)
  return new.replace(
    positions=jnp.asarray(np.where(positions < 0, -1, positions + shift))
  )


def _floats(tree, dtype):
  return jax.tree.map(
    lambda x: (
      jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
    ),
    tree,
  )


def _run(attend, q, new, caches, **settings):
  """Attended values of real tokens, and gradients of q, k and v."""
  real = (new.positions >= 0)[..., None, None]

  def values(q, k, v):
    out = attend(q, new.replace(k=k, v=v), caches, **settings)
    return jnp.where(real, out, 0), out

  @jax.jit
  def run(q, k, v, gradient):
    out, pull, everything = jax.vjp(values, q, k, v, has_aux=True)
    return out, *pull(gradient), everything

  gradient = _normal(np.random.default_rng(1), *q.shape, dtype=q.dtype)
  *found, everything = run(q, new.k, new.v, gradient)
  # What padding holds is passed on to the next layer.
  assert np.isfinite(np.asarray(everything, np.float32)).all()
  return found


def both(q, new, caches=(), mesh=None, **settings):
  """What the kernels give, and what is expected."""
  mesh = mesh or partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  settings = {'scale': 0.3, **settings}
  kernels = functools.partial(flash.attend, mesh=mesh, interpret=_INTERPRET)
  found = _run(kernels, q, new, caches, **settings)
  expected = _run(attention.attend, q, new, caches, **settings)
  assert [(x.shape, x.dtype) for x in found] == [
    (x.shape, x.dtype) for x in expected
  ]
  return found, expected


def check(found, expected):
  # Scores of up to 60 have a rounding error of 4e-6.
  for x, y in zip(found, expected, strict=True):
    scale = max(1.0, float(jnp.abs(y).max()))
    np.testing.assert_allclose(x, y, atol=1e-5 * scale)


_CASES = [
  (128, None, {'softcap': 2.0}),
  # Whole blocks of padding, of one segment, and of several.
  (640, [(0, 3), (3, 4), (4, 300), (300, 310), (310, 420)], {}),
  (300, [(0, 70), (70, 280)], {'window': 30}),
  (520, None, {'window': 7, 'softcap': 2.0}),
  # One that differs between layers, of which one has none.
  (300, [(0, 70), (70, 280)], {'window': jnp.int32(100)}),
  (300, [(0, 70), (70, 280)], {'window': jnp.int32(2**30)}),
]


@exact
@pytest.mark.parametrize('length, segments, settings', _CASES)
def test_passages(length, segments, settings):
  check(*both(*_inputs(length, segments), **settings))


@exact
def test_sinks():
  _, cache = _inputs(130, [(0, 60), (60, 120)])
  q, new = _inputs(90, [(0, 50), (50, 81)])
  # From without effect to larger than any score.
  sinks = jnp.asarray([-30.0, 0.0, 3.0, 60.0])
  settings = {'sinks': sinks, 'window': 40, 'softcap': 20.0}
  found, expected = both(q, _after(new, cache), [cache], **settings)
  check(found, expected)
  assert np.abs(expected[0][:, :, 3]).max() < 1e-6


@exact
@pytest.mark.parametrize('kv_heads, head_dim', [(4, 80), (1, 256)])
def test_heads(kv_heads, head_dim):
  sizes = {'kv_heads': kv_heads, 'head_dim': head_dim}
  _, cache = _inputs(130, [(0, 90), (90, 120)], **sizes)
  q, new = _inputs(150, [(0, 70), (70, 141)], **sizes)
  check(*both(q, _after(new, cache), [cache], scale=head_dim**-0.5))


_SUFFIXES = [
  (100, 300, None, None, {}),
  (33, 64, None, None, {'softcap': 2.0}),
  (190, 620, [(0, 70), (70, 180)], [(0, 310), (310, 600)], {}),
  # Of the second no passages, of the third all but a token.
  (90, 256, [(0, 9), (9, 40), (40, 41)], [(0, 70), (70, 70), (70, 250)], {}),
  (100, 300, [(0, 50), (50, 90)], [(0, 200), (200, 280)], {'window': 40}),
  (
    *(100, 300, [(0, 50), (50, 90)], [(0, 200), (200, 280)]),
    {'window': jnp.int32(150), 'softcap': 5.0},
  ),
]


def suffix(length, slots, segments, of_slots, **options):
  _, cache = _inputs(slots, of_slots, **options)
  q, new = _inputs(length, segments, **options)
  return q, _after(new, cache), cache


@exact
@pytest.mark.parametrize(
  'length, slots, segments, of_slots, settings', _SUFFIXES
)
def test_after_passages(length, slots, segments, of_slots, settings):
  q, new, cache = suffix(length, slots, segments, of_slots)
  check(*both(q, new, [cache], **settings))


@exact
def test_several_caches():
  q, new, cache = suffix(100, 300, None, None)
  _, empty = _inputs(64, None)
  empty = empty.replace(positions=jnp.full_like(empty.positions, -1))
  check(*both(q, new, [cache, empty]))
  # A cache without segments precedes every segment of the row.
  q, new = _inputs(100, [(0, 50), (50, 90)])
  shift = jnp.where(new.positions < 0, 0, 300)
  new = new.replace(positions=new.positions + shift)
  check(*both(q, new, [cache]))


@exact
def test_parents():
  # Three suffixes of two prefixes in a row.
  _, cache = _inputs(300, [(0, 120), (120, 290)])
  q, new = _inputs(120, [(0, 40), (40, 70), (70, 110)])
  parents = jnp.asarray(np.array([0, 1, 1, -1]))[new.segments]
  new = new.replace(
    positions=jnp.where(new.positions < 0, -1, new.positions + 170)
  )
  check(*both(q, new, [cache], parents=parents))


@exact
@pytest.mark.parametrize(
  'packed, settings', [(False, {}), (True, {'window': 200, 'softcap': 3.0})]
)
def test_trained_caches(packed, settings):
  """They get gradients, and count as other keys do."""
  segments, slots = None, None
  if packed:
    segments, slots = [(0, 50), (50, 90)], [(0, 120), (120, 280)]
  q, new, cache = suffix(100, 300, segments, slots)
  rng = np.random.default_rng(5)
  # Beside the last passages; no query sees the last slots.
  positions = jnp.r_[jnp.arange(100, 110), -jnp.ones(4, int)]
  first, second = (
    KVCache(
      _normal(rng, _B, 2, 64, 14),
      _normal(rng, _B, 2, 14, 64),
      jnp.broadcast_to(positions, (_B, 14)),
      jnp.broadcast_to(jnp.arange(14) % 2, (_B, 14)) if packed else None,
    )
    for _ in range(2)
  )
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  kernels = functools.partial(flash.attend, mesh=mesh, interpret=_INTERPRET)
  real = (new.positions >= 0)[..., None, None]
  gradient = _normal(rng, *q.shape)

  def found(attend):
    def values(q, k, v, trained):
      out = attend(
        q,
        new.replace(k=k, v=v),
        [cache],
        scale=0.3,
        trained=[
          part.replace(k=k, v=v)
          for part, (k, v) in zip((first, second), trained, strict=True)
        ],
        **settings,
      )
      return jnp.where(real, out, 0)

    trained = [(part.k, part.v) for part in (first, second)]
    out, pull = jax.vjp(values, q, new.k, new.v, trained)
    return jax.tree.leaves((out, pull(gradient)))

  ours, expected = found(kernels), found(attention.attend)
  assert len(ours) == 8
  assert all(np.abs(x).max() > 1e-3 for x in expected)
  check(ours, expected)


@exact
def test_no_gradient_of_caches():
  q, new, cache = suffix(100, 300, None, None)
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])

  def total(k):
    caches = [cache.replace(k=k)]
    return flash.attend(
      q, new, caches, mesh, scale=0.3, interpret=_INTERPRET
    ).sum()

  assert not np.asarray(jax.grad(total)(cache.k)).any()


@pytest.mark.parametrize(
  'length, slots, segments, of_slots, settings',
  [
    *(_SUFFIXES[i] for i in (0, 2, 5)),
    (200, 0, [(0, 70), (70, 180)], None, {}),
  ],
)
def test_bfloat16(length, slots, segments, of_slots, settings):
  if slots:
    q, new, cache = suffix(
      length, slots, segments, of_slots, dtype=jnp.bfloat16
    )
    caches = [cache]
  else:
    q, new = _inputs(length, segments, dtype=jnp.bfloat16)
    caches = []
  settings = {**settings, 'scale': 0.1}
  found, expected = both(q, new, caches, **settings)
  with jax.default_matmul_precision('highest'):
    right = _run(
      attention.attend, *_floats((q, new, caches), jnp.float32), **settings
    )
  for x, y, z in zip(found, expected, right, strict=True):
    error, usual = (np.asarray(a - z, np.float32) for a in (x, y))
    assert np.linalg.norm(error) < 1.2 * np.linalg.norm(usual)
    # Two roundings of bfloat16, each by half of 2**-7.
    assert np.abs(error).max() < 2**-7 * np.abs(z).max()


def test_blocks_that_are_needed():
  positions = np.full((1, 256), -1, np.int32)
  segments = np.full((1, 256), -1, np.int32)
  for number, (start, stop) in enumerate([(0, 66), (66, 150), (150, 200)]):
    positions[0, start:stop] = np.arange(stop - start)
    segments[0, start:stop] = number
  heads = jnp.zeros((1, 1, 8, 256))
  new = KVCache(heads, heads.swapaxes(2, 3), positions, segments)

  def part(window):
    found = flash_masks.make_part(new, segments, new, window, own=True)
    names = ('first', 'begin', 'end', 'last', 'from_row', 'to_row')
    return {name: getattr(found, name)[0].tolist() for name in names}

  assert part(None) == {
    'first': [0, 0, 1, 2],
    # The third block has tokens of two examples, the second, too.
    'begin': [0, 0, 1, 2],
    'end': [0, 0, 1, 2],
    'last': [1, 2, 3, 4],
    'from_row': [0, 1, 2, 3],
    'to_row': [2, 3, 4, 4],
  }
  segments = np.where(positions >= 0, 0, -1)
  positions = np.where(positions >= 0, np.arange(256), -1)
  new = KVCache(heads, heads.swapaxes(2, 3), positions, segments)
  found = part(None)
  assert found['begin'] == [0, 0, 0, 0]
  # Nothing to mask below the diagonal.
  assert found['end'] == [0, 1, 2, 3]
  found = part(np.int32([10]))
  assert found['first'] == [0, 0, 1, 2] and found['last'] == [1, 2, 3, 4]
  assert found['begin'] == found['end']


# Two rows over data and two heads of keys over tensor.
_SHARDED = """
import jax, numpy as np
import flash_test
from vtokens.devices import partitioning

mesh = partitioning.make_mesh((2, 1, 2))
segments, of_slots = [(0, 30), (30, 66)], [(0, 64), (64, 120)]
q, new, cache = flash_test.suffix(70, 130, segments, of_slots)
sinks = np.float32([-1, 0, 1, 2])
found, expected = flash_test.both(q, new, [cache], mesh=mesh, sinks=sinks)
flash_test.check(found, expected)
assert all(len(x.sharding.device_set) == 4 for x in found)
print('equal')
"""


@exact
def test_over_devices():
  done = subprocess.run(
    [sys.executable, '-c', _SHARDED],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(
        [str(pathlib.Path(__file__).parent), *sys.path]
      ),
      'XLA_FLAGS': xla_flags.devices(4),
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.stdout.strip() == 'equal', done.stderr


@exact
@pytest.mark.parametrize('draws', [1, 2])
def test_in_a_decoder(monkeypatch, draws):
  """Loss and gradient of a step with kernels are those of one without."""
  window = LayerKind(window=50)
  architecture = DecoderConfig(
    vocab_size=64,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    layer_pattern=(LayerKind(), window),
    attention_softcap=5.0,
  )
  rng = np.random.default_rng(0)
  none = np.zeros(0, np.int32)

  def ids(size):
    return rng.integers(0, 64, size, dtype=np.int32)

  rows = [
    [
      [
        assemble.Example(prefix, none, k, ids(9), ids(5))
        for k in range(4, 4 + draws)
      ]
      for prefix in (ids(70), ids(50))
    ]
    for _ in range(2)
  ]
  batch = pipeline.collate(
    rows,
    shape=(128, 80),
    num_targets=10 * draws,
    vocab_size=64,
    num_rows=2,
    per_row=2,
  )
  table = jnp.asarray(rng.normal(0, 0.1, (8, 32)).astype(np.float32))
  mesh = partitioning.make_mesh((1, 1, 1))

  def step():
    model = decoder.Decoder(architecture, jnp.float32, nnx.Rngs(0), mesh)

    @jax.jit
    def value_and_gradient(table):
      def nll(table):
        cache = steps.encode_prefix(
          model, batch.prefix, batch.prefix_positions, batch.prefix_segments
        )
        return steps.suffix_nll(table, model, cache, batch)[0]

      return jax.value_and_grad(nll)(table)

    return value_and_gradient(table)

  plain = step()
  attend = flash.attend
  calls = []

  def interpreted(*args, **settings):
    calls.append(len(args[2]))
    return attend(*args, **settings, interpret=True)

  monkeypatch.setattr(flash, 'is_for', lambda *_: True)
  monkeypatch.setattr(flash, 'attend', interpreted)
  check(step(), plain)
  # Of passages, which no cache precedes, and of what follows.
  assert set(calls) == {0, 1}


class _Device:
  platform = 'gpu'

  def __init__(self, kind):
    self.device_kind = kind


class _Mesh:
  def __init__(self, kind):
    self.devices = np.array([_Device(kind)])
    self.shape = {'data': 1, 'fsdp': 2, 'tensor': 1}


@pytest.mark.parametrize(
  'kind, dtype, length, width, expected',
  [
    ('NVIDIA H100 80GB HBM3', jnp.bfloat16, 32, 128, True),
    ('NVIDIA H200', jnp.bfloat16, 5120, 256, True),
    ('NVIDIA H200', jnp.bfloat16, 5120, 512, False),
    ('NVIDIA H200', jnp.float16, 5120, 128, False),
    ('NVIDIA H100 80GB HBM3', jnp.bfloat16, 31, 128, False),
    ('NVIDIA H100 80GB HBM3', jnp.float32, 128, 128, False),
    ('Tesla T4', jnp.bfloat16, 128, 128, False),
  ],
)
def test_when_it_is_used(kind, dtype, length, width, expected):
  assert flash.is_for(_Mesh(kind), 2, length, width, dtype) == expected
  # Which two devices cannot share.
  assert not flash.is_for(_Mesh(kind), 1, length, width, dtype)


@exact
def test_not_on_cpus():
  mesh = partitioning.make_mesh((1, 1, 1))
  assert not flash.is_for(mesh, 2, 128, 64, jnp.bfloat16)
