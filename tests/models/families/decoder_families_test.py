"""Every family against transformers' own model in PyTorch, in float32."""

import dataclasses
import functools
import json

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
from tiny_models import FULL, GEMMA, SLIDING

from vtokens.devices import partitioning
from vtokens.method import generate
from vtokens.models.decoder import num_params
from vtokens.models.families import registry
from vtokens.models.files import hf_directory, weights

_SPECIAL = ('bos', 'eos', 'pad')
LENGTH = 90  # Of the longest row; windows below are shorter.

_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
  'rope_theta': 500.0,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 10_000.0,
}


def _longrope(pairs, **changes):
  return {
    'rope_type': 'longrope',
    'rope_theta': 10_000.0,
    'short_factor': [1.0 + 0.1 * i for i in range(pairs)],
    'long_factor': [2.0 + 0.5 * i for i in range(pairs)],
    **changes,
  }


# The least that shows a feature.
_SMALL = {'num_hidden_layers': 2, 'hidden_size': 32, 'intermediate_size': 48}

# name -> model_type and what differs from a tiny Llama, every feature on.
CASES = {
  'llama_biased': ('llama', {'attention_bias': True}),
  'llama3': ('llama', {'rope_parameters': _LLAMA3}),
  'llama_linear': (
    'llama',
    {'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}},
  ),
  # Beyond what it was trained for: 90 tokens of 64.
  'llama_dynamic': (
    'llama',
    {
      'max_position_embeddings': 64,
      'rope_parameters': {'rope_type': 'dynamic', 'factor': 2.0},
    },
  ),
  'mistral': ('mistral', {'sliding_window': 20, 'head_dim': 24}),
  'mistral_without_window': ('mistral', {'sliding_window': None}),
  'ministral': (
    'ministral',
    {
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL, SLIDING],
      'head_dim': 24,
    },
  ),
  'qwen2': (
    'qwen2',
    {
      'use_sliding_window': True,
      'sliding_window': 20,
      'max_window_layers': 2,
      'tie_word_embeddings': True,
    },
  ),
  'qwen2_yarn': (
    'qwen2',
    {'rope_parameters': _YARN, 'num_attention_heads': 8},
  ),
  'qwen2_yarn_options': (
    'qwen2',
    {
      'rope_parameters': {
        **_YARN,
        'beta_fast': 8.0,
        'beta_slow': 0.5,
        'mscale': 0.7,
        'mscale_all_dim': 0.5,
        'truncate': False,
      }
    },
  ),
  'qwen3': (
    'qwen3',
    {
      'head_dim': 24,
      'num_attention_heads': 6,
      'num_key_value_heads': 2,
      'hidden_size': 60,
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 20,
      'max_window_layers': 1,
    },
  ),
  'phi3': ('phi3', {'sliding_window': 20}),
  # Longrope's two regimes, and rotation of a part of each head.
  'phi3_short': (
    'phi3',
    {
      'original_max_position_embeddings': 128,
      'rope_parameters': _longrope(8),
    },
  ),
  'phi3_long': (
    'phi3',
    {
      'original_max_position_embeddings': 64,
      'rope_parameters': _longrope(6, partial_rotary_factor=0.75),
      'num_key_value_heads': 1,
    },
  ),
  'gemma': ('gemma', GEMMA),
  'gemma2': (
    'gemma2',
    {
      **GEMMA,
      'sliding_window': 20,
      'query_pre_attn_scalar': 30,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
  ),
  'gemma3': (
    'gemma3_text',
    {
      **GEMMA,
      'num_hidden_layers': 4,
      'sliding_window': 20,
      'layer_types': [SLIDING, SLIDING, FULL, SLIDING],
      'query_pre_attn_scalar': 30,
      'final_logit_softcapping': 3.0,
      'rope_parameters': {
        FULL: {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        SLIDING: {'rope_type': 'default', 'rope_theta': 1e4},
      },
    },
  ),
  'smollm3': (
    'smollm3',
    {
      'num_hidden_layers': 4,
      'no_rope_layers': [1, 0, 1, 0],
      'use_sliding_window': True,
      'sliding_window': 20,
      'tie_word_embeddings': True,
    },
  ),
  'olmo2': ('olmo2', {'num_key_value_heads': 1, 'attention_bias': True}),
  'olmo3': (
    'olmo3',
    {
      'num_hidden_layers': 4,
      'sliding_window': 20,
      'rope_parameters': {
        FULL: _YARN,
        SLIDING: {'rope_type': 'default', 'rope_theta': 10_000.0},
      },
    },
  ),
  'internlm3': ('internlm3', {**_SMALL, 'head_dim': 12}),
  'iquestcoder': ('iquestcoder', {**_SMALL, 'attention_bias': True}),
  'seed_oss': (
    'seed_oss',
    {
      **_SMALL,
      'head_dim': 12,
      'attention_bias': False,
      'attention_out_bias': True,
    },
  ),
  'cwm': (
    'cwm',
    {
      **_SMALL,
      'rope_parameters': _LLAMA3,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'bos_token_id': 1,
    },
  ),
  # Queries grow from the 33rd token on.
  'ministral3': (
    'ministral3',
    {
      **_SMALL,
      'sliding_window': 40,
      'rope_parameters': {
        **_YARN,
        'mscale': 1.0,
        'mscale_all_dim': 1.0,
        'max_position_embeddings': 512,
        'llama_4_scaling_beta': 0.7,
      },
    },
  ),
  'arcee': ('arcee', {**_SMALL, 'attention_bias': True}),
  'granite': (
    'granite',
    {
      **_SMALL,
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
      'attention_bias': True,
    },
  ),
  'cohere': (
    'cohere',
    {
      **_SMALL,
      'logit_scale': 0.7,
      'use_qk_norm': True,
      'layer_norm_eps': 1e-3,
      'attention_bias': True,
    },
  ),
  'cohere2': (
    'cohere2',
    {
      **_SMALL,
      'logit_scale': 0.7,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'tie_word_embeddings': True,
    },
  ),
  'glm': (
    'glm',
    {**_SMALL, 'head_dim': 16, 'partial_rotary_factor': 0.25},
  ),
  'glm4': (
    'glm4',
    {**_SMALL, 'head_dim': 8, 'attention_bias': False},
  ),
  'exaone4': (
    'exaone4',
    {**_SMALL, 'sliding_window': 20, 'layer_types': [SLIDING, FULL]},
  ),
  'exaone4_without_window': (
    'exaone4',
    {**_SMALL, 'sliding_window': None, 'layer_types': [FULL, FULL]},
  ),
  'ernie4_5': ('ernie4_5', {**_SMALL, 'head_dim': 12}),
  'starcoder2': (
    'starcoder2',
    {**_SMALL, 'norm_epsilon': 1e-3, 'sliding_window': 20},
  ),
  'stablelm': (
    'stablelm',
    {
      **_SMALL,
      'layer_norm_eps': 1e-3,
      'use_qkv_bias': True,
      'num_key_value_heads': 4,
    },
  ),
  'nemotron': (
    'nemotron',
    {
      **_SMALL,
      'norm_eps': 1e-3,
      'head_dim': 12,
      'attention_bias': True,
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.5},
    },
  ),
  'helium': ('helium', {**_SMALL, 'head_dim': 8, 'attention_bias': True}),
  'vaultgemma': (
    'vaultgemma',
    {
      **_SMALL,
      'head_dim': 12,
      'sliding_window': 20,
      'layer_types': [SLIDING, FULL],
      'query_pre_attn_scalar': 30,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
      'tie_word_embeddings': True,
    },
  ),
  'phi': (
    'phi',
    {
      **_SMALL,
      'layer_norm_eps': 1e-3,
      'rope_parameters': {'rope_theta': 1e3, 'partial_rotary_factor': 0.75},
    },
  ),
}


@functools.partial(jax.jit, static_argnames='graph')
def _run(params, ids, positions, caches, segments=None, *, graph):
  model = nnx.merge(graph, params)
  hidden, new = model(model.embed(ids), positions, caches, segments=segments)
  return model.logits(hidden), new


# Cases that are quantised, too: with biases, fused weights, caps and a tied
# head; with norms of heads, windows, and norms of all heads.
QUANTISED = {
  'int8': ('llama_biased', 'phi3_long', 'gemma2'),
  'int4': ('qwen3', 'mistral', 'olmo2'),
}


def _load(directory, method, dtype=jnp.float32, context_length=LENGTH):
  config = hf_directory.read_config(directory)
  model = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    dataclasses.replace(config, context_length=context_length),
    dtype,
    partitioning.make_mesh((-1, 1, 1)),
    method,
  )
  return nnx.split(model)


# Cases with no feature that another case lacks: the whole test would tell
# nothing new.
ALIASES = ('internlm3', 'iquestcoder', 'seed_oss', 'cwm')
_OWN = [(name, 'none') for name in CASES if name not in ALIASES]
_QUANTISED = [(name, m) for m in QUANTISED for name in QUANTISED[m]]
_ALIASES = [(name, 'none') for name in ALIASES]
# pytest groups tests by the index in these lists.
_EXACT, _ALL = [*_OWN, *_ALIASES], [*_OWN, *_QUANTISED, *_ALIASES]
_own_features = pytest.mark.parametrize(
  'pair', [*_OWN, *_QUANTISED], indirect=True, ids='-'.join
)


@pytest.fixture(
  scope='module',
  params=_ALL,
  ids='-'.join,
)
def pair(request, tmp_path_factory):
  """Ours (graph, params) and transformers' of one case, and where it lies.

  Where ours is quantised as it is loaded, transformers' has the values that
  numpy gives for it.
  """
  name, method = request.param
  directory = tmp_path_factory.mktemp(name)
  model_type, changes = CASES[name]
  reference = tiny_models.save(directory, model_type=model_type, **changes)
  assert (
    type(reference).__name__ == registry.families()[model_type].architecture
  )
  if method != 'none':
    quantised.quantise_model(reference, method)
  return _load(directory, method), reference, directory


def _rows():
  rng = np.random.default_rng(3)
  # The longest first: transformers' dynamic types look at the longest row.
  return [rng.integers(256, size=size) for size in (LENGTH, 61, 7, 33)]


def _torch_logits(model, rows):
  """Of padded rows: the length of a batch may change rotary frequencies."""
  width = max(map(len, rows))
  ids = np.zeros((len(rows), width), np.int64)
  mask = np.zeros((len(rows), width), np.int64)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
    mask[i, : len(row)] = 1
  with torch.no_grad():
    logits = model(
      torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
    ).logits
  return [logits[i, : len(row)].float().numpy() for i, row in enumerate(rows)]


def _positions(start, lengths, width):
  index = np.arange(width, dtype=np.int32)
  start, lengths = np.asarray(start), np.asarray(lengths)
  inside = index < lengths[:, None]
  return np.where(inside, start[:, None] + index, -1).astype(np.int32)


def _padded(rows, width):
  out = np.full((len(rows), width), 5, np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def test_logits_in_one_pass_and_in_parts(pair):
  """Whole rows; then passages, suffix and single tokens with the cache."""
  (graph, params), reference, _ = pair
  rows = _rows()
  expected = _torch_logits(reference, rows)
  assert min(logits.std() for logits in expected) > 0.3
  lengths = np.array([len(row) for row in rows])

  where = _positions([0] * 4, lengths, 96)
  whole, _ = _run(params, _padded(rows, 96), where, (), graph=graph)
  whole = np.asarray(whole)

  cuts = np.array([50, 40, 2, 0])  # Prefixes, one of them empty.
  ends = lengths - 3  # The last three one at a time.
  prefix = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
  suffix = [
    row[cut:end] for row, cut, end in zip(rows, cuts, ends, strict=True)
  ]
  where = _positions([0] * 4, cuts, 60)
  logits, cache = _run(params, _padded(prefix, 60), where, (), graph=graph)
  parts = [[np.asarray(logits)[i, :cut]] for i, cut in enumerate(cuts)]
  where = _positions(cuts, ends - cuts, 48)
  logits, new = _run(params, _padded(suffix, 48), where, (cache,), graph=graph)
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


@_own_features
def test_logits_of_sequences_that_share_a_row(pair):
  """Two to a row: passages, then suffix with the cache, as in training."""
  (graph, params), reference, _ = pair
  rows = _rows()
  expected = _torch_logits(reference, rows)
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


@_own_features
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
    _padded(prefix, 48),
    _positions([0] * 3, prefix_len, 48),
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
    _padded(suffix, 20),
    _positions(prefix_len, suffix_len, 20),
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
    _, *logits = _torch_logits(reference, [filler, *texts])
    for i, text in enumerate(texts):
      token = int(ours[i, step])
      gap = logits[i][-1].max() - logits[i][-1][token]
      # Only tokens that are as likely within rounding may differ.
      assert gap < 1e-4, f'row {i}, token {step}: {token} is not the best'
      text.append(token)


@_own_features
def test_bf16_is_as_near_to_f32_as_torch(pair, request):
  (_, _), reference, directory = pair
  _, method = request.node.callspec.params['pair']
  graph, params = _load(directory, method, jnp.bfloat16)
  rows = _rows()
  exact = _torch_logits(reference, rows)
  # Not reference.to(bfloat16): that would round the rotary frequencies too.
  rounded = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.bfloat16, attn_implementation='eager'
  ).eval()
  rounded.load_state_dict(reference.state_dict())
  theirs = _torch_logits(rounded, rows)
  where = _positions([0] * 4, [len(row) for row in rows], 96)
  ours, _ = _run(params, _padded(rows, 96), where, (), graph=graph)
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
@pytest.mark.parametrize('pair', _EXACT, indirect=True, ids='-'.join)
def test_config_and_weights_there_and_back(pair, tmp_path):
  """What we write, transformers reads: equal bits and equal logits."""
  (graph, params), reference, directory = pair
  config = hf_directory.read_config(directory)
  given = json.loads((directory / 'config.json').read_text())
  # Some config classes take no null.
  extra = {
    f'{name}_token_id': given.get(f'{name}_token_id') for name in _SPECIAL
  }
  weights.save_decoder(nnx.merge(graph, params), tmp_path, extra)
  assert hf_directory.read_config(tmp_path) == config
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  theirs = reference.state_dict()
  ours = again.state_dict()
  assert set(ours) == set(theirs)
  for name, tensor in theirs.items():
    assert torch.equal(ours[name], tensor), name
  rows = _rows()
  for found, expected in zip(
    _torch_logits(again, rows), _torch_logits(reference, rows), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_number_of_parameters(pair):
  _, reference, directory = pair
  assert (
    num_params(hf_directory.read_config(directory))
    == reference.num_parameters()
  )
