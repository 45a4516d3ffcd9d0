"""A trainable from outside of the package, against PyTorch's gradients."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch
import transformers

from vtokens import config
from vtokens.data import batch as batch_lib
from vtokens.devices import partitioning
from vtokens.method import generate, optim, steps
from vtokens.method.trainable import Trainable
from vtokens.models import frozen_base
from vtokens.models.kv_cache import KVCache
from vtokens.run import checkpoints, training_state

N = 3
PREFIX, SUFFIX, TARGETS = [5, 17, 80, 33], [9, 41, 7, 60, 12], [60, 12, 3]


@dataclasses.dataclass(frozen=True)
class KeysValues(Trainable):
  """N keys and values a layer, which every token of the suffix sees."""

  def shapes(self, settings, base):
    shape = (base.num_layers, base.num_kv_heads)
    n = settings.num_virtual_tokens
    return {
      'keys': jax.ShapeDtypeStruct((*shape, base.head_dim, n), jnp.float32),
      'values': jax.ShapeDtypeStruct((*shape, n, base.head_dim), jnp.float32),
    }

  def axes(self):
    return {
      'keys': ('layers', 'kv_heads', 'head', 'vtoken'),
      'values': ('layers', 'kv_heads', 'vtoken', 'head'),
    }

  def check(self, settings, base):
    pass

  def init(self, settings, decoder, tokenizer, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      self.shapes(settings, decoder.config),
    )

  def embed(self, decoder, values, ids):
    return decoder.embed(ids)

  def caches(self, decoder, values, ids, positions, segments):
    rows = positions.shape[0]

    def repeat(x):
      return jnp.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:]))

    slots = jnp.zeros((rows, values['keys'].shape[-1]), jnp.int32)
    return [KVCache(repeat(values['keys']), repeat(values['values']), slots)]

  def save(self, path, values, metadata):
    safetensors.numpy.save_file(values, path)

  def load(self, path):
    return safetensors.numpy.load_file(path), {}


TRAINABLE = KeysValues()


@dataclasses.dataclass(frozen=True)
class ForOneSuffix(KeysValues):
  """Keys and values that one suffix of a row sees."""

  segment: int = 0

  def caches(self, decoder, values, ids, positions, segments):
    [cache] = super().caches(decoder, values, ids, positions, segments)
    if segments is None:
      return [cache]
    slots = jnp.full_like(cache.positions, self.segment)
    return [dataclasses.replace(cache, segments=slots)]


class Nothing(KeysValues):
  """The same values, which nothing sees."""

  def caches(self, decoder, values, ids, positions, segments):
    return []


@pytest.fixture(scope='module')
def base(tiny_dir) -> frozen_base.FrozenBase:
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'),
    partitioning.make_mesh((1, 1, -1)),
  )


@pytest.fixture(scope='module')
def cfg():
  return config.Config(
    virtual_tokens=config.VirtualTokens(num_virtual_tokens=N),
    optim=config.Optim(learning_rate=0.1),
  )


@pytest.fixture(scope='module')
def batch():
  def row(ids):
    return np.asarray([ids], np.int32)

  start = len(PREFIX)
  return batch_lib.Batch(
    prefix=row(PREFIX),
    prefix_positions=row(range(start)),
    suffix=row(SUFFIX),
    suffix_positions=row(range(start, start + len(SUFFIX))),
    targets=row(TARGETS),
    target_index=row([2, 3, 4]),
  )


def torch_loss(directory, keys, values):
  """Nats of the targets, with the keys and values in the model's own cache."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  start = len(PREFIX)
  with torch.no_grad():
    cache = model(torch.tensor([PREFIX]), use_cache=True).past_key_values
  for i in range(model.config.num_hidden_layers):
    cache.update(keys[i].transpose(-1, -2)[None], values[i][None], i)
  logits = model(
    torch.tensor([SUFFIX]),
    past_key_values=cache,
    position_ids=torch.arange(start, start + len(SUFFIX))[None],
  ).logits
  return torch.nn.functional.cross_entropy(
    logits[0, 2:], torch.tensor(TARGETS), reduction='mean'
  )


def test_a_step_follows_the_gradient_that_torch_has(base, cfg, batch, tiny_dir):
  optimizer = optax.sgd(1.0)
  mesh = partitioning.make_mesh((1, 1, -1))
  state = training_state.initial_state(cfg, mesh, base, optimizer, TRAINABLE)
  before = training_state.fetch_trained(state)
  step = steps.jit_train_step(
    base.graph, optimizer, state, config.Train(), TRAINABLE
  )
  state, metrics = step(state, base.params, batch)
  after = training_state.fetch_trained(state)

  keys, values = (
    torch.tensor(before[name], requires_grad=True)
    for name in ('keys', 'values')
  )
  loss = torch_loss(tiny_dir, keys, values)
  loss.backward()
  assert float(metrics['loss']) == pytest.approx(loss.item(), rel=1e-5)
  for name, leaf in (('keys', keys), ('values', values)):
    assert np.abs(leaf.grad.numpy()).max() > 1e-4
    np.testing.assert_allclose(
      before[name] - after[name], leaf.grad.numpy(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('segment', range(4))
def test_one_suffix_of_several_of_a_prefix_sees_it(base, cfg, segment):
  """Two prefixes to a row, each with two suffixes."""
  decoder = base.decoder()
  values = TRAINABLE.init(cfg.virtual_tokens, decoder, base.tokenizer, seed=0)
  prefixes = [PREFIX, [70, 2]]
  suffixes = [[9, 41, 7], [8, 30, 50, 6], [11, 44, 5], [90, 3, 21, 66]]

  def row(ids):
    return np.asarray([ids], np.int32)

  def nll(batch, trainable):
    cache = steps.encode_prefix(
      decoder, batch.prefix, batch.prefix_positions, batch.prefix_segments
    )
    return float(
      steps.suffix_nll(values, decoder, cache, batch, trainable=trainable)[0]
    )

  expected = 0.0
  for i, suffix in enumerate(suffixes):
    prefix = prefixes[i // 2]
    alone = batch_lib.Batch(
      prefix=row(prefix),
      prefix_positions=row(range(len(prefix))),
      suffix=row(suffix),
      suffix_positions=row(range(len(prefix), len(prefix) + len(suffix))),
      targets=row([i + 1]),
      target_index=row([len(suffix) - 1]),
    )
    expected += nll(alone, TRAINABLE if i == segment else Nothing())
  ends = np.cumsum([len(suffix) for suffix in suffixes])
  together = batch_lib.make(
    packed=True,
    draws=2,
    prefix=row([*prefixes[0], *prefixes[1]]),
    prefix_positions=row([*range(len(PREFIX)), 0, 1]),
    prefix_segments=row([0] * len(PREFIX) + [1, 1]),
    suffix=row([i for suffix in suffixes for i in suffix]),
    suffix_positions=row(
      [
        len(prefixes[i // 2]) + t
        for i, suffix in enumerate(suffixes)
        for t in range(len(suffix))
      ]
    ),
    suffix_segments=row(np.repeat(range(4), [3, 4, 3, 4])),
    suffix_parents=row(np.repeat([0, 0, 1, 1], [3, 4, 3, 4])),
    targets=row([1, 2, 3, 4]),
    target_index=row(ends - 1),
  )
  found = nll(together, ForOneSuffix(segment))
  assert found == pytest.approx(expected, rel=1e-5)


def test_it_is_seen_while_generating(base, cfg):
  values = TRAINABLE.init(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, seed=0
  )

  def answer(values):
    cache = generate.encode_prefix(
      base.params,
      np.asarray([PREFIX], np.int32),
      np.arange(len(PREFIX), dtype=np.int32)[None],
      graph=base.graph,
    )
    none = np.zeros(base.config.vocab_size, bool)
    start = len(PREFIX)
    return generate.generate(
      base.params,
      values,
      cache,
      generate.Suffixes(
        ids=np.asarray([SUFFIX], np.int32),
        positions=np.arange(start, start + len(SUFFIX), dtype=np.int32)[None],
        segments=None,
        last=np.asarray([[len(SUFFIX) - 1]], np.int32),
      ),
      generate.Endings(np.int32(0), none, none, none),
      graph=base.graph,
      max_new_tokens=4,
      trainable=TRAINABLE,
    ).ids.tolist()[0][0]

  ids = list(SUFFIX)
  decoder = nnx.merge(base.graph, base.params)
  # Whole sequences, one more token at a time.
  for _ in range(4):
    cache = steps.encode_prefix(
      decoder,
      jnp.asarray([PREFIX]),
      jnp.arange(len(PREFIX))[None],
    )
    positions = len(PREFIX) + jnp.arange(len(ids))[None]
    hidden, _ = decoder(
      decoder.embed(jnp.asarray([ids])),
      positions,
      [cache, *TRAINABLE.caches(decoder, values, None, positions, None)],
    )
    ids.append(int(decoder.logits(hidden)[0, -1].argmax()))
  assert answer(values) == ids[len(SUFFIX) :]
  other = jax.tree.map(lambda x: -3 * x, values)
  assert answer(other) != answer(values)


def test_it_is_saved_and_restored(base, cfg, batch, tmp_path):
  optimizer = optim.make_optimizer(cfg.optim, 200)
  mesh = partitioning.make_mesh((1, 1, -1))
  state = training_state.initial_state(cfg, mesh, base, optimizer, TRAINABLE)
  step = steps.jit_train_step(
    base.graph, optimizer, state, config.Train(), TRAINABLE
  )
  state, _ = step(state, base.params, batch)
  saved = checkpoints.Checkpoints(tmp_path / 'run', 2)
  saved.save(state, {'step': 1})
  saved.close()
  restored, _ = checkpoints.Checkpoints(tmp_path / 'run', 2).restore(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)

  values = training_state.fetch_trained(restored)
  TRAINABLE.save(tmp_path / 'kv.safetensors', values, {})
  loaded, _ = TRAINABLE.load(tmp_path / 'kv.safetensors')
  jax.tree.map(np.testing.assert_array_equal, loaded, values)
