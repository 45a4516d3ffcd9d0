"""Virtual tokens as keys and values, against transformers in PyTorch."""

import dataclasses
import typing

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
import torch
import torch_cache
import transformers
from tiny_models import FULL, GEMMA, SLIDING

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler, Example
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.method import generate, kinds, optim, steps
from vtokens.method.keys_values import KeysValues
from vtokens.models.files import hf_directory, weights
from vtokens.run import checkpoints, training_state
from vtokens.serving import trained_file

N = 3
PREFIX, QUESTION, TARGETS = [5, 17, 80, 33], [9, 41, 7], [60, 12, 3]
TRAINABLE = KeysValues()


@pytest.fixture(scope='module')
def cfg():
  return config.Config(
    virtual_tokens=config.VirtualTokens(
      kind='kv', num_virtual_tokens=N, init='normal', init_std=1.0
    ),
    optim=config.Optim(learning_rate=0.1),
  )


@pytest.fixture(scope='module')
def initial(base, cfg):
  return TRAINABLE.init(
    cfg.virtual_tokens, base.decoder(), base.tokenizer, seed=0
  )


def ids(values):
  return np.asarray(values, np.int32)


def example(k=N, prefix=PREFIX, before=(), after=QUESTION, targets=TARGETS):
  return Example(
    prefix=ids(prefix),
    before=ids(before),
    num_active=k,
    after=ids(after),
    targets=ids(targets),
    in_suffix=False,
  )


def batch_of(*rows, shape=(12, 40), draws=1):
  """Rows of prefixes, each with its examples."""
  per_row = max(map(len, rows))
  return pipeline.collate(
    rows,
    shape=shape,
    num_targets=24,
    vocab_size=320,
    num_rows=len(rows),
    per_row=per_row,
    draws=draws,
    spans=max(sum(len(examples) for examples in row) for row in rows),
  )


def nll(base, values, batch, trainable=TRAINABLE):
  decoder = base.decoder()
  cache = steps.encode_prefix(
    decoder, batch.prefix, batch.prefix_positions, batch.prefix_segments
  )
  found = steps.suffix_nll(values, decoder, cache, batch, trainable=trainable)
  return float(found[0])


@pytest.mark.parametrize('k', [1, N])
@pytest.mark.parametrize('num_frozen', [0, 1])
def test_a_step_follows_the_gradient_that_torch_has(
  base, cfg, tiny_dir, k, num_frozen
):
  settings = dataclasses.replace(cfg.virtual_tokens, num_frozen=num_frozen)
  cfg = dataclasses.replace(cfg, virtual_tokens=settings)
  optimizer = optax.sgd(1.0)
  mesh = partitioning.make_mesh((1, 1, -1))
  state = training_state.initial_state(cfg, mesh, base, optimizer)
  before = training_state.fetch_trained(state)
  step = steps.jit_train_step(
    base.graph, optimizer, state, config.Train(), kinds.trainable_of(settings)
  )
  state, metrics = step(state, base.params, batch_of([[example(k)]]))
  after = training_state.fetch_trained(state)

  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32, attn_implementation='eager'
  )
  leaves = {
    name: torch.tensor(x, requires_grad=True) for name, x in before.items()
  }
  logits = torch_cache.target_logits(model, leaves, example(k))
  loss = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS))
  loss.backward()
  assert float(metrics['loss']) == pytest.approx(loss.item(), rel=1e-5)
  for name, leaf in leaves.items():
    expected = leaf.grad.numpy().copy()
    assert np.abs(expected[:, :k]).max() > 1e-4
    expected[:, :num_frozen] = 0
    np.testing.assert_allclose(
      before[name] - after[name], expected, rtol=1e-4, atol=1e-6
    )


_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 10_000.0,
}


@pytest.mark.parametrize(
  ('model_type', 'changes'),
  [
    ('llama', {}),
    ('llama', {'rope_parameters': _YARN, 'max_position_embeddings': 128}),
    ('qwen3', {'head_dim': 24}),
    (
      'gemma3_text',
      {
        **GEMMA,
        'sliding_window': 8,
        'num_hidden_layers': 3,
        'layer_types': [SLIDING, FULL, SLIDING],
      },
    ),
    # Its last layer has no rotary embedding.
    ('smollm3', {'num_hidden_layers': 2, 'no_rope_layers': [1, 0]}),
    # Latents and one key for all heads.
    (
      'youtu',
      {
        'num_hidden_layers': 2,
        'num_key_value_heads': 4,
        **{'kv_lora_rank': 16, 'q_lora_rank': 10, 'v_head_dim': 6},
        **{'qk_nope_head_dim': 4, 'qk_rope_head_dim': 8},
        'rope_parameters': {**_YARN, 'mscale_all_dim': 0.5},
      },
    ),
  ],
  ids=['llama', 'yarn', 'qwen3', 'gemma3', 'smollm3', 'youtu'],
)
@pytest.mark.parametrize('position', ['first', 'middle', 'last'])
def test_those_of_tokens_are_tokens(tmp_path, model_type, changes, position):
  """Keys and values that transformers has for tokens do what the tokens do.

  They come from the same text at positions that are 7 higher, so that only the
  right rotation gives the right logits.
  """
  model = tiny_models.save(tmp_path, model_type=model_type, **changes).eval()
  tokens, shift = [71, 22, 48, 90, 13], 7
  start, passages, question = [3], [44, 81, 19, 6, 15], [9, 41, 7, 55]
  parts = {
    'first': (start, [], passages + question),
    'middle': (start + passages, [], question),
    'last': (start + passages, question, [27, 8]),
  }
  prefix, before, after = parts[position]
  text = [*prefix, *before, *tokens, *after]
  at = len(prefix) + len(before)
  with torch.no_grad():
    expected = model(torch.tensor([text])).logits[0, at + len(tokens) :]
    shifted = model(
      torch.tensor([text[: at + len(tokens)]]),
      position_ids=torch.arange(at + len(tokens))[None] + shift,
      # Layers with a window keep only that many.
      past_key_values=transformers.DynamicCache(),
    ).past_key_values
  decoder = weights.load_decoder(
    hf_directory.SafetensorsSource(tmp_path),
    hf_directory.read_config(tmp_path),
    np.dtype(np.float32),
    partitioning.make_mesh((-1, 1, 1)),
  )
  keys, values = (
    np.stack(
      [getattr(layer, name)[0].numpy() for layer in shifted.layers]
    ).swapaxes(1, 2)[:, -len(tokens) :]
    for name in ('keys', 'values')
  )
  if model_type == 'youtu':
    # There the latent is the key, and pairs of the rotated key lie apart.
    pairs = values.reshape(*values.shape[:-1], 2, -1).swapaxes(-1, -2)
    keys, values = pairs.reshape(values.shape), keys
  where = ids([range(at + shift, at + shift + len(tokens))])
  trained = {
    'keys': decoder.turn_keys(jnp.asarray(keys)[:, None], where, back=True)[
      :, 0
    ],
    'values': jnp.asarray(values),
  }
  made = example(len(tokens), prefix, before, after, targets=[1])
  batch = batch_of([[made]], shape=(len(prefix), made.suffix_len))
  cache = steps.encode_prefix(decoder, batch.prefix, batch.prefix_positions)
  hidden, _ = decoder(
    decoder.embed(batch.suffix),
    batch.suffix_positions,
    [cache],
    trained_caches=TRAINABLE.caches(decoder, trained, batch.spans),
  )
  found = decoder.logits(hidden)[0, len(before) :]
  np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-4)


def test_rows_with_several_suffixes(base, initial):
  """As each alone: own k, own positions, nothing of a neighbour."""
  rows = [
    [
      [example(1), example(3, targets=[8, 2])],
      [example(2, prefix=[70, 2], after=[11, 44])],
    ],
    [[example(3, prefix=[1, 2, 3])], [example(0), example(1, before=[4, 4])]],
  ]
  together = nll(base, initial, batch_of(*rows, draws=2))
  alone = [
    nll(base, initial, batch_of([[one]]))
    for row in rows
    for examples in row
    for one in examples
  ]
  assert together == pytest.approx(sum(alone), rel=1e-5)


def test_the_first_k_of_n(base, initial):
  fewer = TRAINABLE.first(initial, 2)
  assert (TRAINABLE.count(initial), TRAINABLE.count(fewer)) == (N, 2)
  batch = batch_of([[example(2)]])
  assert nll(base, fewer, batch) == nll(base, initial, batch)
  other = jax.tree.map(lambda x: x.copy(), initial)
  for name in other:
    other[name][:, 2:] = np.nan
  assert nll(base, other, batch) == nll(base, initial, batch)


def test_text_starts_as_the_text(base, tiny_dir):
  """Prefix nothing but the start: the whole is ordinary text to the model."""
  settings = config.VirtualTokens(
    kind='kv', num_virtual_tokens=5, init_text='Say it'
  )
  made = TRAINABLE.init(settings, base.decoder(), base.tokenizer, seed=0)
  assert {x.shape for x in made.values()} == {
    x.shape for x in TRAINABLE.shapes(settings, base.config).values()
  }
  text = base.tokenizer.encode('Say it')[:5]
  start = list(base.tokenizer.prefix_ids)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  )
  logits = model(torch.tensor([[*start, *text, *QUESTION]])).logits[0, -1:]
  expected = torch.nn.functional.cross_entropy(logits, torch.tensor([60]))
  found = nll(base, made, batch_of([[example(5, prefix=start, targets=[60])]]))
  assert found == pytest.approx(expected.item(), rel=1e-5)


def test_it_is_seen_while_generating(base, initial):
  """Two branches of a row, as whole sequences one token longer at a time."""
  decoder = nnx.merge(base.graph, base.params)
  branches = [example(1, targets=()), example(3, targets=())]
  expected = []
  for branch in branches:
    answer = []
    for _ in range(4):
      asked = dataclasses.replace(
        branch, after=ids([*QUESTION, *answer]), targets=ids([0])
      )
      batch = batch_of([[asked]], shape=(len(PREFIX), asked.suffix_len))
      hidden, _ = decoder(
        decoder.embed(batch.suffix),
        batch.suffix_positions,
        [steps.encode_prefix(decoder, batch.prefix, batch.prefix_positions)],
        trained_caches=TRAINABLE.caches(decoder, initial, batch.spans),
      )
      answer.append(int(decoder.logits(hidden)[0, -1].argmax()))
    expected.append(answer)
  batch = batch_of([branches], shape=(len(PREFIX), 6), draws=2)
  none = np.zeros(base.config.vocab_size, bool)
  found = generate.generate(
    base.params,
    initial,
    generate.encode_prefix(
      base.params, batch.prefix, batch.prefix_positions, graph=base.graph
    ),
    generate.Suffixes(
      ids=batch.suffix,
      positions=batch.suffix_positions,
      segments=batch.suffix_segments,
      last=ids([[2, 5]]),
      spans=batch.spans,
    ),
    generate.Endings(np.int32(0), none, none, none),
    graph=base.graph,
    max_new_tokens=4,
    trainable=TRAINABLE,
  )
  assert found.ids.tolist()[0] == expected
  assert expected[0] != expected[1]


def test_saved_and_restored(base, cfg, tmp_path):
  optimizer = optim.make_optimizer(cfg.optim, 200)
  mesh = partitioning.make_mesh((1, 1, -1))
  state = training_state.initial_state(cfg, mesh, base, optimizer)
  step = steps.jit_train_step(
    base.graph, optimizer, state, config.Train(), TRAINABLE
  )
  state, _ = step(state, base.params, batch_of([[example()]]))
  saved = checkpoints.Checkpoints(tmp_path / 'run', 2)
  saved.save(state, {'step': 1})
  saved.close()
  restored, _ = checkpoints.Checkpoints(tmp_path / 'run', 2).restore(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)

  values = training_state.fetch_trained(restored)
  path = tmp_path / 'kv.safetensors'
  trained_file.save(path, values, {'fingerprint': 'abc'})
  loaded, metadata = trained_file.load(path, 'kv')
  assert metadata == {'fingerprint': 'abc'}
  jax.tree.map(np.testing.assert_array_equal, loaded, values)
  assert trained_file.sha256(loaded) == trained_file.sha256(values)
  swapped = {'keys': values['values'], 'values': values['keys']}
  assert trained_file.sha256(swapped) != trained_file.sha256(values)

  again = config.VirtualTokens(
    kind='kv', num_virtual_tokens=N, init='table', init_path=str(path)
  )
  TRAINABLE.check(again, base.config)
  made = TRAINABLE.init(again, base.decoder(), base.tokenizer, seed=0)
  jax.tree.map(np.testing.assert_array_equal, made, values)
  again.num_virtual_tokens = N + 1
  with pytest.raises(errors.UserError, match=r'3, 2, 16\], expected \[3, 4'):
    TRAINABLE.check(again, base.config)
  with pytest.raises(errors.UserError, match='not a table of virtual tokens'):
    trained_file.load(path, 'table')
  trained_file.save(path, np.zeros((2, 3), np.float32), {})
  with pytest.raises(errors.UserError, match='not keys and values'):
    trained_file.load(path, 'kv')


@pytest.mark.parametrize('kind', typing.get_args(config.Kind))
def test_examples_are_assembled_as_the_kind_needs(base, kind):
  cfg = config.Config()
  cfg.virtual_tokens.kind = kind
  assembler = Assembler.for_run(base.tokenizer, cfg)
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  assert assembler.in_suffix == trainable.in_suffix
