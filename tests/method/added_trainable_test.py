"""A trainable from outside of the package, against PyTorch's gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from vtokens import config
from vtokens.data import batch as batch_lib
from vtokens.devices import partitioning
from vtokens.method import generate, steps
from vtokens.method.trainable import Trainable
from vtokens.method.virtual_tokens import TABLE
from vtokens.run import training_state

N = 3
PREFIX, AFTER, TARGETS = [5, 17, 80, 33], [9, 41, 7], [60, 12, 3]


@dataclasses.dataclass(frozen=True)
class LowRank(Trainable):
  """A table that is a product of two matrices."""

  rank: int = 2

  def shapes(self, settings, base):
    rows = settings.num_virtual_tokens
    return {
      'left': jax.ShapeDtypeStruct((rows, self.rank), jnp.float32),
      'right': jax.ShapeDtypeStruct((self.rank, base.embed_dim), jnp.float32),
    }

  def axes(self):
    return {'left': ('vtoken', 'rank'), 'right': ('rank', 'vtoken_embed')}

  def check(self, settings, base):
    pass

  def init(self, settings, decoder, tokenizer, seed, mixture=None):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      self.shapes(settings, decoder.config),
    )

  def embed(self, decoder, values, ids):
    return TABLE.embed(decoder, values['left'] @ values['right'], ids)

  def count(self, values):
    return len(values['left'])

  def first(self, values, k):
    return {**values, 'left': values['left'][:k]}


TRAINABLE = LowRank()


@pytest.fixture(scope='module')
def cfg():
  return config.Config(
    virtual_tokens=config.VirtualTokens(num_virtual_tokens=N)
  )


def row(ids):
  return np.asarray([ids], np.int32)


def suffix(base):
  virtual = range(base.config.vocab_size, base.config.vocab_size + N)
  return [*virtual, *AFTER]


def test_a_step_follows_the_gradient_that_torch_has(base, cfg, tiny_dir):
  optimizer = optax.sgd(1.0)
  mesh = partitioning.make_mesh((1, 1, -1))
  state = training_state.initial_state(cfg, mesh, base, optimizer, TRAINABLE)
  before = training_state.fetch_trained(state)
  step = steps.jit_train_step(
    base.graph, optimizer, state, config.Train(), TRAINABLE
  )
  inputs, start = [*suffix(base), *TARGETS[:-1]], len(PREFIX)
  batch = batch_lib.Batch(
    prefix=row(PREFIX),
    prefix_positions=row(range(start)),
    suffix=row(inputs),
    suffix_positions=row(range(start, start + len(inputs))),
    targets=row(TARGETS),
    target_index=row(range(len(inputs) - len(TARGETS), len(inputs))),
  )
  state, metrics = step(state, base.params, batch)
  after = training_state.fetch_trained(state)

  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  )
  leaves = {
    name: torch.tensor(x, requires_grad=True) for name, x in before.items()
  }
  embed = model.get_input_embeddings()
  whole = torch.cat(
    [
      embed(torch.tensor(PREFIX)),
      leaves['left'] @ leaves['right'],
      embed(torch.tensor([*AFTER, *TARGETS[:-1]])),
    ]
  )
  logits = model(inputs_embeds=whole[None]).logits[0, -len(TARGETS) :]
  loss = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS))
  loss.backward()
  assert float(metrics['loss']) == pytest.approx(loss.item(), rel=1e-5)
  for name, leaf in leaves.items():
    assert np.abs(leaf.grad.numpy()).max() > 1e-4
    np.testing.assert_allclose(
      before[name] - after[name], leaf.grad.numpy(), rtol=1e-4, atol=1e-6
    )


def test_it_is_seen_while_generating(base, cfg):
  """As the table that it stands for."""
  values = TRAINABLE.init(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, seed=0
  )
  start, ids = len(PREFIX), suffix(base)

  def answer(values, trainable):
    none = np.zeros(base.config.vocab_size, bool)
    return generate.generate(
      base.params,
      values,
      generate.encode_prefix(
        base.params, row(PREFIX), row(range(start)), graph=base.graph
      ),
      generate.Suffixes(
        ids=row(ids),
        positions=row(range(start, start + len(ids))),
        segments=None,
        last=row([len(ids) - 1]),
      ),
      generate.Endings(np.int32(0), none, none, none),
      graph=base.graph,
      max_new_tokens=4,
      trainable=trainable,
    ).ids.tolist()[0][0]

  table = values['left'] @ values['right']
  assert answer(values, TRAINABLE) == answer(table, TABLE)
  assert answer(-3 * table, TABLE) != answer(table, TABLE)
