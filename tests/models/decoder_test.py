"""The decoder against transformers' own in PyTorch, in float32 throughout."""

import functools
import pathlib

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import one_branch
import pytest
import tiny_models
import torch
import transformers

from vtokens import config as config_lib
from vtokens.data import formats, records
from vtokens.devices import partitioning
from vtokens.method import generate
from vtokens.models import frozen_base
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.files import hf_directory, weights

# What differs from a tiny Llama with 4 query heads on 2 key heads, an untied
# head and a head width of D / N.
CONFIGS = {
  'gqa_untied': {},
  'mha_tied': {'num_key_value_heads': 4, 'tie_word_embeddings': True},
  'mqa': {'num_key_value_heads': 1, 'rope_theta': 500_000.0},
  'gqa_tied': {'num_attention_heads': 8, 'tie_word_embeddings': True},
  'wide_heads': {'head_dim': 24, 'rope_theta': 1_000_000.0},
  'narrow_heads': {'head_dim': 6, 'rope_theta': 10.0},
  # No size a power of two, and an epsilon that shows.
  'odd_sizes': {
    'hidden_size': 45,
    'intermediate_size': 37,
    'num_hidden_layers': 1,
    'num_attention_heads': 3,
    'num_key_value_heads': 3,
    'head_dim': 10,
    'vocab_size': 311,
    'rms_norm_eps': 0.1,
  },
}


@functools.partial(jax.jit, static_argnames='graph')
def _run(params, ids, positions, caches, segments, *, graph):
  model = nnx.merge(graph, params)
  hidden, new = model(model.embed(ids), positions, caches, segments=segments)
  return model.logits(hidden), new


def _forward(model, ids, positions, *caches, segments=None):
  """Logits, and keys and values of the new tokens."""
  graph, params = nnx.split(model)
  logits, new = _run(params, ids, positions, caches, segments, graph=graph)
  # Slices of a jax.Array would each be compiled.
  return np.asarray(logits), new


def _load(directory):
  return weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
    jnp.float32,
    partitioning.make_mesh((-1, 1, 1)),
  )


def _random_rows(lengths, vocab_size, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(vocab_size, size=length) for length in lengths]


def _pad(rows, width, start=None, filler=7):
  """Ids padded on the right, their number, and positions from `start` on."""
  ids = np.full((len(rows), width), filler, np.int32)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
  lengths = np.array([len(row) for row in rows], np.int32)
  index = np.arange(width, dtype=np.int32)
  start = 0 if start is None else start[:, None]
  return ids, lengths, np.where(index < lengths[:, None], start + index, -1)


def _pack(rows, width, starts=None, filler=7):
  """Several sequences to a row, padded on the right.

  Returns:
    Ids, positions from `starts` on, segments, and where each sequence lies.
  """
  ids = np.full((len(rows), width), filler, np.int32)
  positions, segments = np.full_like(ids, -1), np.full_like(ids, -1)
  places = []
  for r, sequences in enumerate(rows):
    at = 0
    for number, sequence in enumerate(sequences):
      stop = at + len(sequence)
      start = 0 if starts is None else starts[r][number]
      ids[r, at:stop] = sequence
      positions[r, at:stop] = np.arange(start, start + len(sequence))
      segments[r, at:stop] = number
      places.append((r, slice(at, stop)))
      at = stop
  return ids, positions, segments, places


def _torch_logits(model, ids):
  with torch.no_grad():
    return model(torch.as_tensor(np.asarray(ids)[None])).logits[0].numpy()


@pytest.fixture(scope='module')
def tiny_and_torch(tmp_path_factory):
  """A model calm enough that rounding alone stays below 1e-5."""
  directory = tmp_path_factory.mktemp('tiny')
  reference = tiny_models.save(directory, scale=0.1)
  return _load(directory), reference


@pytest.fixture(scope='module')
def tiny(tiny_and_torch):
  return tiny_and_torch[0]


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_equal_those_of_torch(tmp_path, name):
  reference = tiny_models.save(tmp_path, **CONFIGS[name])
  model = _load(tmp_path)
  assert (model.head is None) == reference.config.tie_word_embeddings
  rows = _random_rows((1, 70, 33), reference.config.vocab_size)
  ids, _, positions = _pad(rows, 80)
  logits, _ = _forward(model, ids, positions)
  assert logits.dtype == np.float32
  for row, found in zip(rows, logits, strict=True):
    expected = _torch_logits(reference, row)
    assert expected.std() > 0.5  # It has something to say.
    np.testing.assert_allclose(found[: len(row)], expected, rtol=0, atol=2e-4)


def test_long_rows_whole_and_after_a_long_prefix(tiny_and_torch):
  """Longer than any block that attention may be cut into."""
  tiny, reference = tiny_and_torch
  rows = _random_rows((300, 256, 129, 1), tiny.config.vocab_size)
  ids, _, positions = _pad(rows, 300)
  whole, _ = _forward(tiny, ids, positions)
  ids, prefix_len, positions = _pad([row[:140] for row in rows], 150)
  prefix, cache = _forward(tiny, ids, positions)
  ids, suffix_len, positions = _pad([r[140:] for r in rows], 160, prefix_len)
  suffix, _ = _forward(tiny, ids, positions, cache)
  for i, row in enumerate(rows):
    expected = _torch_logits(reference, row)
    split = np.concatenate(
      [prefix[i, : prefix_len[i]], suffix[i, : suffix_len[i]]]
    )
    for found in (whole[i, : len(row)], split):
      np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


# --- the cache ---


def test_prefix_suffix_and_single_steps_equal_one_pass(tiny):
  prefixes = _random_rows((0, 5, 12, 1), tiny.config.vocab_size)
  suffixes = _random_rows((7, 3, 1, 6), tiny.config.vocab_size, seed=1)
  tails = _random_rows((4, 4, 4, 4), tiny.config.vocab_size, seed=2)
  whole = [
    np.concatenate(parts)
    for parts in zip(prefixes, suffixes, tails, strict=True)
  ]
  ids, _, positions = _pad(whole, 24)
  one_pass, _ = _forward(tiny, ids, positions)

  ids, prefix_len, positions = _pad(prefixes, 14)
  prefix_logits, cache = _forward(tiny, ids, positions)
  ids, suffix_len, positions = _pad(suffixes, 9, prefix_len)
  suffix_logits, new = _forward(tiny, ids, positions, cache)
  tail = new.with_room(6)
  assert tail.positions.shape == (4, 9 + 6)
  tail_logits = []
  for step in range(4):
    ids = np.array([[tail[step]] for tail in tails], np.int32)
    positions = (prefix_len + suffix_len + step)[:, None]
    logits, new = _forward(tiny, ids, positions, cache, tail)
    tail_logits.append(logits[:, 0])
    tail = tail.write(new, 9 + step)
  for i, expected in enumerate(one_pass):
    found = np.concatenate(
      [
        prefix_logits[i, : prefix_len[i]],
        suffix_logits[i, : suffix_len[i]],
        [logits[i] for logits in tail_logits],
      ]
    )
    np.testing.assert_allclose(
      found, expected[: len(whole[i])], rtol=0, atol=1e-5, err_msg=f'row {i}'
    )


def test_a_row_depends_on_neither_neighbours_nor_padding(tiny):
  row, *others = _random_rows((11, 20, 3, 0), tiny.config.vocab_size)
  more = _random_rows((18, 1, 9), tiny.config.vocab_size, seed=1)
  ids, _, positions = _pad([row], len(row))
  alone = _forward(tiny, ids, positions)[0][0]

  def check(before, after, filler):
    def run(part, start=None, *caches):
      ids, lengths, where = _pad([*before, part, *after], 33, start, filler)
      logits, new = _forward(tiny, ids, where, *caches)
      return logits[len(before), : len(part)], lengths, new

    whole, _, _ = run(row)
    prefix, lengths, cache = run(row[:6])
    suffix, _, _ = run(row[6:], lengths, cache)
    for found in (whole, np.concatenate([prefix, suffix])):
      np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)

  check(others, [], filler=0)
  check(more[:1], more[1:], filler=tiny.config.vocab_size - 1)


def test_a_later_token_changes_nothing_before_it(tiny):
  (row,) = _random_rows((12,), tiny.config.vocab_size)
  changed = row.copy()
  changed[8] = (row[8] + 1) % tiny.config.vocab_size
  ids, _, positions = _pad([row, changed], 12)
  logits, _ = _forward(tiny, ids, positions)
  np.testing.assert_array_equal(logits[0, :8], logits[1, :8])
  assert (np.abs(logits[0, 8:] - logits[1, 8:]).max(axis=-1) > 1e-3).all()


# --- several sequences to a row ---


def test_sequences_that_share_a_row_equal_those_of_torch(tiny_and_torch):
  """Whole, and split into prefix and suffix, as batches of training are."""
  tiny, reference = tiny_and_torch
  # Longer together than any block that attention may be cut into; one prefix
  # and one suffix that are empty.
  sizes = [[(100, 9), (60, 30), (0, 12)], [(140, 1), (7, 0)], [(1, 1)]]
  rng = np.random.default_rng(1)
  rows = [
    [rng.integers(tiny.config.vocab_size, size=p + s) for p, s in row]
    for row in sizes
  ]
  ids, positions, segments, places = _pack(rows, 220)
  whole, _ = _forward(tiny, ids, positions, segments=segments)

  def parts(of):
    return [
      [of(sequence, p) for sequence, (p, _) in zip(*both, strict=True)]
      for both in zip(rows, sizes, strict=True)
    ]

  ids, positions, segments, before = _pack(parts(lambda x, p: x[:p]), 170)
  prefix, cache = _forward(tiny, ids, positions, segments=segments)
  ids, positions, segments, after = _pack(
    parts(lambda x, p: x[p:]), 60, parts(lambda _, p: p)
  )
  suffix, _ = _forward(tiny, ids, positions, cache, segments=segments)
  sequences = [sequence for row in rows for sequence in row]
  for i, sequence in enumerate(sequences):
    expected = _torch_logits(reference, sequence)
    split = np.concatenate([prefix[before[i]], suffix[after[i]]])
    for found in (whole[places[i]], split):
      np.testing.assert_allclose(
        found, expected, rtol=0, atol=2e-4, err_msg=f'sequence {i}'
      )


def test_sequences_of_a_row_do_not_see_each_other(tiny):
  rng = np.random.default_rng(2)
  rows = [[rng.integers(tiny.config.vocab_size, size=n) for n in (9, 6, 8)]]
  ids, positions, segments, places = _pack(rows, 26)

  def logits(changed):
    new = ids.copy()
    for i in changed:
      new[places[i]] = (new[places[i]] + 1) % tiny.config.vocab_size
    _, cache = _forward(tiny, new, positions, segments=segments)
    # The same once more, as a suffix of each: the cache is not seen either.
    later = np.where(positions < 0, -1, positions + 9)
    found, _ = _forward(tiny, new, later, cache, segments=segments)
    return found

  before = logits([])
  for i in range(3):
    others = [j for j in range(3) if j != i]
    np.testing.assert_array_equal(logits(others)[places[i]], before[places[i]])
    assert np.abs(logits([i])[places[i]] - before[places[i]]).max() > 1e-3


# --- gradients ---


def test_remat_changes_neither_values_nor_gradients(tiny):
  graph, params = nnx.split(tiny)
  # The last row holds nothing: its garbage must stay out, and finite.
  ids, lengths, positions = _pad(
    _random_rows((9, 4, 0), tiny.config.vocab_size), 10
  )
  _, cache = _forward(tiny, ids, positions)
  weight = np.random.default_rng(0).normal(size=(3, 10, 64))

  def loss(x, params, remat):
    model = nnx.merge(graph, params)
    where = np.where(positions < 0, -1, positions + lengths[:, None])
    hidden, _ = model(x, where, [cache], remat=remat)
    return jnp.sum(jnp.where(where[..., None] < 0, 0, hidden * weight))

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  x = tiny.embed(jnp.asarray(ids))
  value, gradient = grad(x, params, False)
  value_remat, gradient_remat = grad(x, params, True)
  assert np.abs(gradient).max() > 0.1
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[2], 0)
  np.testing.assert_allclose(value_remat, value, rtol=1e-6)
  # Small entries are differences of large ones, which are rounded.
  scale = np.abs(gradient).max()
  np.testing.assert_allclose(gradient_remat, gradient, atol=1e-6 * scale)

  def num_saved(remat):
    """Values kept for the backward pass."""
    backward = jax.eval_shape(
      lambda x: jax.vjp(lambda x: loss(x, params, remat), x)[1], x
    )
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  # Without remat each of 3 layers keeps at least its 3 x 96 activations in
  # the MLP for each of 30 tokens.
  assert num_saved(False) - num_saved(True) > 3 * 3 * 96 * 30


# --- a real model ---


@pytest.fixture(scope='module')
def smollm2(smollm2_path):
  return frozen_base.load_base(
    config_lib.Base(path=str(smollm2_path), dtype='float32'),
    partitioning.make_mesh((-1, 1, 1)),
  )


@pytest.fixture(scope='module')
def smollm2_torch(smollm2_path):
  return transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
  ).eval()


@pytest.fixture(scope='module')
def questions():
  """Real questions with passages, one passage per text."""
  path = pathlib.Path(records.__file__).parent / 'quickstart/test.jsonl.gz'
  return formats.read_all([str(path)])


@pytest.mark.exhaustive
def test_smollm2_logits_equal_those_of_torch(smollm2, smollm2_torch, questions):
  texts = [record.ranked()[0].text for record in questions]
  ids = [smollm2.tokenizer.encode(text)[:60] for text in texts]
  ids = np.array([row for row in ids if len(row) == 60][:3], np.int32)
  assert ids.shape == (3, 60)
  positions = np.broadcast_to(np.arange(60, dtype=np.int32), ids.shape)
  logits, _ = _forward(smollm2.decoder(), ids, positions)
  with torch.no_grad():
    expected = smollm2_torch(torch.from_numpy(ids).long()).logits.numpy()
  np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-4)


@pytest.mark.exhaustive
def test_smollm2_greedy_answers_equal_those_of_torch(
  smollm2, smollm2_torch, questions
):
  tokenizer, new_tokens = smollm2.tokenizer, 32
  before, after = tokenizer.chat_wrap
  prefixes, suffixes = [], []
  for i, record in enumerate(questions[:20]):
    passage = tokenizer.encode(record.ranked()[0].text)[:i]
    question = tokenizer.encode(f'\n\nQuestion: {record.question}\nAnswer:')
    # A chat ends its answers with eos, plain text seldom.
    chat = i % 2
    prefixes.append([*before, *passage] if chat else passage)
    suffixes.append([*question, *after] if chat else question)

  prefix, prefix_len, prefix_at = _pad(prefixes, max(map(len, prefixes)))
  suffix, _, suffix_at = _pad(suffixes, max(map(len, suffixes)), prefix_len)
  cache = generate.encode_prefix(
    smollm2.params, prefix, prefix_at, graph=smollm2.graph
  )
  never = jnp.zeros(smollm2.config.vocab_size, bool)
  ours = np.asarray(
    one_branch.greedy(
      smollm2.params,
      jnp.zeros((1, smollm2.config.embed_dim)),
      cache,
      suffix,
      suffix_at,
      tokenizer.eos_id,
      never.at[tokenizer.eos_id].set(True),
      never,
      never,
      graph=smollm2.graph,
      max_new_tokens=new_tokens,
    )
  )

  rows = [[*p, *s] for p, s in zip(prefixes, suffixes, strict=True)]
  width = max(map(len, rows))
  left = np.array([[0] * (width - len(row)) + row for row in rows])
  mask = np.array([[0] * (width - len(r)) + [1] * len(r) for r in rows])
  result = smollm2_torch.generate(
    torch.from_numpy(left),
    attention_mask=torch.from_numpy(mask),
    do_sample=False,
    max_new_tokens=new_tokens,
    eos_token_id=tokenizer.eos_id,
    pad_token_id=tokenizer.eos_id,
    return_dict_in_generate=True,
    output_logits=True,
  )
  theirs = result.sequences[:, width:].numpy()
  assert theirs.shape == ours.shape
  ended = (theirs == tokenizer.eos_id).any(axis=1)
  assert 0 < ended.sum() < len(rows)
  same = 0
  for i, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
    differ = np.flatnonzero(found != expected)
    if not differ.size:
      same += 1
      continue
    # Only where two tokens are as likely within rounding may they part.
    step = differ[0]
    logits = result.logits[step][i]
    gap = logits[expected[step]] - logits[found[step]]
    assert gap < 1e-3, f'prompt {i}, token {step}: {found} is not {expected}'
  assert same >= len(rows) - 2


# --- generation ---


@pytest.fixture(scope='module')
def counting():
  """A model that always says the next number.

  Its layers add nothing, so the residual stream is the token's embedding, and
  column i + 1 of the head is that embedding.
  """
  config = DecoderConfig(
    vocab_size=40,
    embed_dim=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    mlp_dim=8,
  )
  graph, params = nnx.split(abstract_decoder(config, jnp.float32))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
  model = nnx.merge(graph, params)
  embedding = np.random.default_rng(0).normal(size=(40, 64))
  model.embedding[...] = jnp.asarray(embedding, jnp.float32)
  model.head[...] = jnp.asarray(np.roll(embedding, 1, axis=0).T, jnp.float32)
  model.norm.scale[...] = jnp.ones(64)
  return model


def _greedy(
  model,
  prefixes,
  suffixes,
  *,
  table=None,
  eos=0,
  ends=None,
  newline=(),
  blank=(),
  max_new_tokens=6,
  widths=(16, 10),
):
  """Answers; `widths` are those of prefix and suffix."""
  graph, params = nnx.split(model)
  vocab = np.arange(model.config.vocab_size)
  prefix, prefix_len, prefix_at = _pad(prefixes, widths[0])
  suffix, _, suffix_at = _pad(suffixes, widths[1], prefix_len)
  out = one_branch.greedy(
    params,
    jnp.zeros((1, model.config.embed_dim)) if table is None else table,
    generate.encode_prefix(params, prefix, prefix_at, graph=graph),
    suffix,
    suffix_at,
    eos,
    np.isin(vocab, [eos] if ends is None else ends),
    np.isin(vocab, newline),
    np.isin(vocab, blank),
    graph=graph,
    max_new_tokens=max_new_tokens,
  )
  assert out.dtype == jnp.int32
  return out.tolist()


@pytest.mark.parametrize(
  ('eos', 'newline', 'blank', 'expected'),
  [
    (0, (), (), [11, 12, 13, 14, 15, 16]),
    (13, (), (), [11, 12, 13, 13, 13, 13]),
    (11, (), (), [11, 11, 11, 11, 11, 11]),
    # A line break after text ends the answer and is kept.
    (0, (13,), (13,), [11, 12, 13, 0, 0, 0]),
    # Before text it does not, however many there are.
    (0, (11,), (11,), [11, 12, 13, 14, 15, 16]),
    (0, (11, 12), (11, 12), [11, 12, 13, 14, 15, 16]),
    (0, (11, 12, 14), (11, 12, 14), [11, 12, 13, 14, 0, 0]),
    # Blanks are no text: 11 is a space.
    (0, (12, 14), (11, 12, 14), [11, 12, 13, 14, 0, 0]),
    # A token with text and a line break is both.
    (0, (11,), (), [11, 0, 0, 0, 0, 0]),
    (0, (12,), (11,), [11, 12, 0, 0, 0, 0]),
    # Blanks alone end nothing.
    (0, (), (11, 12, 13), [11, 12, 13, 14, 15, 16]),
    # eos ends even an answer without text.
    (12, (11, 12), (11, 12), [11, 12, 12, 12, 12, 12]),
    # Only what was generated counts: 10 is the last token of the prompt.
    (10, (10,), (), [11, 12, 13, 14, 15, 16]),
  ],
)
def test_where_an_answer_ends(counting, eos, newline, blank, expected):
  # The other row ends elsewhere; neither shortens the other.
  out = _greedy(
    counting,
    [[1, 2, 3], []],
    [[5, 10], [30]],
    eos=eos,
    newline=newline,
    blank=blank,
  )
  assert out == [expected, [31, 32, 33, 34, 35, 36]]


def test_any_of_several_tokens_ends_an_answer(counting):
  out = _greedy(counting, [[1], []], [[10], [20]], eos=0, ends=(0, 12, 23))
  assert out == [[11, 12, 0, 0, 0, 0], [21, 22, 23, 0, 0, 0]]


def test_a_row_of_padding_is_done_at_once(counting):
  answer = functools.partial(_greedy, counting, eos=39)
  assert answer([[1, 2], []], [[10], []]) == [[*range(11, 17)], [39] * 6]
  assert answer([[], [1]], [[], [20]]) == [[39] * 6, [*range(21, 27)]]
  assert answer([[], []], [[], []]) == [[39] * 6, [39] * 6]


@pytest.mark.parametrize('scale', [1.0, 1e6])
def test_answers_after_virtual_tokens_are_torchs_ordinary_tokens(
  tmp_path, scale
):
  # Tied: rows added to the embeddings would add columns to the head.
  reference = tiny_models.save(tmp_path, tie_word_embeddings=True)
  model = _load(tmp_path)
  vocab_size = model.config.vocab_size
  rng = np.random.default_rng(0)
  table = rng.normal(scale=scale, size=(5, 64)).astype(np.float32)
  prefixes = _random_rows((0, 9, 4), vocab_size)
  virtual = vocab_size + np.arange(5)
  # Tokens before the question as in training, alone, and at the very end.
  suffixes = [[*virtual[:3], 17, 18], virtual[:1], [40, 41, *virtual]]
  out = _greedy(model, prefixes, suffixes, table=table, eos=-1)
  assert np.min(out) >= 0
  assert np.max(out) < vocab_size

  embed = reference.get_input_embeddings()
  rows = torch.cat([embed.weight, torch.from_numpy(table)])
  for prefix, suffix, found in zip(prefixes, suffixes, out, strict=True):
    ids = torch.as_tensor(np.array([*prefix, *suffix]))
    for token in found:
      with torch.no_grad():
        logits = reference(inputs_embeds=rows[ids][None]).logits[0, -1]
      assert token == logits.argmax()
      ids = torch.cat([ids, torch.tensor([token])])


def test_an_answer_depends_on_neither_neighbours_nor_padding(tiny):
  vocab_size = tiny.config.vocab_size
  prefixes = _random_rows((13, 0, 6, 1), vocab_size)
  suffixes = _random_rows((4, 9, 1, 3), vocab_size, seed=1)
  # Rows end at different times.
  stop = range(0, vocab_size, 8)
  answer = functools.partial(_greedy, tiny, newline=stop, max_new_tokens=10)
  together = answer(prefixes, suffixes)
  ends = [np.flatnonzero(np.isin(row, stop)).tolist() for row in together]
  assert len({tuple(end[:1]) for end in ends}) > 2, ends
  wider = answer(prefixes[::-1], suffixes[::-1], widths=(31, 14))
  assert wider == together[::-1]
  for i, row in enumerate(together):
    # Among rows of padding, in the first place.
    alone = answer([prefixes[i], [], [], []], [suffixes[i], [], [], []])
    assert alone == [row, [0] * 10, [0] * 10, [0] * 10]
