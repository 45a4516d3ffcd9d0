"""Keys and values in transformers models, against our own decoder."""

import copy
import dataclasses

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
import trained_runs
import transformers
from tiny_models import FULL, GEMMA, SLIDING

from vtokens import config, plug
from vtokens.data.batch import Spans
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.method.keys_values import KeysValues
from vtokens.models.files import hf_directory, weights
from vtokens.serving import artifact, vllm_client
from vtokens.serving.artifact import Artifact, Meta

N, K, NEW = 4, 3, 5
FIRST = tiny_models.VOCAB_SIZE + 1
START, PASSAGES, QUESTION = [3], [44, 81, 19, 6, 15, 91], [9, 41, 7, 55]
# Ids before and after the virtual tokens.
PARTS = {
  'first': (START, PASSAGES + QUESTION),
  'middle': (START + PASSAGES, QUESTION),
  'last': (START + PASSAGES + QUESTION, [27, 8]),
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
  'rope_theta': 10_000.0,
}
_LONG = {
  'rope_type': 'longrope',
  'rope_theta': 10_000.0,
  'short_factor': [1.0, 1.5, 2.0, 2.5],
  'long_factor': [3.0, 4.0, 5.0, 6.0],
  'partial_rotary_factor': 0.5,
}


def long_rope(original):
  return {
    'rope_parameters': {**_LONG, 'original_max_position_embeddings': original},
    'original_max_position_embeddings': original,
    'max_position_embeddings': 512,
    # Where earlier versions of transformers read it.
    'partial_rotary_factor': 0.5,
  }


# A window of 4 is shorter than the virtual tokens and the question together.
_WINDOW = {'sliding_window': 4, 'num_hidden_layers': 3}
_LAYERS = {**_WINDOW, 'layer_types': [SLIDING, FULL, SLIDING]}
MODELS = {
  'llama': ('llama', {}),
  'yarn': (
    'llama',
    {'rope_parameters': _YARN, 'max_position_embeddings': 128},
  ),
  'mistral': ('mistral', _WINDOW),
  'ministral': ('ministral', {**_LAYERS, 'head_dim': 16}),
  'qwen2': ('qwen2', {}),
  'qwen3': ('qwen3', {'head_dim': 24}),
  'gemma': ('gemma', GEMMA),
  'gemma2': ('gemma2', {**GEMMA, **_LAYERS}),
  'gemma3': ('gemma3_text', {**GEMMA, **_LAYERS}),
  # Its last layer has no rotary embedding.
  'smollm3': ('smollm3', {'num_hidden_layers': 2, 'no_rope_layers': [1, 0]}),
  'phi3': ('phi3', {'partial_rotary_factor': 0.5}),
  'olmo2': ('olmo2', {}),
  'olmo3': ('olmo3', _LAYERS),
}


def meta_of(shape, longest):
  """The metadata of keys and values of this shape."""
  ids = tuple(range(FIRST, FIRST + N))
  return Meta(
    format=2,
    base=artifact.BaseIdentity(
      'org/base', '', 'f', 't', tiny_models.VOCAB_SIZE, False
    ),
    prompt=artifact.Prompt(config.Templates(), 'middle', longest - 16, 16),
    tokens=artifact.Tokens(ids, tuple(map(str, ids)), (1, *ids[:2], 2)),
    table_sha256='',
    shape=shape,
    num_trained=N,
    metrics={},
    training={},
    versions={},
    kind='kv',
  )


# All sequences are padded to it: each decoder is compiled once.
LENGTH = 40


@nnx.jit
def run(decoder, values, ids, positions, start, k):
  """Logits of all ids."""
  hidden, _ = decoder(
    decoder.embed(ids),
    positions,
    trained_caches=KeysValues().caches(decoder, values, Spans(start, k)),
  )
  return decoder.logits(hidden)


class Case:
  """A tiny model in transformers and as our decoder, and keys and values."""

  def __init__(
    self, directory, model_type, changes, *, dtype=np.float32, longest=32
  ):
    self.model = tiny_models.save(directory, model_type=model_type, **changes)
    base = dataclasses.replace(
      hf_directory.read_config(directory), context_length=longest
    )
    self.decoder = weights.load_decoder(
      hf_directory.SafetensorsSource(directory),
      base,
      np.dtype(dtype),
      partitioning.make_mesh((-1, 1, 1)),
    )
    rng = np.random.default_rng(0)
    shape = (base.num_layers, N, base.num_kv_heads, base.head_dim)
    values = {
      name: rng.normal(0, 2.0, shape).astype(np.float32)
      for name in ('keys', 'values')
    }
    self.table = Artifact(values, meta_of(shape, longest))

  def logits(self, before, k, after):
    """Our logits after each id of `after`, float32."""
    size = len(before) + len(after)
    ids = np.zeros((1, LENGTH), np.int32)
    ids[0, :size] = [*before, *after]
    positions = np.full((1, LENGTH), -1, np.int32)
    positions[0, :size] = np.arange(size)
    positions[0, len(before) : size] += k
    start, number = (np.array([[x]], np.int32) for x in (len(before), k))
    found = run(self.decoder, self.table.values, ids, positions, start, number)
    return np.asarray(found, np.float32)[0, len(before) : size]


def ids_of(before, after, k=K):
  return [*before, *range(FIRST, FIRST + k), *after]


def forward(model, ids, table):
  """Logits of transformers after each id that the cache lacks."""
  inputs = plug.generate_inputs(model, ids, table)
  whole = inputs.pop('input_ids')
  [cache] = (inputs[n] for n in inputs.keys() - {'attention_mask'})
  with torch.no_grad():
    return model(whole[:, cache.get_seq_length() :], **inputs).logits[0]


@pytest.mark.parametrize('name', MODELS)
def test_logits_and_answers_are_ours(name, tmp_path):
  case = Case(tmp_path, *MODELS[name])
  for before, after in PARTS.values():
    ids = ids_of(before, after)
    out = plug.generate(case.model, ids, case.table, max_new_tokens=NEW)
    answer = out[0, len(ids) :].tolist()
    expected = case.logits(before, K, [*after, *answer])[:-1]
    assert expected[len(after) - 1 :].argmax(-1).tolist() == answer
    found = forward(case.model, [*ids, *answer[:-1]], case.table)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=3e-4)
    other = case.logits(before, 1, [*after, *answer])[:-1]
    assert np.abs(other - expected).max() > 1e-2


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return Case(tmp_path_factory.mktemp('llama'), 'llama', {})


@pytest.mark.parametrize('name', ['qwen3', 'gemma3'])
def test_in_bfloat16(name, tmp_path):
  """As near to our decoder in bfloat16 as a prompt without virtual tokens."""
  case = Case(tmp_path, *MODELS[name], dtype=jnp.bfloat16)
  model = case.model.to(torch.bfloat16)
  before, after = PARTS['middle']
  with torch.no_grad():
    plain = model(torch.tensor([[*before, *after]])).logits[0, len(before) :]
  bound = (
    2 * np.abs(plain.float().numpy() - case.logits(before, 0, after)).max()
  )
  ids = ids_of(before, after)
  out = plug.generate(model, ids, case.table, max_new_tokens=NEW)
  answer = out[0, len(ids) :].tolist()
  expected = case.logits(before, K, [*after, *answer])[:-1]
  assert expected[len(after) - 1 :].argmax(-1).tolist() == answer
  found = forward(model, [*ids, *answer[:-1]], case.table).float().numpy()
  assert 0 < np.abs(found - expected).max() < bound < 0.5


@pytest.mark.parametrize(
  ('original', 'longest'), [(64, 32), (8, 32)], ids=['short', 'long']
)
def test_a_rotary_embedding_that_depends_on_the_length(
  original, longest, tmp_path
):
  case = Case(tmp_path, 'phi3', long_rope(original), longest=longest)
  before, after = PARTS['middle']
  ids = ids_of(before, after)
  out = plug.generate(case.model, ids, case.table, max_new_tokens=NEW)
  answer = out[0, len(ids) :].tolist()
  expected = case.logits(before, K, [*after, *answer])[:-1]
  found = forward(case.model, [*ids, *answer[:-1]], case.table)
  np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=3e-4)
  assert expected[len(after) - 1 :].argmax(-1).tolist() == answer


@pytest.mark.parametrize(
  ('original', 'longest', 'new'),
  # Training was beyond the length and the prompt is not; the prompt passes it
  # after the cache; the answer passes it.
  [(20, 32, 2), (12, 12, 2), (16, 16, 8)],
)
def test_a_rotary_embedding_of_another_length(original, longest, new, tmp_path):
  case = Case(tmp_path, 'phi3', long_rope(original), longest=longest)
  with pytest.raises(
    errors.UserError, match=rf'longrope\) changes at {original} tokens'
  ):
    plug.generate(
      case.model, ids_of(*PARTS['middle']), case.table, max_new_tokens=new
    )


def test_the_model_stays_as_it_was(llama):
  model, (before, after) = llama.model, PARTS['middle']
  ids = torch.tensor([[*before, *after]])
  names = {name: x.clone() for name, x in model.state_dict().items()}
  with torch.no_grad():
    plain = model(ids).logits
  plug.generate(model, ids_of(before, after), llama.table, max_new_tokens=2)
  with torch.no_grad():
    assert torch.equal(model(ids).logits, plain)
  assert names.keys() == model.state_dict().keys()
  assert all(torch.equal(x, model.state_dict()[n]) for n, x in names.items())
  hooks = '_forward_pre_hooks'
  assert not any(getattr(module, hooks) for module in model.modules())
  # k = 0 is the model without virtual tokens.
  assert torch.equal(
    plug.generate(model, [*before, *after], llama.table, max_new_tokens=4),
    model.generate(ids, max_new_tokens=4),
  )


def test_a_cache_that_is_not_used(llama, monkeypatch):
  """As older versions of transformers do with Phi-3."""
  run = llama.model.generate

  def without(input_ids, attention_mask, max_new_tokens, **cache):
    assert cache
    return run(input_ids, max_new_tokens=max_new_tokens)

  monkeypatch.setattr(llama.model, 'generate', without)
  ids = ids_of(*PARTS['middle'])
  with pytest.raises(errors.UserError, match='has not used the cache'):
    plug.generate(llama.model, ids, llama.table, max_new_tokens=1)


def test_several_answers_and_beams(llama):
  ids = ids_of(*PARTS['middle'])
  one = plug.generate(llama.model, ids, llama.table, max_new_tokens=NEW)
  torch.manual_seed(0)
  several = plug.generate(
    llama.model,
    ids,
    llama.table,
    max_new_tokens=NEW,
    do_sample=True,
    top_k=1,
    num_return_sequences=3,
  )
  assert torch.equal(several, one.expand(3, -1))
  beams = plug.generate(
    llama.model,
    ids,
    llama.table,
    max_new_tokens=NEW,
    num_beams=4,
    early_stopping=False,
    length_penalty=0.0,
  )

  def log_probability(answer):
    before, after = PARTS['middle']
    found = llama.logits(before, K, [*after, *answer])[len(after) - 1 : -1]
    found = torch.tensor(found).log_softmax(-1)
    return sum(row[i].item() for row, i in zip(found, answer, strict=True))

  best, greedy = (x[0, len(ids) :].tolist() for x in (beams, one))
  assert log_probability(best) >= log_probability(greedy) - 1e-4


@pytest.mark.parametrize(
  ('ids', 'message'),
  [
    ('text', 'the ids of one prompt'),
    (torch.zeros(1, 4, dtype=torch.int64), 'the ids of one prompt'),
    ([1.5], 'the ids of one prompt'),
    ([], 'expected ids of org/base'),
    ([tiny_models.VOCAB_SIZE, *ids_of([3], [4])], r'below 320, got \[320\]'),
    ([3, FIRST + 1, FIRST, 4], 'first k of the 4 virtual tokens'),
    ([3, FIRST, 4, FIRST + 1, 5], 'one after the other'),
    ([3, FIRST + 1, 4], 'first k of the 4 virtual tokens'),
    (ids_of([3, 4], []), "position='last' without a chat"),
  ],
)
def test_ids_that_are_none(llama, ids, message):
  with pytest.raises(errors.UserError, match=message):
    plug.generate(llama.model, ids, llama.table, max_new_tokens=1)


def changed(case, **fields):
  meta = dataclasses.replace(case.table.meta, **fields)
  return Artifact(case.table.values, meta)


def test_what_does_not_fit(llama, tmp_path):
  model, ids = llama.model, ids_of([3], [4])

  def refused(message, model=model, ids=ids, table=llama.table):
    with pytest.raises(errors.UserError, match=message):
      plug.generate(model, ids, table, max_new_tokens=1)

  refused('first k of the 2 virt', table=changed(llama, num_trained=2))
  refused(
    r'has 320 tokens, 3 layers, 2 key-value heads, 16 .* has 320, 4, 2, 16',
    table=changed(llama, shape=(4, N, 2, 16)),
  )
  table = Artifact(
    np.zeros((N, 64), np.float32), changed(llama, kind='table').meta
  )
  refused('a table of embeddings; use plug.attach', table=table)
  large = {name: x * 1e6 for name, x in llama.table.values.items()}
  refused(
    'too large for torch.float16',
    model=copy.deepcopy(model).half(),
    table=Artifact(large, llama.table.meta),
  )
  other = tiny_models.save(tmp_path, model_type='cohere')
  refused("not served for models of type 'cohere'", model=other)


def test_where_only_a_table_has_a_place(llama, tmp_path):
  meta = llama.table.meta
  for call in (
    lambda: plug.attach(llama.model, llama.table),
    lambda: vllm_client.Client('http://host', 'base', llama.table, None),
  ):
    with pytest.raises(errors.UserError, match=r"kind='kv'\); use them with t"):
      call()
  tiny_models.save_tokenizer(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  with pytest.raises(errors.UserError, match='names in a text stand for rows'):
    plug.prompt_text(tokenizer, ['A passage.'], 'Who?', 1, meta)


def test_it_needs_no_jax():
  trained_runs.assert_needs_no_jax('vtokens.plug')
