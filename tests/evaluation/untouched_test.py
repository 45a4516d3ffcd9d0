"""The proof that the base is untouched, and what it must catch."""

import os
import subprocess
import sys

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla_flags

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation import untouched
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.method import generate, virtual_tokens
from vtokens.method.keys_values import KeysValues
from vtokens.models import frozen_base


def load(path, dtype='float32'):
  return frozen_base.load_base(
    config.Base(path=str(path), dtype=dtype),
    partitioning.make_mesh((-1, 1, 1)),
  )


@pytest.fixture(scope='module')
def tables():
  """Tables of four and two rows, and keys and values of two tokens."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  kv = {'keys': draw(3, 2, 2, 16), 'values': draw(3, 2, 2, 16)}
  return [
    TrainedTokens('four', draw(4, 64), None),
    TrainedTokens('two', draw(2, 64), None),
    TrainedTokens('kv', kv, None, KeysValues()),
  ]


def with_one_bit_flipped(base, name):
  """The base with the lowest bit of one value of a weight turned over."""

  def flip(path, leaf):
    if '.'.join(str(part.key) for part in path if hasattr(part, 'key')) != name:
      return leaf
    bits = np.asarray(leaf).view(f'uint{8 * leaf.dtype.itemsize}').copy()
    bits.flat[bits.size // 2] ^= 1
    return jnp.asarray(bits.view(leaf.dtype))

  pure = nnx.to_pure_dict(base.params)
  flipped = jax.tree_util.tree_map_with_path(flip, pure)
  params = jax.tree.unflatten(
    jax.tree.structure(base.params), jax.tree.leaves(flipped)
  )
  return frozen_base.FrozenBase(
    base.path,
    base.config,
    base.graph,
    params,
    base.tokenizer,
    base.fingerprint,
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_untouched(tiny_dir, tables, dtype):
  base = load(tiny_dir, dtype)
  loaded = untouched.observe(base)
  proof = untouched.prove(
    lambda: load(tiny_dir, dtype), base, tables, loaded=loaded
  )
  assert proof['untouched'] is True
  assert proof['weights']['sha256_of'] == loaded.weights
  leaves = jax.tree.leaves(base.params)
  assert proof['weights']['tensors'] == len(leaves)
  assert proof['weights']['parameters'] == sum(leaf.size for leaf in leaves)
  assert [(use['table'], use['num_active']) for use in proof['uses']] == [
    *((0, 1), (0, 2), (0, 4)),
    *((1, 1), (1, 2)),
    *((2, 1), (2, 2)),
  ]
  assert len(set(proof['logits']['sha256_of'])) == len(untouched.PROBE)


def test_hashes_are_of_name_dtype_shape_and_bytes(tiny_dir, monkeypatch):
  base = load(tiny_dir)
  whole = untouched.hash_weights(base)
  assert len(set(whole.values())) == len(whole)
  # In blocks of three rows, of which the last one is smaller.
  monkeypatch.setattr(untouched, 'BLOCK_BYTES', 3 * 64 * 4)
  assert untouched.hash_weights(base) == whole
  bfloat16 = untouched.hash_weights(load(tiny_dir, 'bfloat16'))
  assert all(whole[name] != bfloat16[name] for name in whole)


@pytest.mark.parametrize('name', ['embedding', 'layers.mlp.up', 'norm.scale'])
def test_one_bit_of_one_weight_is_found(tiny_dir, tables, name):
  base = load(tiny_dir)
  other = with_one_bit_flipped(base, name)
  with pytest.raises(errors.UserError) as e:
    untouched.prove(lambda: other, base, tables)
  message = str(e.value)
  assert message.startswith('untouched: 1 of ')
  assert f'\n  {name}: SHA-256 ' in message
  assert 'after the tables were used, and loaded afresh' in message


def test_change_before_the_proof_is_found(tiny_dir, tables):
  base = load(tiny_dir)
  loaded = untouched.observe(with_one_bit_flipped(base, 'layers.attention.k'))
  with pytest.raises(errors.UserError, match=r'\n  layers\.attention\.k: SHA'):
    untouched.prove(lambda: load(tiny_dir), base, tables, loaded=loaded)


def test_change_by_use_is_found(tiny_dir, tables, monkeypatch):
  """Generation that writes into the weights that it is given."""
  base = load(tiny_dir)
  original = generate.generate

  def writes(params, table, *args, **kwargs):
    out = original(params, table, *args, **kwargs)
    bad = with_one_bit_flipped(base, 'embedding')
    nnx.update(params, bad.params)
    return out

  monkeypatch.setattr(generate, 'generate', writes)
  with pytest.raises(errors.UserError, match=r'\n  embedding: SHA') as e:
    untouched.prove(lambda: load(tiny_dir), base, tables)
  assert 'before the tables were used, and after' in str(e.value)


@pytest.mark.parametrize(
  ('leak', 'message'),
  [
    # Not times 0: that is folded away, NaN or not.
    (lambda table: jnp.minimum(table[0], 0.0) * 1e-20, 'not finite'),
    (lambda table: jnp.nan_to_num(table[0]) * 1e-3, 'depend on the table'),
  ],
)
def test_leak_of_the_table_is_found(
  tiny_dir, tables, monkeypatch, leak, message
):
  original = virtual_tokens.TABLE.embed

  def leaks(self, decoder, table, ids):
    return original(decoder, table, ids) + leak(table)

  # What was compiled before knows nothing of the leak.
  jax.clear_caches()
  monkeypatch.setattr(virtual_tokens.InputEmbeddings, 'embed', leaks)
  base = load(tiny_dir)
  with pytest.raises(errors.UserError, match=message):
    untouched.prove(lambda: base, base, tables[:2])
  jax.clear_caches()


def test_other_logits_of_the_same_weights_are_found(tiny_dir):
  found = untouched.observe(load(tiny_dir))
  other = untouched.Observation(found.weights, ('0' * 64, *found.logits[1:]))
  with pytest.raises(errors.UserError, match='its logits are not') as e:
    untouched.compare('a', found, 'b', other)
  assert repr(untouched.PROBE[0][:40]) in str(e.value)


def test_release_frees_the_weights(tiny_dir, tables):
  base = load(tiny_dir)
  leaves = jax.tree.leaves(base.params)

  def fresh():
    assert all(leaf.is_deleted() for leaf in leaves)
    return load(tiny_dir)

  proof = untouched.prove(fresh, base, tables[:1], release=True)
  assert proof['untouched'] is True


# Two processes of two devices each: no process holds a weight whole.
PROCESS = """
import json, sys
import jax
port, number, path, out = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(number))
import numpy as np
from vtokens import config
from vtokens.devices import partitioning
from lm_eval.api.instance import Instance
from vtokens.evaluation import untouched
from vtokens.evaluation.harness.decoder_lm import DecoderLM
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.models import frozen_base as base_lib
mesh = partitioning.make_mesh((1, 2, 2))
load = lambda: base_lib.load_base(
  config.Base(path=path, dtype='float32'), mesh
)
base = load()
assert not all(x.is_fully_addressable for x in jax.tree.leaves(base.params))
ones = TrainedTokens('ones', np.ones((2, 64), np.float32), None)
proof = untouched.prove(load, base, [ones])
asked = [
  Instance('loglikelihood', {}, ('x' * n, option), 0)
  for n in (3, 9, 5) for option in ('one', 'no')
]
scores = DecoderLM(base, mesh, batch_size=2).loglikelihood(asked)
with open(out, 'w') as file:
  json.dump([proof['weights'], scores], file)
"""


@pytest.mark.exhaustive
def test_two_processes(tiny_dir, tmp_path):
  import json
  import socket

  from lm_eval.api.instance import Instance

  from vtokens.evaluation.harness.decoder_lm import DecoderLM

  with socket.socket() as found:
    found.bind(('localhost', 0))
    port = found.getsockname()[1]
  outs = [tmp_path / f'{i}.json' for i in range(2)]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(port), str(i), tiny_dir, out],
      env={
        **os.environ,
        'XLA_FLAGS': xla_flags.devices(2),
        'JAX_PLATFORMS': 'cpu',
      },
    )
    for i, out in enumerate(outs)
  ]
  assert [process.wait(timeout=300) for process in processes] == [0, 0]
  base = load(tiny_dir)
  asked = [
    Instance('loglikelihood', {}, ('x' * n, option), 0)
    for n in (3, 9, 5)
    for option in ('one', 'no')
  ]
  mesh = partitioning.make_mesh((-1, 1, 1))
  expected = DecoderLM(base, mesh, batch_size=2).loglikelihood(asked)
  for out in outs:
    weights, scores = json.loads(out.read_text())
    assert weights['sha256_of'] == untouched.hash_weights(base)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
