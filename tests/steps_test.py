"""The split step against the whole sequence in one differentiated pass."""

import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vtokens import losses, steps, virtual_tokens
from vtokens.models.config import DecoderConfig
from vtokens.models.decoder import Decoder, abstract_decoder

P = 6  # rows of the table
CONFIG = DecoderConfig(
  vocab_size=50,
  embed_dim=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=48,
)


@pytest.fixture(scope='module')
def decoder() -> Decoder:
  graph, params = nnx.split(Decoder(CONFIG, jnp.float32, nnx.Rngs(0)))
  rng = np.random.default_rng(0)
  # At the default 0.02 attention is all but uniform.
  params = jax.tree.map(
    lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params
  )
  return nnx.merge(graph, params)


@pytest.fixture
def table() -> jax.Array:
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.normal(size=(P, CONFIG.embed_dim)), jnp.float32)


def make_batch(
  rows: list[tuple[int, int, int, int]],
  prefix_size: int = 20,
  suffix_size: int = 16,
  targets_size: int = 5,
  seed: int = 0,
) -> steps.Batch:
  """A batch of rows (prefix, k, prompt, answer with eos), in tokens."""
  rng = np.random.default_rng(seed)
  count = len(rows)
  # Padding is filled with real ids: only the lengths may keep them out.
  prefix = rng.integers(0, CONFIG.vocab_size, (count, prefix_size))
  suffix = rng.integers(0, CONFIG.vocab_size + P, (count, suffix_size))
  targets = rng.integers(0, CONFIG.vocab_size, (count, targets_size))
  for i, (_, k, prompt, answer) in enumerate(rows):
    ordinary = rng.integers(0, CONFIG.vocab_size, prompt)
    ids = [*(CONFIG.vocab_size + np.arange(k)), *ordinary]
    ids += list(targets[i, : max(0, answer - 1)])
    suffix[i, : len(ids)] = ids

  def column(values):
    return np.asarray(values, np.int32)

  return steps.Batch(
    prefix=column(prefix),
    prefix_len=column([p for p, *_ in rows]),
    suffix=column(suffix),
    suffix_len=column([k + q + max(0, a - 1) for _, k, q, a in rows]),
    answer_start=column([max(0, k + q - 1) for _, k, q, _ in rows]),
    targets=column(targets),
    target_len=column([a for *_, a in rows]),
  )


RAGGED = [(20, 6, 5, 5), (3, 1, 2, 1), (0, 2, 4, 3), (11, 4, 3, 2)]


def unsplit_nll(table, decoder, batch, remat=False):
  """All tokens of each row contiguous, in one pass, no stop_gradient."""
  whole = batch.prefix.shape[1] + batch.suffix.shape[1]
  index = jnp.arange(whole)
  in_prefix = index < batch.prefix_len[:, None]
  from_suffix = jnp.clip(
    index - batch.prefix_len[:, None], 0, batch.suffix.shape[1] - 1
  )
  ids = jnp.where(
    in_prefix,
    jnp.pad(batch.prefix, [(0, 0), (0, batch.suffix.shape[1])]),
    jnp.take_along_axis(batch.suffix, from_suffix, axis=1),
  )
  positions = jnp.broadcast_to(index, ids.shape)
  x = virtual_tokens.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions, remat=remat)
  answers = jnp.arange(batch.targets.shape[1])
  where = (batch.prefix_len + batch.answer_start)[:, None] + answers
  logits = decoder.logits(hidden)
  picked = jnp.take_along_axis(
    logits, jnp.clip(where, 0, whole - 1)[..., None], axis=1
  )
  return losses.masked_nll(
    picked, batch.targets, answers < batch.target_len[:, None]
  )


def split_nll(table, decoder, batch, remat=False):
  cache = steps.encode_prefix(decoder, batch.prefix, batch.prefix_len)
  return steps.suffix_nll(table, decoder, cache, batch, remat=remat)


@functools.partial(jax.jit, static_argnames=('fn', 'graph', 'remat'))
def run(table, base, batch, *, fn, graph, remat):
  def loss(table):
    return fn(table, nnx.merge(graph, base), batch, remat=remat)

  return jax.value_and_grad(loss, has_aux=True)(table)


def value_and_grad(fn, table, decoder, batch, remat=False):
  graph, base = nnx.split(decoder)
  (nll, count), grad = run(table, base, batch, fn=fn, graph=graph, remat=remat)
  return float(nll), float(count), np.asarray(grad)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize(
  'rows', [RAGGED, RAGGED[:1], [(0, 6, 1, 1)], [(20, 1, 9, 5)] * 3]
)
def test_split_equals_unsplit(decoder, table, rows, remat):
  batch = make_batch(rows)
  nll, count, grad = value_and_grad(
    split_nll, table, decoder, batch, remat=remat
  )
  expected, expected_count, expected_grad = value_and_grad(
    unsplit_nll, table, decoder, batch
  )
  assert count == expected_count == sum(a for *_, a in rows)
  np.testing.assert_allclose(nll, expected, rtol=1e-5)
  scale = np.abs(expected_grad).max()
  assert scale > 1e-3
  np.testing.assert_allclose(grad, expected_grad, atol=1e-5 * scale)


def test_gradient_is_the_slope_of_the_loss(decoder, table):
  batch = make_batch(RAGGED)
  _, _, grad = value_and_grad(split_nll, table, decoder, batch)
  # Along the gradient the slope is largest, and rounding matters least.
  direction = grad / np.linalg.norm(grad)
  step = 3e-3
  ahead = value_and_grad(split_nll, table + step * direction, decoder, batch)
  behind = value_and_grad(split_nll, table - step * direction, decoder, batch)
  slope = (ahead[0] - behind[0]) / (2 * step)
  np.testing.assert_allclose(np.linalg.norm(grad), slope, rtol=1e-2)


def test_rows_that_an_example_does_not_use_get_exactly_zero(decoder, table):
  for k in range(1, P + 1):
    batch = make_batch([(9, k, 4, 3), (5, k, 3, 2)])
    _, _, grad = value_and_grad(split_nll, table, decoder, batch)
    assert (grad[k:] == 0).all()
    assert (np.abs(grad[:k]).max(axis=1) > 0).all()


def test_padding_rows_change_nothing(decoder, table):
  padded = make_batch([*RAGGED, (0, 0, 0, 0), (0, 0, 0, 0)])
  real = jax.tree.map(lambda x: x[: len(RAGGED)], padded)
  nll, count, grad = value_and_grad(split_nll, table, decoder, padded)
  expected = value_and_grad(split_nll, table, decoder, real)
  assert count == expected[1]
  np.testing.assert_allclose(nll, expected[0], rtol=1e-6)
  np.testing.assert_allclose(grad, expected[2], rtol=1e-5, atol=1e-7)


def test_nothing_flows_to_the_base(decoder, table):
  graph, base = nnx.split(decoder)
  step = steps.make_train_step(graph, optax.sgd(1.0))
  batch = make_batch(RAGGED)
  state = steps.TrainState(
    table, optax.sgd(1.0).init(table), jnp.zeros((), jnp.int32)
  )

  def loss_of_base(base):
    return step(state, base, batch)[1]['loss']

  slopes = jax.jit(jax.grad(loss_of_base))(base)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize('accumulation_steps', [2, 4])
def test_accumulation_equals_the_whole_batch(
  decoder, table, accumulation_steps
):
  graph, base = nnx.split(decoder)
  optimizer = optax.sgd(0.1)
  batch = make_batch(RAGGED)
  state = steps.TrainState(
    table, optimizer.init(table), jnp.zeros((), jnp.int32)
  )
  whole, whole_metrics = jax.jit(steps.make_train_step(graph, optimizer))(
    state, base, batch
  )
  parts, parts_metrics = jax.jit(
    steps.make_train_step(
      graph, optimizer, accumulation_steps=accumulation_steps
    )
  )(state, base, batch)
  np.testing.assert_allclose(parts.table, whole.table, rtol=1e-5, atol=1e-6)
  for key, value in whole_metrics.items():
    np.testing.assert_allclose(parts_metrics[key], value, rtol=1e-5)


def test_costs_less_than_unsplit():
  """At P = 600, S = 110: at most half the memory and 0.62 of the FLOPs.

  Shapes of a small model with the proportions of a real one; nothing runs.
  """
  config = DecoderConfig(
    vocab_size=1024,
    embed_dim=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=768,
  )
  graph, base = nnx.split(abstract_decoder(config, jnp.float32))
  prefix, suffix, answer, rows = 600, 110, 16, 2

  def ids(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)

  batch = steps.Batch(
    prefix=ids(rows, prefix),
    prefix_len=ids(rows),
    suffix=ids(rows, suffix),
    suffix_len=ids(rows),
    answer_start=ids(rows),
    targets=ids(rows, answer),
    target_len=ids(rows),
  )
  table = jax.ShapeDtypeStruct((50, config.embed_dim), jnp.float32)

  def compiled(nll):
    def loss(table, base, batch):
      return nll(table, nnx.merge(graph, base), batch)[0]

    return jax.jit(jax.value_and_grad(loss)).lower(table, base, batch).compile()

  split, unsplit = compiled(split_nll), compiled(unsplit_nll_gathered)
  memory = [c.memory_analysis().temp_size_in_bytes for c in (split, unsplit)]
  flops = [c.cost_analysis()['flops'] for c in (split, unsplit)]
  assert memory[0] <= 0.5 * memory[1], memory
  assert flops[0] <= 0.62 * flops[1], flops


def unsplit_nll_gathered(table, decoder, batch):
  """As `unsplit_nll`, but as lean: the head only at answer positions."""
  ids = jnp.concatenate([batch.prefix, batch.suffix], axis=1)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  x = virtual_tokens.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions)
  answers = jnp.arange(batch.targets.shape[1])
  where = batch.prefix.shape[1] + batch.answer_start[:, None] + answers
  picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
  return losses.masked_nll(
    decoder.logits(picked),
    batch.targets,
    answers < batch.target_len[:, None],
  )
