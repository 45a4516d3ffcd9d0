"""Tests of vtokens.plug: what programs give it, and models that it is on."""

import copy
import io
import pathlib

import accelerate
import family_models
import numpy as np
import pytest
import torch
import trained_runs
import transformers

from vtokens.exports import trained_table
from vtokens.host import errors
from vtokens.serving import plug

PASSAGES, QUESTION = trained_runs.PASSAGES, trained_runs.QUESTION
ROWS = trained_runs.ROWS


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The table and the tokenizer of one family."""
  root = tmp_path_factory.mktemp('plug')
  family_models.save(root / 'base', 'llama2')
  trained_runs.write_run(root / 'run', root / 'base')
  tokenizer = transformers.AutoTokenizer.from_pretrained(root / 'base')
  return trained_table.read(str(root / 'run')).table, tokenizer


def _weights(directory: pathlib.Path) -> dict[str, torch.Tensor]:
  """Every tensor of a model as transformers loads it."""
  model = transformers.AutoModelForCausalLM.from_pretrained(directory)
  return {name: value.clone() for name, value in model.state_dict().items()}


def _assert_equal(found, expected) -> None:
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert torch.equal(found[name], value), name


@pytest.mark.parametrize('name', ['llama2', 'qwen', 'qwen_untied', 'gemma'])
def test_a_model_with_a_table_is_saved_as_the_base(name, tmp_path):
  """Names and bits of all tensors, tied heads and scaled embeddings, too."""
  base = tmp_path / 'base'
  family_models.save(base, name)
  trained_runs.write_run(tmp_path / 'run', base)
  table = trained_table.read(str(tmp_path / 'run')).table
  before = _weights(base)
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  ids = torch.tensor([[1, 2, *table.meta.tokens.ids[:2], 3]])
  plug.attach(model, table)
  _assert_equal(model.state_dict(), before)
  model.save_pretrained(tmp_path / 'attached')
  _assert_equal(_weights(tmp_path / 'attached'), before)
  logits = model(ids).logits
  # Of the base, into the model with the table, and of that into the base.
  other = transformers.AutoModelForCausalLM.from_pretrained(base)
  with torch.no_grad():
    for weight in model.parameters():
      weight.zero_()
  model.load_state_dict(other.state_dict())
  assert torch.equal(model(ids).logits, logits)
  other.load_state_dict(model.state_dict())
  # A copy has the table and weights of its own.
  copied = copy.deepcopy(model)
  plug.detach(model)
  with torch.no_grad():
    model.get_input_embeddings().weight.zero_()
  assert torch.equal(copied(ids).logits, logits)
  other.save_pretrained(tmp_path / 'detached')
  _assert_equal(_weights(tmp_path / 'detached'), before)


def test_a_table_moves_with_the_model(one, tmp_path):
  table, _ = one
  family_models.save(tmp_path / 'base', 'llama2')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  embedding = model.get_input_embeddings()
  kind = type(embedding)
  plug.attach(model, table)
  model.to(torch.bfloat16)
  found = embedding(torch.tensor([table.meta.tokens.ids]))
  expected = torch.from_numpy(table.table).to(torch.bfloat16)
  assert torch.equal(found[0], expected)
  # What others put in place of `forward`, as accelerate does, is called.
  forward, seen = embedding.forward, []
  embedding.forward = lambda ids: seen.append(ids.tolist()) or forward(ids)
  assert torch.equal(
    embedding(torch.tensor([table.meta.tokens.ids[0], 7]))[0], expected[0]
  )
  assert seen == [[0, 7]]
  del embedding.forward
  plug.detach(model)
  assert type(embedding) is kind
  assert not hasattr(embedding, 'virtual_tokens')
  assert [name for name, _ in embedding.named_buffers()] == []


@pytest.mark.parametrize('name', ['llama2', 'gemma'])
@pytest.mark.parametrize('buffers', [False, True])
def test_a_model_whose_weights_are_brought_when_needed(name, buffers, tmp_path):
  """Accelerate keeps no values in such a model between calls."""
  base = tmp_path / 'base'
  family_models.save(base, name)
  trained_runs.write_run(tmp_path / 'run', base)
  table = trained_table.read(str(tmp_path / 'run')).table
  ids = torch.tensor([[1, 2, *table.meta.tokens.ids[:2], 3]])
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  plug.attach(model, table)
  expected = model(ids).logits
  plug.detach(model)
  accelerate.cpu_offload(
    model, execution_device=torch.device('cpu'), offload_buffers=buffers
  )
  assert model.get_input_embeddings().weight.is_meta
  plug.attach(model, table)
  assert torch.equal(model(ids).logits, expected)
  plug.detach(model)


def test_an_embedding_that_was_resized(one, tmp_path):
  """Ids of virtual tokens are then those of random rows."""
  table, _ = one
  family_models.save(tmp_path / 'base', 'llama2')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  plug.attach(model, table)
  model.resize_token_embeddings(model.config.vocab_size + 64)
  with pytest.raises((errors.UserError, IndexError)):
    model(torch.tensor([[model.config.vocab_size + 63]]))
  with pytest.raises(errors.UserError):
    model(torch.tensor([table.meta.tokens.ids]))


@pytest.mark.parametrize(
  'passages',
  [
    *('one passage', b'one passage', None, 7, {'text': 'one passage'}),
    # Without an order, lines of a file, arrays of another shape.
    *({'one', 'two'}, io.StringIO('one\ntwo\n')),
    *(np.array('one'), np.array([['id', 'text']]), torch.zeros(1, 2)),
    *([None], [7], [b'text'], [['text']], [{}], [{'contents': 'text'}]),
    *([{'text': None}], [{'text': 7}], [{'text': 'a', 'title': 7}]),
    *(
      ['half \ud83d'],
      [{'text': '\udcff'}],
      [{'text': 'a', 'title': '\ud800'}],
    ),
  ],
)
def test_passages_that_are_none(one, passages):
  table, tokenizer = one
  meta = table.meta
  with pytest.raises(errors.UserError, match=r'^passages'):
    plug.prompt_ids(tokenizer, passages, QUESTION, 3, meta)
  with pytest.raises(errors.UserError, match=r'^passages'):
    plug.prompt_texts(tokenizer, passages, QUESTION, meta)
  with pytest.raises(errors.UserError, match=r'^passages'):
    plug.prompt_text(tokenizer, passages, QUESTION, 3, meta)


@pytest.mark.parametrize(
  'question', [None, 7, b'When?', ['When?'], 'half \ud83d', '', ' \n']
)
def test_questions_that_are_none(one, question):
  table, tokenizer = one
  meta = table.meta
  with pytest.raises(errors.UserError, match=r'^question: '):
    plug.prompt_ids(tokenizer, PASSAGES, question, 3, meta)
  with pytest.raises(errors.UserError, match=r'^question: '):
    plug.prompt_texts(tokenizer, PASSAGES, question, meta)
  with pytest.raises(errors.UserError, match=r'^question: '):
    plug.prompt_text(tokenizer, PASSAGES, question, 3, meta)


@pytest.mark.parametrize(
  'k', [True, False, 3.0, 2.5, '3', None, -1, ROWS + 1, float('nan'), [3]]
)
def test_numbers_that_are_none(one, k):
  table, tokenizer = one
  for prompt in (plug.prompt_ids, plug.prompt_text):
    with pytest.raises(errors.UserError, match=r'^k=.*expected .* 0 to 5'):
      prompt(tokenizer, PASSAGES, QUESTION, k, table.meta)


def test_what_passages_may_be(one):
  table, tokenizer = one
  expected = plug.prompt_ids(
    tokenizer,
    [{'text': 'One.'}, {'title': 'T', 'text': 'Two.'}],
    QUESTION,
    3,
    table.meta,
  )
  several = ['One.', {'title': 'T', 'text': 'Two.', 'score': 1.0}]
  array = np.array(several, dtype=object)
  for passages in (several, tuple(several), iter(several), array):
    found = plug.prompt_ids(
      tokenizer, passages, QUESTION, np.int64(3), table.meta
    )
    assert found == expected
  without = [{'title': None, 'text': 'One.'}]
  assert plug.prompt_ids(
    tokenizer, without, QUESTION, 3, table.meta
  ) == plug.prompt_ids(tokenizer, ['One.'], QUESTION, 3, table.meta)


def test_other_arguments_that_are_none(one):
  table, tokenizer = one
  for prompt in (plug.prompt_ids, plug.prompt_text):
    with pytest.raises(errors.UserError, match=r'plug.load\(...\).meta, got A'):
      prompt(tokenizer, PASSAGES, QUESTION, 3, table)
    with pytest.raises(errors.UserError, match=r'^tokenizer: .* got NoneType'):
      prompt(None, PASSAGES, QUESTION, 3, table.meta)
