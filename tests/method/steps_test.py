"""The split step against the whole sequence in one differentiated pass."""

import dataclasses
import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quantised
import torch
import transformers

from vtokens import config
from vtokens.data import assemble, pipeline
from vtokens.data import batch as batch_lib
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage
from vtokens.devices import partitioning
from vtokens.method import losses, steps, virtual_tokens
from vtokens.models import frozen_base, layers
from vtokens.models.abstract import abstract_decoder
from vtokens.models.altup import AltUp
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import (
  DecoderConfig,
  LayerKind,
  Rope,
  Without,
)
from vtokens.models.mixers.delta_net import DeltaNet
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.models.mixers.mamba2 import Mamba2
from vtokens.models.mixers.parallel_mixer import ParallelMixer
from vtokens.models.mixers.shared_heads import Heads
from vtokens.models.mixers.short_conv import ShortConv
from vtokens.models.mlps.dense_and_experts import DenseAndExperts
from vtokens.models.mlps.experts import Experts
from vtokens.models.mlps.routing import Routing

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


def random_decoder(config: DecoderConfig) -> Decoder:
  graph, params = nnx.split(Decoder(config, jnp.float32, nnx.Rngs(0)))
  rng = np.random.default_rng(0)
  # At the default 0.02 attention is all but uniform.
  params = jax.tree.map(
    lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params
  )
  return nnx.merge(graph, params)


@pytest.fixture(scope='module')
def decoder() -> Decoder:
  return random_decoder(CONFIG)


@pytest.fixture
def table() -> jax.Array:
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.normal(size=(P, CONFIG.embed_dim)), jnp.float32)


@dataclasses.dataclass
class Example:
  """Ids of one example: prefix, suffix up to the last input, targets."""

  prefix: list[int]
  suffix: list[int]
  targets: list[int]


def make_examples(
  rows: list[tuple[int, int, int, int]], seed: int = 0
) -> list[Example]:
  """Random examples of (prefix, k, prompt, answer with eos) tokens."""
  rng = np.random.default_rng(seed)

  def ordinary(size):
    return rng.integers(0, CONFIG.vocab_size, size).tolist()

  examples = []
  for prefix, k, prompt, answer in rows:
    targets = ordinary(answer)
    virtual = range(CONFIG.vocab_size, CONFIG.vocab_size + k)
    suffix = [*virtual, *ordinary(prompt), *targets[:-1]]
    examples.append(Example(ordinary(prefix), suffix, targets))
  return examples


def make_batch(
  rows: list[tuple[int, int, int, int]],
  prefix_size: int = 20,
  suffix_size: int = 16,
  targets_size: int = 5,
  per_row: int = 1,
  seed: int = 0,
) -> batch_lib.Batch:
  """The examples, `per_row` to a row; (0, 0, 0, 0) is none."""
  examples = make_examples(rows, seed)
  count = len(rows) // per_row
  rng = np.random.default_rng(seed + 1)
  sizes = {'prefix': prefix_size, 'suffix': suffix_size}

  def column(size, fill):
    return np.full((count, per_row * size), fill, np.int32)

  # Padding is filled with real ids and segments: only the positions may keep
  # them out.
  batch = {
    name: rng.integers(0, CONFIG.vocab_size, (count, per_row * size))
    for name, size in sizes.items()
  } | {f'{name}_positions': column(size, -1) for name, size in sizes.items()}
  segments = {
    f'{name}_segments': column(size, 0) for name, size in sizes.items()
  }
  targets = rng.integers(0, CONFIG.vocab_size, (count, per_row * targets_size))
  target_index = column(targets_size, -1)
  for row in range(count):
    at = dict.fromkeys(sizes, 0)
    t = 0
    for number in range(per_row):
      e = examples[row * per_row + number]
      start = 0
      for name, ids in (('prefix', e.prefix), ('suffix', e.suffix)):
        where = np.s_[row, at[name] : at[name] + len(ids)]
        batch[name][where] = ids
        batch[f'{name}_positions'][where] = start + np.arange(len(ids))
        segments[f'{name}_segments'][where] = number
        start += len(ids)
        at[name] += len(ids)
      stop = t + len(e.targets)
      targets[row, t:stop] = e.targets
      target_index[row, t:stop] = (
        at['suffix'] - len(e.targets) + np.arange(stop - t)
      )
      t = stop
  if per_row == 1:
    segments = dict.fromkeys(segments)
  return batch_lib.Batch(
    **{name: np.asarray(ids, np.int32) for name, ids in batch.items()},
    **segments,
    suffix_parents=None,
    targets=np.asarray(targets, np.int32),
    target_index=target_index,
    num_prefixes=per_row,
    num_suffixes=per_row,
  )


RAGGED = [(20, 6, 5, 5), (3, 1, 2, 1), (0, 2, 4, 3), (11, 4, 3, 2)]


def unsplit_nll(table, decoder, batch, remat=False):
  """Tokens of each row contiguous, in one pass, no stop_gradient.

  For batches of one example to a row.
  """
  whole = batch.prefix.shape[1] + batch.suffix.shape[1]
  index = jnp.arange(whole)
  prefix_len = (batch.prefix_positions >= 0).sum(axis=1)[:, None]
  in_prefix = index < prefix_len
  from_suffix = jnp.clip(index - prefix_len, 0, batch.suffix.shape[1] - 1)
  ids = jnp.where(
    in_prefix,
    jnp.pad(batch.prefix, [(0, 0), (0, batch.suffix.shape[1])]),
    jnp.take_along_axis(batch.suffix, from_suffix, axis=1),
  )
  positions = jnp.broadcast_to(index, ids.shape)
  x = virtual_tokens.TABLE.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions, ids=ids, remat=remat)
  picked = jnp.take_along_axis(
    decoder.logits(hidden),
    jnp.clip(prefix_len + batch.target_index, 0, whole - 1)[..., None],
    axis=1,
  )
  return losses.masked_nll(picked, batch.targets, batch.target_index >= 0)


def split_nll(table, decoder, batch, remat=False):
  cache = steps.encode_prefix(
    decoder,
    batch.prefix,
    batch.prefix_positions,
    batch.prefix_segments,
    batch.num_prefixes,
  )
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


PACKED = [(20, 6, 5, 5), (3, 1, 2, 1), (0, 2, 4, 3), (11, 4, 3, 2)] * 2


@pytest.mark.parametrize('per_row', [2, 4])
@pytest.mark.parametrize('window', [None, 7])
def test_packed_equals_one_example_to_a_row(table, per_row, window):
  """Examples that share a row do not see one another."""
  config = dataclasses.replace(
    CONFIG, layer_pattern=(LayerKind(window=window), LayerKind(rope=None))
  )
  decoder = random_decoder(config)
  expected = value_and_grad(split_nll, table, decoder, make_batch(PACKED))
  packed = make_batch(PACKED, per_row=per_row)
  assert packed.prefix.shape[0] == len(PACKED) // per_row
  nll, count, grad = value_and_grad(split_nll, table, decoder, packed)
  assert count == expected[1] == sum(a for *_, a in PACKED)
  np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
  scale = np.abs(expected[2]).max()
  np.testing.assert_allclose(grad, expected[2], atol=1e-5 * scale)
  # Without the segments they would.
  mixed = dataclasses.replace(
    packed, prefix_segments=None, suffix_segments=None
  )
  wrong, *_ = value_and_grad(split_nll, table, decoder, mixed)
  assert abs(wrong - nll) > 1e-3 * abs(nll)


def test_gemma4_split_and_packed(table):
  """Two widths, experts, inputs of each layer; two layers read others' keys."""
  experts = DenseAndExperts(Experts(Routing(6, 2, factors=True), 24))
  narrow = LayerKind(window=7, mixer=Heads(8, 2), mlp=experts)
  wide = LayerKind(
    Rope(1e6, 'proportional', share=0.25),
    mixer=Heads(12, 1, values_are_keys=True),
  )
  config = dataclasses.replace(
    CONFIG,
    num_layers=4,
    qk_norm='head',
    post_norm=True,
    attention_scale=1.0,
    layer_scale=True,
    per_layer_dim=4,
    layer_pattern=(
      narrow,
      wide,
      dataclasses.replace(narrow, mixer=Heads(8, 2, source=0)),
      dataclasses.replace(wide, mixer=Heads(12, 1, source=1)),
    ),
  )
  _check_split_and_packed(random_decoder(config), table)


@pytest.mark.exhaustive
def test_gemma3n_split_and_packed(table):
  """Several streams, a sparse layer; two layers read others' keys."""
  narrow = LayerKind(window=7, mixer=Heads(8, 2), mlp=layers.Gated(40, 0.7))
  wide = LayerKind(mixer=Heads(8, 2), mlp=layers.Gated(40))
  config = dataclasses.replace(
    CONFIG,
    num_layers=4,
    qk_norm='head',
    post_norm=True,
    attention_scale=1.0,
    per_layer_dim=4,
    per_layer_rows=40,
    streams=AltUp(3, 0, True, 4),
    layer_pattern=(
      narrow,
      wide,
      dataclasses.replace(wide, window=7, mixer=Heads(8, 2, source=0)),
      dataclasses.replace(wide, mixer=Heads(8, 2, source=1)),
    ),
  )
  _check_split_and_packed(random_decoder(config), table)


def _check_split_and_packed(decoder, table, rows=PACKED[:4]):
  """Both have the loss and the gradient of the whole sequence."""
  batch = make_batch(rows)
  nll, count, expected = value_and_grad(unsplit_nll, table, decoder, batch)
  scale = np.abs(expected).max()
  assert scale > 1e-3
  for one in (batch, make_batch(rows, per_row=4)):
    found = value_and_grad(split_nll, table, decoder, one)
    assert found[1] == count
    np.testing.assert_allclose(found[0], nll, rtol=1e-5)
    np.testing.assert_allclose(found[2], expected, atol=1e-5 * scale)


def test_experts_split_and_packed(table):
  """One layer without experts before two with."""
  experts = Experts(Routing(6, 2, normalised=True), 24, shared=16)
  sparse = LayerKind(mlp=experts)
  config = dataclasses.replace(
    CONFIG, layer_pattern=(LayerKind(), sparse, sparse)
  )
  _check_split_and_packed(random_decoder(config), table, PACKED)


@pytest.mark.exhaustive
def test_sinks_split_and_packed(table):
  """Biased experts and windows in every second layer, as gpt-oss has them."""
  experts = Experts(Routing(6, 2, bias=True), 24, biases=True)
  config = dataclasses.replace(
    CONFIG,
    sinks=True,
    layer_pattern=(
      LayerKind(window=7, mlp=experts),
      LayerKind(mlp=experts),
      LayerKind(window=7, mlp=experts),
    ),
  )
  _check_split_and_packed(random_decoder(config), table, PACKED)


def latent(rank):
  """Wide latents are expanded to keys and values, narrow ones are not."""
  return dataclasses.replace(
    CONFIG,
    num_kv_heads=1,
    head_dim=10,
    rotary_dim=4,
    attention=LatentAttention(rank, plain=6, rotated=4, value=5, query_rank=7),
  )


@pytest.mark.parametrize(('rank', 'absorbed'), [(24, False), (5, True)])
def test_latent_attention_split_and_packed(table, rank, absorbed):
  config = latent(rank)
  packed = make_batch(PACKED, per_row=4)
  lengths = packed.suffix.shape[1], packed.prefix.shape[1]
  assert config.attention.is_absorbed(*lengths) == absorbed
  decoder = random_decoder(config)
  batch = make_batch(PACKED)
  nll, count, expected = value_and_grad(unsplit_nll, table, decoder, batch)
  scale = np.abs(expected).max()
  assert scale > 1e-3
  for one, remat in ((batch, True), (packed, False)):
    found = value_and_grad(split_nll, table, decoder, one, remat=remat)
    assert found[1] == count
    np.testing.assert_allclose(found[0], nll, rtol=1e-5)
    np.testing.assert_allclose(found[2], expected, atol=1e-5 * scale)


def test_suffixes_that_continue_one_prefix_of_latents(table):
  decoder = random_decoder(latent(5))
  shared, alone = share_prefixes(4)
  expected = value_and_grad(split_nll, table, decoder, alone)
  nll, count, grad = value_and_grad(split_nll, table, decoder, shared)
  assert count == expected[1] == 28
  np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
  scale = np.abs(expected[2]).max()
  np.testing.assert_allclose(grad, expected[2], atol=1e-5 * scale)


# Several suffixes of (k, prompt, answer) for each prefix.
SHARED = [
  (20, [(6, 5, 5), (1, 5, 5), (3, 5, 5)]),
  (3, [(2, 2, 1), (5, 2, 1)]),
  (0, [(1, 4, 3), (6, 4, 3), (6, 4, 3)]),
  (11, [(4, 3, 2)]),
]


def share_prefixes(per_row: int) -> tuple[batch_lib.Batch, batch_lib.Batch]:
  """`SHARED` with each prefix once, and with a row for each suffix."""
  rng = np.random.default_rng(3)

  def ordinary(size):
    return rng.integers(0, CONFIG.vocab_size, size, dtype=np.int32)

  groups = []
  for prefix, suffixes in SHARED:
    shared = ordinary(prefix)
    groups.append(
      [
        assemble.Example(shared, ordinary(0), k, ordinary(p), ordinary(a))
        for k, p, a in suffixes
      ]
    )
  sizes = {'vocab_size': CONFIG.vocab_size, 'num_targets': 15 * per_row}
  shared = pipeline.collate(
    [groups[i : i + per_row] for i in range(0, len(groups), per_row)],
    shape=(20 * per_row, 50 * per_row),
    num_rows=len(groups) // per_row,
    per_row=per_row,
    draws=3,
    **sizes,
  )
  alone = [[[example]] for group in groups for example in group]
  return shared, pipeline.collate(
    alone, shape=(20, 16), num_rows=len(alone), **sizes
  )


@pytest.mark.parametrize(
  'per_row, window, remat',
  [(1, 7, False), (2, None, False), (4, None, True), (4, 7, False)],
)
def test_suffixes_that_share_a_prefix_equal_rows_of_their_own(
  table, per_row, window, remat
):
  config = dataclasses.replace(
    CONFIG, layer_pattern=(LayerKind(window=window), LayerKind(rope=None))
  )
  decoder = random_decoder(config)
  shared, alone = share_prefixes(per_row)
  expected = value_and_grad(split_nll, table, decoder, alone)
  nll, count, grad = value_and_grad(
    split_nll, table, decoder, shared, remat=remat
  )
  assert count == expected[1] == 28
  np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
  scale = np.abs(expected[2]).max()
  np.testing.assert_allclose(grad, expected[2], atol=1e-5 * scale)
  # Without knowing which prefix is theirs, or one another, they differ.
  names = ['suffix_parents'] if per_row > 1 else ['suffix_segments']
  mixed = dataclasses.replace(shared, **dict.fromkeys(names))
  wrong, *_ = value_and_grad(split_nll, table, decoder, mixed)
  assert abs(wrong - nll) > 1e-3 * abs(nll)


# With less `eps`, norms of small outputs enlarge rounding.
_NET = LayerKind(None, mixer=DeltaNet(2, 4, 8, 6, 4))
HYBRID = dataclasses.replace(
  CONFIG,
  layer_pattern=(_NET, LayerKind(), _NET),
  norm_eps=1e-2,
  output_gate=True,
  qk_norm='head',
)


# Mamba 2 beside attention, and layers of one part.
MAMBA = dataclasses.replace(
  CONFIG,
  norm_eps=1e-2,
  layer_pattern=(
    LayerKind(
      mixer=ParallelMixer(Mamba2(heads=4, width=6, size=5, groups=2, taps=3))
    ),
    LayerKind(None, mixer=Without()),
    LayerKind(None, mixer=ShortConv(3), mlp=Without()),
  ),
)


@pytest.mark.parametrize(
  'base, per_row, remat',
  [
    pytest.param(HYBRID, 1, True, marks=pytest.mark.exhaustive),
    pytest.param(HYBRID, 2, True, marks=pytest.mark.exhaustive),
    (HYBRID, 4, False),
    pytest.param(MAMBA, 1, True, marks=pytest.mark.exhaustive),
    (MAMBA, 4, False),
  ],
)
def test_suffixes_that_continue_one_state(table, base, per_row, remat):
  """In a row with other prefixes, against rows of their own in one pass."""
  decoder = random_decoder(base)
  shared, alone = share_prefixes(per_row)
  expected = value_and_grad(unsplit_nll, table, decoder, alone)
  nll, count, grad = value_and_grad(
    split_nll, table, decoder, shared, remat=remat
  )
  assert count == expected[1] == 28
  np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
  scale = np.abs(expected[2]).max()
  assert scale > 1e-3
  np.testing.assert_allclose(grad, expected[2], atol=1e-5 * scale)
  if per_row > 1:
    unknown = dataclasses.replace(shared, num_suffixes=None)
    with pytest.raises(ValueError, match='number of segments'):
      value_and_grad(split_nll, table, decoder, unknown)


# Number of passages, k, answer; of some examples too many passages.
ASKED = [(2, 4, 'yes'), (0, 1, 'n'), (1, 3, 'maybe so'), (3, 2, 'no')]


@pytest.mark.parametrize('per_row', [1, 2, 4])
@pytest.mark.parametrize('chat', [False, True])
@pytest.mark.parametrize('position', config.POSITIONS)
def test_each_position_against_torch(base, tiny_dir, position, chat, per_row):
  """Each example by itself, as a whole, differentiated by torch in f64."""
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir)
  _check_against_torch(base, model, position, chat, per_row)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('method', ['int8', 'int4'])
def test_quantised_bases_against_torch(tiny_dir, method, remat):
  """With the weights that numpy quantises and dequantises."""
  base = frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32', quantize=method),
    partitioning.make_mesh((1, 1, -1)),
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir)
  quantised.quantise_model(model, method)
  _check_against_torch(base, model, 'middle', False, 2, remat)


@pytest.mark.parametrize('remat', [False, True])
def test_bfloat16_products_against_torch(tiny_dir, remat):
  """As near to the exact step as torch with the same rounding, within 2x.

  They are not equal: where sums differ by 1e-7, a factor may be rounded the
  other way, and all later ones with it.
  """
  base = frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32', quantize='bfloat16'),
    partitioning.make_mesh((1, 1, -1)),
  )
  rounded, exact = (
    transformers.AutoModelForCausalLM.from_pretrained(tiny_dir)
    for _ in range(2)
  )
  quantised.round_products(rounded)
  found, (nll, grad) = _both(base, rounded, 'middle', False, 2, remat)
  _, (exact_nll, exact_grad) = _both(base, exact, 'middle', False, 2, remat)
  assert 0 < abs(found[0] - exact_nll) < 2 * abs(nll - exact_nll)
  distance = np.linalg.norm(found[1] - exact_grad)
  own = np.linalg.norm(grad - exact_grad)
  assert 0.5 * own < distance < 2 * own
  assert own < 0.05 * np.linalg.norm(exact_grad)


def _check_against_torch(base, model, position, chat, per_row, remat=False):
  (nll, grad), (expected, exact) = _both(
    base, model, position, chat, per_row, remat
  )
  np.testing.assert_allclose(nll, expected, rtol=1e-5)
  scale = np.abs(exact).max()
  assert scale > 1e-3
  np.testing.assert_allclose(grad, exact, atol=1e-5 * scale)
  most = max(k for _, k, _ in ASKED)
  assert (grad[most:] == 0).all()
  assert (np.abs(grad[:most]).max(axis=1) > 1e-3 * scale).all()


def _both(base, model, position, chat, per_row, remat):
  """Loss and gradient of the table: ours, and torch's in float64."""
  cfg = config.Config(
    virtual_tokens=config.VirtualTokens(position=position),
    templates=config.Templates(chat=chat, prompt='Q {question} A'),
    data=config.Data(max_prefix_tokens=60, max_suffix_tokens=70),
  )
  assembler = Assembler.for_run(base.tokenizer, cfg)
  examples = [
    assembler(
      [(i, Passage('', '', f'It is {i}{k}.' * (i + 1))) for i in range(shown)],
      'Is it?' + '?' * k,
      answer=answer,
      num_active=k,
    )
    for shown, k, answer in ASKED
  ]
  assert any(e.passages_cut or e.passages_dropped for e in examples)
  dim, vocab_size = base.config.embed_dim, base.config.vocab_size
  table = np.random.default_rng(2).normal(size=(P, dim)).astype(np.float32)

  model = model.double().eval()
  rows = torch.tensor(table, dtype=torch.float64, requires_grad=True)
  embeddings = torch.cat([model.get_input_embeddings().weight.detach(), rows])
  expected = torch.zeros((), dtype=torch.float64)
  for e in examples:
    ids = [*e.prefix, *e.before]
    ids += [vocab_size + i for i in range(e.num_active)]
    ids += [*e.after, *e.targets]
    logits = model(inputs_embeds=embeddings[torch.tensor(ids)][None]).logits[0]
    count = len(e.targets)
    expected += torch.nn.functional.cross_entropy(
      logits[-count - 1 : -1],
      torch.tensor(e.targets).long(),
      reduction='sum',
    )
  expected.backward()

  prefix = max(len(e.prefix) for e in examples)
  suffix = max(e.suffix_len for e in examples)
  if position == 'first':
    assert prefix == len(assembler.encoder.before(chat))
  batch = pipeline.collate(
    [
      [[example] for example in examples[i : i + per_row]]
      for i in range(0, len(examples), per_row)
    ],
    shape=(max(1, per_row * prefix), per_row * suffix),
    num_targets=per_row * 12,
    vocab_size=vocab_size,
    num_rows=len(examples) // per_row,
    per_row=per_row,
  )
  nll, count, grad = value_and_grad(
    split_nll, table, base.decoder(), batch, remat
  )
  assert count == sum(len(e.targets) for e in examples)
  return (nll, grad), (expected.item(), rows.grad.numpy())


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
  np.testing.assert_allclose(parts.trained, whole.trained, rtol=1e-5, atol=1e-6)
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

  batch = batch_lib.Batch(
    prefix=ids(rows, prefix),
    prefix_positions=ids(rows, prefix),
    prefix_segments=None,
    suffix=ids(rows, suffix),
    suffix_positions=ids(rows, suffix),
    suffix_segments=None,
    suffix_parents=None,
    targets=ids(rows, answer),
    target_index=ids(rows, answer),
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
  x = virtual_tokens.TABLE.embed(decoder, table, ids)
  hidden, _ = decoder(x, positions)
  where = batch.prefix.shape[1] + batch.target_index
  picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
  return losses.masked_nll(
    decoder.logits(picked), batch.targets, batch.target_index >= 0
  )
