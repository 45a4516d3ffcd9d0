"""Every family against transformers' own model in PyTorch, in float32."""

import functools
import json

import decoder_cases
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import one_branch
import pytest
import quantised
import tiny_models
import torch
import transformers
from decoder_cases import (
  CASES,
  LENGTH,
  padded,
  positions_of,
  rows_of_ids,
  torch_logits,
)

from vtokens.method import generate
from vtokens.models.abstract import num_params
from vtokens.models.families import registry
from vtokens.models.files import hf_directory, saving

_SPECIAL = ('bos', 'eos', 'pad')


@functools.partial(jax.jit, static_argnames='graph')
def _run(params, ids, positions, caches, segments=None, *, graph):
  model = nnx.merge(graph, params)
  hidden, new = model(
    model.embed(ids),
    positions,
    caches,
    ids=ids,
    segments=segments,
    num_segments=2,
  )
  return model.logits(hidden), new


# Cases that are quantised, too: with biases, fused weights, caps and a tied
# head; with norms of heads, windows, and norms of all heads.
QUANTISED = {
  'int8': ('llama_biased', 'phi3_long', 'gemma2'),
  'int4': ('qwen3', 'mistral', 'olmo2', 'deepseek_v3'),
}


# Cases with no feature that another case lacks.
ALIASES = (
  *('internlm3', 'iquestcoder', 'seed_oss', 'cwm'),
  *('deepseek_v2_lite', 'deepseek_v3_halves', 'glm4_moe_lite', 'sarvam_mla'),
)
# Cases of the default run's tests of packed rows, of greedy continuations and
# of bfloat16. Together they have every part that attention is made of.
SAMPLE = (
  ('phi3_long', 'none'),
  ('gemma3', 'none'),
  ('ministral3', 'none'),
  ('cohere2', 'none'),
  ('qwen3_5', 'none'),
  ('mistral4', 'none'),
  ('qwen3', 'int4'),
  ('gemma4_shared', 'none'),
  ('granitemoehybrid', 'none'),
)
_OWN = [(name, 'none') for name in CASES if name not in ALIASES]
_QUANTISED = [(name, m) for m in QUANTISED for name in QUANTISED[m]]
_ALIASES = [(name, 'none') for name in ALIASES]
# pytest groups tests by the index in these lists.
_EXACT, _ALL = [*_OWN, *_ALIASES], [*_OWN, *_QUANTISED, *_ALIASES]


def _cases(pairs, sample):
  """Runs those outside the sample only if `exhaustive` tests are asked for."""
  marked = [
    pair if pair in sample else pytest.param(pair, marks=pytest.mark.exhaustive)
    for pair in pairs
  ]
  ids = ['-'.join(pair) for pair in pairs]
  return pytest.mark.parametrize('pair', marked, indirect=True, ids=ids)


@pytest.fixture(scope='module')
def pair(request, tmp_path_factory):
  """Ours (graph, params) and transformers' of one case, and where it lies.

  Where ours is quantised as it is loaded, transformers' has the values that
  numpy gives for it.
  """
  name, method = request.param
  directory = tmp_path_factory.mktemp(name)
  reference = decoder_cases.save(directory, name)
  family = registry.families()[CASES[name][0]]
  assert type(reference).__name__ == family.architecture
  if method != 'none':
    quantised.quantise_model(reference, method)
  return decoder_cases.load(directory, method), reference, directory


@_cases(_ALL, [*_OWN, *SAMPLE])
def test_logits_in_one_pass_and_in_parts(pair):
  """Whole rows; then passages, suffix and single tokens with the cache."""
  (graph, params), reference, _ = pair
  rows = rows_of_ids()
  expected = torch_logits(reference, rows)
  assert min(logits.std() for logits in expected) > 0.3
  lengths = np.array([len(row) for row in rows])

  where = positions_of([0] * 4, lengths, 96)
  whole, _ = _run(params, padded(rows, 96), where, (), graph=graph)
  whole = np.asarray(whole)

  cuts = np.array([50, 40, 2, 0])  # Prefixes, one of them empty.
  ends = lengths - 3  # The last three one at a time.
  prefix = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
  suffix = [
    row[cut:end] for row, cut, end in zip(rows, cuts, ends, strict=True)
  ]
  # As wide as the whole rows: the same program.
  where = positions_of([0] * 4, cuts, 96)
  logits, cache = _run(params, padded(prefix, 96), where, (), graph=graph)
  parts = [[np.asarray(logits)[i, :cut]] for i, cut in enumerate(cuts)]
  where = positions_of(cuts, ends - cuts, 48)
  logits, new = _run(params, padded(suffix, 48), where, (cache,), graph=graph)
  tail = new.with_room(3)
  for i, part in enumerate(parts):
    part.append(np.asarray(logits)[i, : ends[i] - cuts[i]])
  for step in range(3):
    ids = np.array(
      [[row[end + step]] for row, end in zip(rows, ends, strict=True)]
    )
    logits, new = _run(
      params,
      ids.astype(np.int32),
      (ends + step)[:, None].astype(np.int32),
      (cache, tail),
      graph=graph,
    )
    tail = tail.write(new, jnp.int32(48 + step))
    for i, part in enumerate(parts):
      part.append(np.asarray(logits)[i])

  for i, row in enumerate(rows):
    for found in (whole[i, : len(row)], np.concatenate(parts[i])):
      np.testing.assert_allclose(
        found, expected[i], rtol=0, atol=2e-4, err_msg=f'row {i}'
      )


@_cases(_ALL, SAMPLE)
def test_logits_of_sequences_that_share_a_row(pair):
  """Two to a row: passages, then suffix with the cache, as in training."""
  (graph, params), reference, _ = pair
  rows = rows_of_ids()
  expected = torch_logits(reference, rows)
  places = [(0, 0), (1, 0), (0, 1), (1, 1)]  # Row and segment of each.

  def packed(parts, starts, width):
    ids = np.full((2, width), 5, np.int32)
    positions, segments = np.full_like(ids, -1), np.full_like(ids, -1)
    filled, found = [0, 0], []
    for (r, segment), part, start in zip(places, parts, starts, strict=True):
      where = slice(filled[r], filled[r] + len(part))
      ids[r, where] = part
      positions[r, where] = np.arange(start, start + len(part))
      segments[r, where] = segment
      filled[r] = where.stop
      found.append((r, where))
    return (ids, positions, segments), found

  def run(arrays, *caches):
    ids, positions, segments = arrays
    logits, new = _run(params, ids, positions, caches, segments, graph=graph)
    return np.asarray(logits), new

  cuts = [50, 40, 2, 0]
  arrays, before = packed(
    [row[:cut] for row, cut in zip(rows, cuts, strict=True)], [0] * 4, 60
  )
  prefix, cache = run(arrays)
  arrays, after = packed(
    [row[cut:] for row, cut in zip(rows, cuts, strict=True)], cuts, 60
  )
  suffix, _ = run(arrays, cache)
  for i in range(len(rows)):
    found = np.concatenate([prefix[before[i]], suffix[after[i]]])
    np.testing.assert_allclose(
      found, expected[i], rtol=0, atol=2e-4, err_msg=f'row {i}'
    )


@_cases(_ALL, SAMPLE)
def test_greedy_continuations(pair):
  (graph, params), reference, directory = pair
  new_tokens = 32
  rng = np.random.default_rng(5)
  rows = [rng.integers(256, size=size) for size in (58, 30, 12)]
  prefix_len = np.array([40, 29, 0], np.int32)
  suffix_len = np.array([18, 1, 12], np.int32)
  prefix = [row[:n] for row, n in zip(rows, prefix_len, strict=True)]
  suffix = [row[n:] for row, n in zip(rows, prefix_len, strict=True)]
  cache = generate.encode_prefix(
    params,
    padded(prefix, 48),
    positions_of([0] * 3, prefix_len, 48),
    graph=graph,
  )
  never = jnp.zeros(tiny_models.VOCAB_SIZE, bool)
  embed_dim = registry.from_hf(
    json.loads((directory / 'config.json').read_text())
  ).embed_dim
  ours = one_branch.greedy(
    params,
    jnp.zeros((1, embed_dim)),
    cache,
    padded(suffix, 20),
    positions_of(prefix_len, suffix_len, 20),
    jnp.int32(0),
    never,
    never,
    never,
    graph=graph,
    max_new_tokens=new_tokens,
  )
  ours = np.asarray(ours)
  texts = [list(row) for row in rows]
  # A row of full length: it keeps theirs in the same regime of longrope.
  filler = list(range(LENGTH))
  for step in range(new_tokens):
    # The whole texts anew for each token: no cache of theirs to go wrong.
    _, *logits = torch_logits(reference, [filler, *texts])
    for i, text in enumerate(texts):
      token = int(ours[i, step])
      gap = logits[i][-1].max() - logits[i][-1][token]
      # Only tokens that are as likely within rounding may differ.
      assert gap < 1e-4, f'row {i}, token {step}: {token} is not the best'
      text.append(token)


@_cases([*_OWN, *_QUANTISED], SAMPLE)
def test_bf16_is_as_near_to_f32_as_torch(pair, request):
  (_, _), reference, directory = pair
  _, method = request.node.callspec.params['pair']
  graph, params = decoder_cases.load(directory, method, jnp.bfloat16)
  rows = rows_of_ids()
  exact = torch_logits(reference, rows)
  # Not reference.to(bfloat16): that would round the rotary frequencies too.
  rounded = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.bfloat16, attn_implementation='eager'
  ).eval()
  rounded.load_state_dict(reference.state_dict())
  theirs = torch_logits(rounded, rows)
  where = positions_of([0] * 4, [len(row) for row in rows], 96)
  ours, _ = _run(params, padded(rows, 96), where, (), graph=graph)
  ours = np.asarray(ours)

  def distance(found):
    return np.sqrt(
      np.mean(
        [np.mean((f - e) ** 2) for f, e in zip(found, exact, strict=True)]
      )
    )

  found = distance([ours[i, : len(row)] for i, row in enumerate(rows)])
  assert found <= 2 * distance(theirs)


# Only what is not quantised is saved.
@_cases(_EXACT, _EXACT)
def test_config_and_weights_there_and_back(pair, tmp_path):
  """What we write, transformers reads: equal bits and equal logits."""
  (graph, params), reference, directory = pair
  config = hf_directory.read_config(directory)
  given = json.loads((directory / 'config.json').read_text())
  # Some config classes take no null.
  extra = {
    f'{name}_token_id': given.get(f'{name}_token_id') for name in _SPECIAL
  }
  saving.save_decoder(nnx.merge(graph, params), tmp_path, extra)
  assert hf_directory.read_config(tmp_path) == config
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  theirs = reference.state_dict()
  ours = again.state_dict()
  assert set(ours) == set(theirs)
  for name, tensor in theirs.items():
    assert torch.equal(ours[name], tensor), name
  rows = rows_of_ids()
  for found, expected in zip(
    torch_logits(again, rows), torch_logits(reference, rows), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@_cases(_EXACT, _EXACT)
def test_number_of_parameters(pair):
  _, reference, directory = pair
  assert (
    num_params(hf_directory.read_config(directory))
    == reference.num_parameters()
  )
