"""Tests of vtokens.export, import_table and plug, with the real consumers."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import zipfile

import family_models
import numpy as np
import peft
import pytest
import safetensors
import torch
import trained_runs
import transformers
from huggingface_hub import constants

from vtokens import config, evaluate, export, import_table
from vtokens.evaluation import eval_config
from vtokens.exports import (
  export_config,
  export_format,
  hf_checkpoint,
  spring_file,
  trained_table,
)
from vtokens.exports.formats import vtokens_format
from vtokens.host import errors, stopping, writers
from vtokens.serving import artifact, plug, table_file


@pytest.fixture(scope='module', params=family_models.FAMILIES)
def family(request, tmp_path_factory):
  """The base and the run of each family."""
  root = tmp_path_factory.mktemp(request.param)
  family_models.save(root / 'base', request.param)
  trained_runs.write_run(root / 'run', root / 'base')
  return root


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The base and the run of one family."""
  root = tmp_path_factory.mktemp('one')
  family_models.save(root / 'base', 'llama2')
  trained_runs.write_run(root / 'run', root / 'base')
  return root


def _gate(directory):
  values = json.loads((directory / 'gate.json').read_text())
  assert values['passed']
  # Of the programs that it was checked with.
  assert {'jax', 'transformers', 'torch', 'peft'} <= values['versions'].keys()
  return {check['name']: check for check in values['checks']}


def test_hf(family):
  out = family / 'hf'
  export.export(trained_runs.settings(family / 'run'), 'hf', str(out))
  checks = _gate(out)
  assert len(checks) == 11
  base = transformers.AutoModelForCausalLM.from_pretrained(family / 'base')
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  old = transformers.AutoTokenizer.from_pretrained(family / 'base')
  meta = plug.load(out).meta
  ids = list(meta.tokens.ids)
  # They follow the tokenizer's own, into rows that pad the matrix if any do.
  assert ids == list(range(len(old), len(old) + trained_runs.ROWS))
  rows = model.get_input_embeddings().weight
  assert len(rows) == max(base.config.vocab_size, ids[-1] + 1)
  assert model.config.vocab_size == len(rows)
  table, _ = table_file.load(family / 'run' / 'table.safetensors')
  np.testing.assert_array_equal(rows[ids].detach().numpy(), table)
  head = model.get_output_embeddings().weight
  assert head.data_ptr() != rows.data_ptr()
  # None is more likely than the token whose row they copy.
  same = [(head == head[i]).all(dim=1).sum() for i in ids]
  assert min(same) >= trained_runs.ROWS
  assert set(ids) <= set(model.generation_config.suppress_tokens)
  # Names are recognised where SPRING's recipe puts them, and not lost.
  text = 'A passage.\n\n' + ''.join(meta.tokens.names) + 'Question: Is it?'
  found = [i for i in tokenizer(text)['input_ids'] if i in ids]
  assert found == ids
  assert tokenizer.decode(ids, skip_special_tokens=True) == ''
  # Text without names is read as before.
  for text in family_models.TEXT[:3]:
    assert tokenizer(text)['input_ids'] == old(text)['input_ids']
  # A name in a passage stays text.
  prompt = plug.prompt_ids(
    tokenizer, trained_runs.PASSAGES, trained_runs.QUESTION, 2, meta
  )
  assert [i for i in prompt if i in ids] == ids[:2]
  # Files that need not change are the base's own.
  index = out / 'model.safetensors.index.json'
  files = {'model.safetensors'}
  if index.exists():
    files = set(json.loads(index.read_text())['weight_map'].values())
    assert any(
      (out / file).samefile(family / 'base' / file)
      for file in files
      if (family / 'base' / file).exists()
    )
  assert files == {file.name for file in out.glob('*.safetensors')}
  # A loader that takes all of them finds the model's tensors, each once.
  tensors = []
  for file in out.glob('*.safetensors'):
    with safetensors.safe_open(file, framework='numpy') as opened:
      tensors += opened.keys()
  assert sorted(tensors) == sorted(model.state_dict())
  assert not list(family.glob('*.partial*'))


@pytest.mark.parametrize('name', ['llama3', 'llama3_whole'])
def test_a_table_among_the_weights_of_the_model(name, tmp_path, monkeypatch):
  """vLLM would load it as a weight: there is no such export."""
  family_models.save(tmp_path / 'base', name)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  monkeypatch.setattr(artifact, 'TABLE', 'vtokens.safetensors')
  with pytest.raises(
    errors.UserError, match=r"0 missing \[\], 1 others \['virtual_tokens'\]"
  ):
    export.export(
      trained_runs.quick(tmp_path / 'run'), 'hf', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['qwen', 'gemma'])
def test_peft(name, tmp_path):
  """Rows that pad the matrix, and those of reserved tokens; both tied."""
  family_models.save(tmp_path / 'base', name)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  out = tmp_path / 'out'
  export.export(trained_runs.settings(tmp_path / 'run'), 'peft', str(out))
  assert len(_gate(out)) == 12
  meta = plug.load(out).meta
  expected = {
    'qwen': [f'[ref{i + 1}]' for i in range(trained_runs.ROWS)],
    'gemma': [f'<unused{i}>' for i in range(trained_runs.ROWS)],
  }
  assert list(meta.tokens.names) == expected[name]
  # As PEFT's users load them, and merged: a model of the base's own shape.
  base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  rows = base.get_input_embeddings().weight.detach().clone()
  table, _ = table_file.load(tmp_path / 'run' / 'table.safetensors')
  ids = list(meta.tokens.ids)
  others = sorted(set(range(len(rows))) - set(ids))
  for form in ('trainable_tokens', 'embedding_lora'):
    model = peft.PeftModel.from_pretrained(
      transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base'),
      out / form,
    ).merge_and_unload()
    merged = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(
      merged[ids], torch.from_numpy(table), rtol=0, atol=1e-6
    )
    assert torch.equal(merged[others], rows[others])


@pytest.mark.parametrize('name', ['llama2', 'qwen_untied'])
def test_peft_without_room(name, tmp_path):
  family_models.save(tmp_path / 'base', name)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  with pytest.raises(errors.UserError, match='use --to hf, which adds rows'):
    export.export(
      trained_runs.settings(tmp_path / 'run'), 'peft', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['llama2', 'qwen', 'gemma'])
def test_vtokens(name, tmp_path):
  """Gemma's embedding multiplies what it looks up."""
  family_models.save(tmp_path / 'base', name)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  out = tmp_path / 'exported'
  export.export(trained_runs.settings(tmp_path / 'run'), 'vtokens', str(out))
  assert len(_gate(out)) == 8


@pytest.mark.slow
def test_a_run_on_a_quantised_base(tmp_path, capsys):
  """Exported and compared is the base itself; the export says so."""
  family_models.save(tmp_path / 'base', 'llama2')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base', quantize='int4')
  out = tmp_path / 'exported'
  export.export(trained_runs.settings(tmp_path / 'run'), 'vtokens', str(out))
  assert _gate(out)
  assert 'trained with base.quantize=int4' in capsys.readouterr().out
  gate = json.loads((out / 'gate.json').read_text())
  assert gate['trained_with_quantize'] == 'int4'
  assert plug.load(out).meta.quantize == 'int4'
  assert 'matrices in int4' in (out / 'README.md').read_text()
  import_table.import_table(
    'vtokens', str(out), str(tmp_path / 'base'), str(tmp_path / 'again')
  )
  _, metadata = table_file.load(tmp_path / 'again' / 'table.safetensors')
  assert metadata['quantize'] == 'int4'


@pytest.mark.parametrize(
  'kind, name, base, settings',
  [
    ('hf', 'llama2', {'dtype': torch.bfloat16}, {'position': 'last'}),
    ('hf', 'qwen', {}, {'chat': True, 'position': 'first'}),
    ('vtokens', 'llama3', {}, {'position': 'first', 'chat': False}),
    ('vtokens', 'qwen', {'dtype': torch.bfloat16}, {'chat': True}),
    ('peft', 'qwen', {'dtype': torch.bfloat16}, {'position': 'last'}),
    ('hf', 'mistral', {}, {'draw': 'fixed', 'num_active': 3}),
    ('peft', 'gemma', {}, {'draw': 'fixed', 'num_active': 3}),
  ],
)
def test_other_bases_and_prompts(kind, name, base, settings, tmp_path):
  family_models.save(tmp_path / 'base', name, **base)
  if settings.get('chat'):
    family_models.add_chat_template(tmp_path / 'base')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base', **settings)
  out = tmp_path / 'out'
  export.export(trained_runs.settings(tmp_path / 'run'), kind, str(out))
  assert _gate(out)
  meta = plug.load(out).meta
  assert meta.num_trained == settings.get('num_active', trained_runs.ROWS)
  assert meta.prompt.position == settings.get('position', 'middle')


@pytest.mark.parametrize('file', ['model.safetensors', 'tokenizer.json'])
def test_a_base_that_has_changed(file, tmp_path):
  family_models.save(tmp_path / 'base', 'llama3_whole')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  family_models.save(tmp_path / 'other', 'llama3_whole', seed=1)
  other = tmp_path / 'other' / file
  if file == 'tokenizer.json':
    text = other.read_text()
    # As many digits are one token.
    assert '{1,3}' in text
    other.write_text(text.replace('{1,3}', '{1,2}'))
  (tmp_path / 'base' / file).write_bytes(other.read_bytes())
  with pytest.raises(errors.UserError, match='another base than'):
    export.export(
      trained_runs.settings(tmp_path / 'run'), 'hf', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()


def test_a_table_of_another_width(tmp_path):
  """Though it names this base."""
  family_models.save(tmp_path / 'base', 'llama3')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  file = tmp_path / 'run' / 'table.safetensors'
  rows, metadata = table_file.load(file)
  table_file.save(file, rows[:, 1:], metadata)
  with pytest.raises(errors.UserError, match='expected a width of'):
    export.export(
      trained_runs.settings(tmp_path / 'run'), 'hf', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()


@pytest.mark.exhaustive
def test_a_base_in_gguf(smollm2_path, tmp_path):
  """The real SmolLM2, written for transformers; the tokenizer as well."""
  trained_runs.write_run(tmp_path / 'run', smollm2_path)
  settings = trained_runs.settings(
    tmp_path / 'run',
    gate=export_config.Gate(questions=4, logits=2, sampled=40, batch_size=4),
  )
  for kind in ('hf', 'vtokens'):
    export.export(settings, kind, str(tmp_path / kind))
    assert _gate(tmp_path / kind)
  with pytest.raises(errors.UserError, match='GGUF file'):
    export.export(settings, 'peft', str(tmp_path / 'peft'))
  assert not list(tmp_path.glob('tmp*'))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  text = tokenizer.apply_chat_template(
    [{'role': 'user', 'content': 'Hi'}], tokenize=False
  )
  assert '<|im_start|>user\nHi<|im_end|>' in text


def test_attached_and_detached(one):
  table = trained_table.read(str(one / 'run')).table
  model = transformers.AutoModelForCausalLM.from_pretrained(one / 'base')
  tokenizer = transformers.AutoTokenizer.from_pretrained(one / 'base')
  embedding = model.get_input_embeddings()
  names = list(model.state_dict())
  ids = plug.prompt_ids(
    tokenizer,
    trained_runs.PASSAGES,
    trained_runs.QUESTION,
    trained_runs.ROWS,
    table.meta,
  )
  plain = plug.prompt_ids(
    tokenizer, trained_runs.PASSAGES, trained_runs.QUESTION, 0, table.meta
  )
  assert [i for i in ids if i < model.config.vocab_size] == plain
  before = model(torch.tensor([plain])).logits
  plug.attach(model, table)
  with pytest.raises(errors.UserError, match='detach it first'):
    plug.attach(model, table)
  after = model(torch.tensor([plain])).logits
  assert torch.equal(before, after)
  # As if the rows were given as embeddings.
  given = embedding(torch.tensor([plain]))
  at = ids.index(table.meta.tokens.ids[0])
  given = torch.cat(
    [given[:, :at], torch.from_numpy(table.table)[None], given[:, at:]], dim=1
  )
  torch.testing.assert_close(
    model(torch.tensor([ids])).logits,
    model(inputs_embeds=given).logits,
    rtol=0,
    atol=0,
  )
  said = model.generate(
    torch.tensor([ids]), max_new_tokens=20, do_sample=True, pad_token_id=2
  )
  assert said[0, len(ids) :].max() < model.config.vocab_size
  plug.detach(model)
  assert model.get_input_embeddings() is embedding
  assert list(model.state_dict()) == names
  with pytest.raises(errors.UserError, match='no table is attached'):
    plug.detach(model)


def test_a_token_without_a_row_is_no_virtual_token(tmp_path):
  """`<pad>` has the id that virtual token 0 has inside of this program."""
  family_models.save(tmp_path / 'base', 'llama2_pad')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  table = trained_table.read(str(tmp_path / 'run')).table
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'base')
  rows, pad = model.config.vocab_size, tokenizer.pad_token_id
  assert pad == rows == len(tokenizer) - 1 == table.meta.base.vocab_size
  assert table.meta.tokens.ids == tuple(
    range(rows + 1, rows + 1 + trained_runs.ROWS)
  )
  passages = [{'title': '<pad>', 'text': 'a<pad> <pad>'}]
  ids = plug.prompt_ids(
    tokenizer, passages, '<pad>?', trained_runs.ROWS, table.meta
  )
  assert pad not in ids
  assert [i for i in ids if i >= rows] == list(table.meta.tokens.ids)
  plug.attach(model, table)
  found = model.get_input_embeddings()(torch.tensor(ids))
  at = ids.index(rows + 1)
  assert torch.equal(
    found[at : at + trained_runs.ROWS], torch.from_numpy(table.table)
  )
  with pytest.raises(IndexError):
    model.get_input_embeddings()(torch.tensor([pad]))


def test_prompt_ids_refuses(one, tmp_path):
  meta = trained_table.read(str(one / 'run')).table.meta
  tokenizer = transformers.AutoTokenizer.from_pretrained(one / 'base')
  with pytest.raises(errors.UserError, match='whole number from 0 to 5'):
    plug.prompt_ids(
      tokenizer, trained_runs.PASSAGES, trained_runs.QUESTION, 6, meta
    )
  with pytest.raises(errors.UserError, match='max_suffix_tokens=120'):
    plug.prompt_ids(
      tokenizer, trained_runs.PASSAGES, trained_runs.QUESTION * 20, 5, meta
    )
  family_models.save(tmp_path / 'other', 'llama3')
  other = transformers.AutoTokenizer.from_pretrained(tmp_path / 'other')
  with pytest.raises(errors.UserError, match='not the one that the virtual'):
    plug.prompt_ids(
      other, trained_runs.PASSAGES, trained_runs.QUESTION, 5, meta
    )


def test_plug_needs_no_jax():
  trained_runs.assert_needs_no_jax('vtokens.plug')


@pytest.mark.slow
def test_round_trip_is_byte_identical(one, tmp_path):
  names = '<|vt{i}|>'
  questions = (str(one / 'run' / 'questions.jsonl'),)
  first = tmp_path / 'vtokens'
  export.export(
    trained_runs.quick(one / 'run', names=names), 'vtokens', str(first)
  )
  # Ids are others there.
  source = trained_table.read(str(one / 'run'), names)
  tokens = hf_checkpoint.place(
    source.table, source.base, str(one / 'base')
  ).tokens
  meta = dataclasses.replace(source.table.meta, tokens=tokens)
  artifact.write(tmp_path / 'hf', artifact.Artifact(source.table.table, meta))
  for kind in ('vtokens', 'hf'):
    again, work = tmp_path / f'again-{kind}', tmp_path / f'run-{kind}'
    import_table.import_table(
      'vtokens', str(tmp_path / kind), str(one / 'base'), str(work)
    )
    # It is evaluated as it was trained.
    values = json.loads((work / 'config.json').read_text())
    assert values['base']['dtype'] == 'float32'
    if kind == 'vtokens':
      export.export(
        trained_runs.quick(work, data=questions), 'vtokens', str(again)
      )
    else:
      artifact.write(again, trained_table.read(str(work)).table)
    for name in (artifact.TABLE, artifact.META):
      assert (again / name).read_bytes() == (first / name).read_bytes()


def test_the_file_of_the_authors(one, tmp_path):
  out = tmp_path / 'out'
  export.export(trained_runs.quick(one / 'run'), 'spring-pt', str(out))
  table, _ = table_file.load(one / 'run' / 'table.safetensors')
  file = out / spring_file.FILE
  np.testing.assert_array_equal(spring_file.read(str(file)), table)
  read = torch.load(file, weights_only=True)
  assert read.dtype == torch.float32
  assert list(read.shape) == [trained_runs.ROWS, 64]
  # No more than the table: a slice would bring all that it is a slice of.
  assert file.stat().st_size < table.nbytes + 2000


class TestSpring:
  """Files of the authors' shape, imported."""

  @pytest.mark.parametrize(
    'make',
    [
      lambda t: t,
      torch.nn.Parameter,
      lambda t: t.to(torch.bfloat16),
      lambda t: t.to(torch.float16),
    ],
    ids=['tensor', 'parameter', 'bfloat16', 'float16'],
  )
  def test_read(self, make, tmp_path):
    tensor = make(torch.randn(50, 4096))
    torch.save(tensor, tmp_path / 'a.pt')
    found = spring_file.read(str(tmp_path / 'a.pt'))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensor.detach().float().numpy())

  def test_imported_and_evaluated(self, one, tmp_path):
    torch.save(torch.randn(50, 64) * 0.2, tmp_path / 'a.pt')
    import_table.import_table(
      'spring-pt',
      str(tmp_path / 'a.pt'),
      str(one / 'base'),
      str(tmp_path / 'run'),
    )
    cfg = eval_config.Config(
      workdir=str(tmp_path / 'evaluated'),
      runs=(str(tmp_path / 'run'),),
      data=eval_config.Data(
        sources=(str(one / 'run' / 'questions.jsonl'),),
        max_prefix_tokens=200,
        max_suffix_tokens=160,
      ),
      conditions=('prompt', 'tokens'),
      num_active=(50, 3),
      num_passages=(2,),
      decode=config.Decode(batch_size=4, max_new_tokens=4),
      report=eval_config.Report(resamples=50, permutations=50),
    )
    eval_config.validate(cfg)
    found = evaluate.evaluate(cfg, stopping.StopRequest())
    assert sum(cell['n'] for cell in found['cells']) == 3 * 12

  @pytest.mark.parametrize(
    'value, message',
    [
      (lambda: torch.zeros(3), r'expected a tensor \[n, D\]'),
      (lambda: {'a': torch.zeros(3, 4)}, 'got a dict'),
      (lambda: torch.zeros(3, 4, dtype=torch.int32), 'floating-point'),
      (lambda: torch.full((3, 4), float('nan')), 'NaN'),
      (lambda: torch.eye(3).to_sparse(), 'torch.sparse_coo on cpu'),
      (lambda: torch.zeros(3, 4, device='meta'), 'torch.strided on meta'),
      # A few bytes in the file.
      (
        lambda: torch.zeros(1).expand(10**5, 10**6),
        'a plain tensor of at most',
      ),
      (lambda: torch.nn.Linear(2, 2), 'code that would have to be run'),
    ],
  )
  def test_refused(self, value, message, tmp_path):
    torch.save(value(), tmp_path / 'a.pt')
    with pytest.raises(errors.UserError, match=message):
      spring_file.read(str(tmp_path / 'a.pt'))

  def test_no_torch_file(self, tmp_path):
    (tmp_path / 'a.pt').write_bytes(b'text')
    with pytest.raises(errors.UserError, match='not a tensor'):
      spring_file.read(str(tmp_path / 'a.pt'))
    with pytest.raises(errors.UserError, match='not found'):
      spring_file.read(str(tmp_path / 'b.pt'))

  def test_too_large(self, tmp_path):
    with (tmp_path / 'a.pt').open('wb') as file:
      file.truncate(1 << 30)
    with pytest.raises(errors.UserError, match='more than any table'):
      spring_file.read(str(tmp_path / 'a.pt'))

  def test_larger_once_unpacked(self, tmp_path):
    torch.save(torch.zeros(50, 4096), tmp_path / 'a.pt')
    with (
      zipfile.ZipFile(tmp_path / 'a.pt') as plain,
      zipfile.ZipFile(tmp_path / 'b.pt', 'w', zipfile.ZIP_DEFLATED) as packed,
    ):
      for name in plain.namelist():
        packed.writestr(name, plain.read(name))
    assert (tmp_path / 'b.pt').stat().st_size < 5000
    assert torch.load(tmp_path / 'b.pt').shape == (50, 4096)
    with pytest.raises(errors.UserError, match='in it is compressed'):
      spring_file.read(str(tmp_path / 'b.pt'))

  def test_as_written_before_pytorch_1_6(self, tmp_path):
    tensor = torch.randn(50, 64)
    torch.save(tensor, tmp_path / 'a.pt', _use_new_zipfile_serialization=False)
    found = spring_file.read(str(tmp_path / 'a.pt'))
    np.testing.assert_array_equal(found, tensor.numpy())

  def test_a_pytorch_that_may_run_code(self, tmp_path, monkeypatch):
    torch.save(torch.zeros(50, 64), tmp_path / 'a.pt')
    version = type(torch.__version__)('2.9.1+cpu')
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(errors.UserError, match=r'pip install .torch>=2\.10'):
      spring_file.read(str(tmp_path / 'a.pt'))

  def test_other_width(self, one, tmp_path):
    torch.save(torch.zeros(50, 4096), tmp_path / 'a.pt')
    with pytest.raises(errors.UserError, match='a width of 64'):
      import_table.import_table(
        'spring-pt',
        str(tmp_path / 'a.pt'),
        str(one / 'base'),
        str(tmp_path / 'run'),
      )
    assert not (tmp_path / 'run').exists()


class TestGate:
  """What is wrong is not exported."""

  def _refused(self, one, kind, match, tmp_path, settings=trained_runs.quick):
    with pytest.raises(errors.UserError, match=match):
      export.export(settings(one / 'run'), kind, str(tmp_path / 'out'))
    assert not list(tmp_path.iterdir())

  def test_rows_that_differ(self, one, tmp_path, monkeypatch):
    monkeypatch.setattr(
      export_format.Placement, 'stored', lambda self, table: table * 1.01
    )
    self._refused(one, 'hf', 'logits at answer positions', tmp_path)

  def test_rows_in_the_wrong_order(self, one, tmp_path, monkeypatch):
    grown = hf_checkpoint.with_more_rows

    def swapped(matrix, rows):
      return np.ascontiguousarray(grown(matrix, rows)[:, ::-1])

    monkeypatch.setattr(hf_checkpoint, 'with_more_rows', swapped)
    self._refused(one, 'hf', 'that differ from the base', tmp_path)

  def test_names_that_get_lost(self, one, tmp_path, monkeypatch):
    # As tokenizer.add_tokens does it, which is how the authors' recipe loses
    # all of them.
    write_json = writers.write_json

    def normalized(path, values, indent=2):
      for token in [
        *values.get('added_tokens', []),
        *values.get('added_tokens_decoder', {}).values(),
      ]:
        if token['content'].startswith('[ref'):
          token['normalized'] = True
      write_json(path, values, indent)

    monkeypatch.setattr(writers, 'write_json', normalized)
    self._refused(one, 'hf', 'names of virtual tokens recognised', tmp_path)

  def test_tokens_that_would_be_said(self, one, tmp_path, monkeypatch):
    head = hf_checkpoint.changed_head

    def loud(matrix, plan):
      found = head(matrix, plan)
      found[list(plan.tokens.ids)] = 10 * found[5:10]
      return found

    monkeypatch.setattr(hf_checkpoint, 'changed_head', loud)
    self._refused(
      one,
      'hf',
      '(?s)which is not said: 0, of id .*virtual tokens among sampled',
      tmp_path,
      trained_runs.settings,
    )

  def test_a_head_of_old_rows_that_differ(self, one, tmp_path, monkeypatch):
    head = hf_checkpoint.changed_head

    def changed(matrix, plan):
      found = head(matrix, plan)
      found[7, 3] = np.nextafter(found[7, 3], np.float32(9))
      return found

    monkeypatch.setattr(hf_checkpoint, 'changed_head', changed)
    self._refused(one, 'hf', 'that differ from the base', tmp_path)

  def test_tokens_that_are_not_suppressed(self, one, tmp_path, monkeypatch):
    monkeypatch.setattr(
      hf_checkpoint,
      'write_generation_config',
      lambda base, out, *_: (out / 'generation_config.json').write_text('{}'),
    )
    self._refused(one, 'hf', 'in suppress_tokens of generation', tmp_path)

  def test_answers_that_do_not_end(self, one, tmp_path, monkeypatch):
    monkeypatch.setattr(
      hf_checkpoint,
      'write_generation_config',
      lambda base, out, plan, end: (out / 'generation_config.json').write_text(
        json.dumps({'suppress_tokens': plan.tokens.ids, 'eos_token_id': 1})
      ),
    )
    self._refused(one, 'hf', 'has what ends an answer', tmp_path)

  def test_fewer_questions_than_asked_for(self, one, tmp_path):
    with pytest.raises(
      errors.UserError, match='100 questions, but there are 12'
    ):
      export.export(
        trained_runs.settings(one / 'run', gate=export_config.Gate()),
        'hf',
        str(tmp_path / 'out'),
      )
    assert not list(tmp_path.iterdir())

  def test_an_existing_directory_stays(self, one, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a').write_text('mine')
    with pytest.raises(errors.UserError, match='never replaced'):
      export.export(
        trained_runs.settings(one / 'run'), 'vtokens', str(tmp_path / 'out')
      )
    assert (tmp_path / 'out' / 'a').read_text() == 'mine'

  def test_name_of_a_token(self, one, tmp_path):
    settings = trained_runs.settings(one / 'run', names='<0x0{i}>')
    with pytest.raises(errors.UserError, match="has a token '<0x01>' already"):
      export.export(settings, 'hf', str(tmp_path / 'out'))


class TestCheckpoint:
  """Files of a base as they may be; without the gate."""

  def _write(self, root):
    source = trained_table.read(str(root / 'run'))
    base, out = str(root / 'base'), root / 'out'
    placement = hf_checkpoint.place(source.table, source.base, base)
    out.mkdir()
    end = hf_checkpoint.answer_end(source.table, source.base)
    hf_checkpoint.write(out, source.table, placement, base, end)
    return out, placement

  @pytest.fixture
  def plain(self, tmp_path):
    family_models.save(tmp_path / 'base', 'llama2')
    trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
    return tmp_path

  def test_links_of_a_cache(self, plain):
    """What is linked is the file, not the link to it."""
    blobs = plain / 'blobs'
    blobs.mkdir()
    for file in [*(plain / 'base').iterdir()]:
      file.rename(blobs / file.name)
      file.symlink_to(pathlib.Path('..', 'blobs', file.name))
    out, _ = self._write(plain)
    assert not any(file.is_symlink() for file in out.iterdir())
    linked = [f for f in out.iterdir() if f.stat().st_nlink > 1]
    assert linked
    assert all(file.samefile(blobs / file.name) for file in linked)
    # Those that are written are files of their own.
    assert {'config.json', 'tokenizer.json'}.isdisjoint(f.name for f in linked)

  def test_another_file_system(self, plain, monkeypatch):
    def link(source, target):
      raise OSError(errno.EXDEV, 'Invalid cross-device link')

    monkeypatch.setattr(os, 'link', link)
    out, _ = self._write(plain)
    assert not any(file.stat().st_nlink > 1 for file in out.iterdir())
    transformers.AutoModelForCausalLM.from_pretrained(out)

  @pytest.mark.parametrize(
    'before, after',
    [
      (None, [332]),
      ({}, [332]),
      ({'eos_token_id': 332}, 332),
      # What ends a text, while answers end with the turn.
      ({'eos_token_id': 330}, [330, 332]),
      ({'eos_token_id': [330, 332], 'suppress_tokens': [7]}, [330, 332]),
    ],
  )
  def test_generation_config(self, before, after, tmp_path):
    base = tmp_path / 'base'
    family_models.save(base, 'qwen')
    family_models.add_chat_template(base)
    file = base / 'generation_config.json'
    file.unlink()
    if before is not None:
      file.write_text(json.dumps({**before, 'repetition_penalty': 1.1}))
    values = json.loads((base / 'config.json').read_text())
    values['eos_token_id'] = None
    (base / 'config.json').write_text(json.dumps(values))
    trained_runs.write_run(tmp_path / 'run', base, chat=True)
    out, plan = self._write(tmp_path)
    found = json.loads((out / file.name).read_text())
    assert found['eos_token_id'] == after
    old = (before or {}).get('suppress_tokens', [])
    assert found['suppress_tokens'] == [*old, *plan.tokens.ids]
    # The base's own way to answer stays.
    assert ('repetition_penalty' in found) == (before is not None)


def _put_in_cache(cache, name, files):
  """Files as the hub's client lays them out."""
  repository = cache / f'models--{name.replace("/", "--")}'
  (repository / 'blobs').mkdir(parents=True)
  snapshot = repository / 'snapshots' / COMMIT
  snapshot.mkdir(parents=True)
  (repository / 'refs').mkdir()
  (repository / 'refs' / 'main').write_text(COMMIT)
  for file in files:
    blob = repository / 'blobs' / f'blob-{file.name}'
    blob.write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(pathlib.Path('../../blobs', blob.name))


COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.mark.parametrize('revision', ['', f'@{COMMIT}'])
def test_a_table_and_a_base_of_the_hub(revision, one, tmp_path, monkeypatch):
  cache = tmp_path / 'hub'
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  file = tmp_path / 'llama2.7b.chat.added_token_embeddings.pt'
  torch.save(torch.randn(50, 64) * 0.2, file)
  _put_in_cache(cache, 'yutaozhu94/SPRING', [file])
  _put_in_cache(cache, 'meta-llama/Llama-2', (one / 'base').iterdir())
  with pytest.raises(errors.UserError, match=r'other.pt: cannot be had'):
    import_table.import_table(
      'spring-pt',
      'hub:yutaozhu94/SPRING/other.pt',
      'meta-llama/Llama-2',
      str(tmp_path / 'run'),
    )
  with pytest.raises(errors.UserError, match='expected hub:ORG/NAME/FILE'):
    import_table.import_table('spring-pt', 'hub:x', '', str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  import_table.import_table(
    'spring-pt',
    f'hub:yutaozhu94/SPRING{revision}/{file.name}',
    'meta-llama/Llama-2',
    str(tmp_path / 'run'),
  )
  settings = trained_runs.quick(
    tmp_path / 'run', data=(str(one / 'run' / 'questions.jsonl'),)
  )
  if revision:
    return  # The rest is the same.
  export.export(settings, 'hf', str(tmp_path / 'out'))
  meta = plug.load(tmp_path / 'out').meta
  assert (meta.base.id, meta.base.revision) == ('meta-llama/Llama-2', COMMIT)
  assert meta.training['imported']['revision'] == COMMIT
  assert len(meta.tokens.ids) == 50
  assert (
    'base_model: "meta-llama/Llama-2"'
    in (tmp_path / 'out' / 'README.md').read_text()
  )


def test_a_base_that_has_moved(tmp_path):
  family_models.save(tmp_path / 'base', 'llama2')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  (tmp_path / 'base').rename(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match='base does not exist'):
    trained_table.read(str(tmp_path / 'run'))
  export.export(
    trained_runs.quick(tmp_path / 'run', base=str(tmp_path / 'elsewhere')),
    'vtokens',
    str(tmp_path / 'out'),
  )
  meta = plug.load(tmp_path / 'out').meta
  assert meta.base.id == 'base'
  family_models.save(tmp_path / 'base', 'llama3')
  with pytest.raises(errors.UserError, match='on another base'):
    trained_table.read(str(tmp_path / 'run'))


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_stopped_in_the_middle(name, one, tmp_path, monkeypatch):
  class Stopped(vtokens_format.VtokensFormat):
    def write(self, job):
      (job.directory / 'half').write_text('half')
      try:
        os.kill(os.getpid(), signal.Signals[name])
      except Exception:  # As libraries do it.
        pytest.fail('caught')
      pytest.fail('went on')

  monkeypatch.setitem(export_format.FORMATS, 'vtokens', Stopped())
  with pytest.raises(SystemExit) as stopped:
    export.export(
      trained_runs.quick(one / 'run'), 'vtokens', str(tmp_path / 'out')
    )
  assert stopped.value.code == 128 + signal.Signals[name]
  assert not list(tmp_path.iterdir())


def test_what_a_killed_export_has_left(one, tmp_path, monkeypatch, capsys):
  left = tmp_path / 'out.partial-0123'
  left.mkdir()

  class Unchecked(vtokens_format.VtokensFormat):
    def check(self, job):
      return []

  monkeypatch.setitem(export_format.FORMATS, 'vtokens', Unchecked())
  export.export(
    trained_runs.quick(one / 'run'), 'vtokens', str(tmp_path / 'out')
  )
  assert f'{left}: left by a killed program' in capsys.readouterr().out
  # It may be that of an export that runs.
  assert sorted(tmp_path.iterdir()) == [tmp_path / 'out', left]


# In a process of its own, whose other files are not to be limited.
_FULL = """
import pathlib, resource, signal, sys
import gguf_runs, trained_runs, family_models
import numpy as np
from vtokens.host import errors
from vtokens import export
from vtokens.exports import reference

def probe(opened, *_, **unused):
  logits = np.zeros((1, opened.config.vocab_size))
  return [reference.Probe(None, (), (), (0,), logits)]

# What our own model says is of no matter here.
reference.probe = probe
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = pathlib.Path(sys.argv[1])
for name in ('hf', 'gguf'):
  (root / name).mkdir()
family_models.save(root / 'hf' / 'base', 'qwen')
trained_runs.write_run(root / 'hf' / 'run', root / 'hf' / 'base')
gguf_runs.save(root / 'gguf', 'llama_tied_q4_0')
for base, kind, limit in (
  ('hf', 'vtokens', 1000),
  ('hf', 'spring-pt', 1000),
  ('hf', 'hf', 30_000),
  ('hf', 'peft', 3000),
  ('gguf', 'hf', 30_000),
  ('gguf', 'gguf', 30_000),
):
  whole = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))
  try:
    settings = trained_runs.quick(root / base / 'run')
    export.export(settings, kind, str(root / base / 'out'))
  except errors.UserError as e:
    print('refused', base, kind, str(e).splitlines()[0])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, whole)
  left = sorted(path.name for path in (root / base).glob('*out*'))
  print('left', left)
"""


def test_a_full_disk(tmp_path):
  """As on one: files cannot grow beyond a limit."""
  root = pathlib.Path(__file__).parents[1]
  done = subprocess.run(
    [sys.executable, '-c', _FULL, str(tmp_path)],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'PYTHONPATH': f'{root}{os.pathsep}{root / "tests" / "support"}',
      'JAX_PLATFORMS': 'cpu',
    },
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  refused = [line for line in lines if line.startswith('refused')]
  assert len(refused) == 6
  assert all('/out: not written: ' in line for line in refused), refused
  assert [line for line in lines if line.startswith('left')] == ['left []'] * 6


class TestArtifact:
  @pytest.fixture
  def exported(self, one, tmp_path):
    artifact.write(tmp_path, trained_table.read(str(one / 'run')).table)
    return tmp_path

  def _change(self, exported, change):
    path = exported / 'vtokens.json'
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))

  @pytest.mark.parametrize(
    'change, message',
    [
      (lambda v: v.update(format=3), 'expected "format": 1 or 2, which'),
      (lambda v: v.update(format=[1]), 'expected "format": 1 or 2, which'),
      (lambda v: v.update(format=2), 'kind is missing'),
      (lambda v: v.update(format=2, kind='table'), "kind: expected 'kv' with"),
      (lambda v: v.update(format=2, kind='kv'), '5 names for keys and values'),
      (lambda v: v.pop('base'), 'not as vtokens.export writes it'),
      (lambda v: v['base'].pop('id'), 'not as vtokens.export writes it'),
      (lambda v: v['tokens']['ids'].pop(), '4 ids and 5 names'),
      (
        lambda v: v.update(table_sha256='0'),
        'it is not the file of the export',
      ),
      (lambda v: v.update(shape=[5, 63]), r'holds a table \[5, 64\], expected'),
      (lambda v: v.update(shape=[]), r'5 names for a table \[\]'),
      (lambda v: v.update(num_trained=6), 'from 1 to 5, got 6'),
      (lambda v: v.update(num_trained='5'), 'num_trained: expected a whole'),
      (lambda v: v['base'].update(vocab_size='9'), 'base.vocab_size: expected'),
      (lambda v: v['base'].update(vocab_size=0), 'base.vocab_size: expected'),
      (lambda v: v['base'].update(more=0), "'more'; it is not as vtokens.exp"),
      (lambda v: v['prompt'].update(position='end'), 'position: .* first'),
      (lambda v: v['prompt'].update(max_prefix_tokens=None), 'max_prefix_tok'),
      (lambda v: v['prompt'].update(max_suffix_tokens=0), 'max_suffix_tokens'),
      (
        lambda v: v['prompt']['templates'].update(passage=''),
        'templates.passage: expected the placeholder {text}',
      ),
      (lambda v: v['tokens'].update(probe=['1']), r'probe\[0\]: expected'),
      (lambda v: v['tokens']['names'].__setitem__(0, None), r'names\[0\]: exp'),
      (lambda v: v['tokens']['names'].__setitem__(0, ''), 'one is empty'),
      (lambda v: v['tokens'].update(names=['a'] * 5), 'or there twice'),
      (lambda v: v['tokens'].update(ids=[7] * 5), 'or there twice'),
      (lambda v: v['tokens']['ids'].__setitem__(0, -1), 'one is below 0'),
      (lambda v: v.update(metrics=[]), 'metrics: expected an object'),
      (
        lambda v: v['metrics']['k']['5'].update(em='3'),
        'metrics.k.5.em: expected a number',
      ),
      (
        lambda v: v['training']['config'].update(base=7),
        'training.config.base: expected an object',
      ),
      (
        lambda v: v['prompt']['templates'].update(prompt=3),
        'not as vtokens.export writes it',
      ),
    ],
  )
  def test_broken(self, exported, change, message):
    self._change(exported, change)
    with pytest.raises(errors.UserError, match=message):
      artifact.read(exported)

  def test_missing(self, tmp_path):
    with pytest.raises(errors.UserError, match='cannot be read'):
      artifact.read(tmp_path)

  def test_where_earlier_versions_wrote_it(self, exported):
    expected = artifact.read(exported)
    old = exported / 'vtokens.safetensors'
    (exported / artifact.TABLE).rename(old)
    (exported / artifact.TABLE).parent.rmdir()
    found = artifact.read(exported)
    assert found.meta == expected.meta
    np.testing.assert_array_equal(found.table, expected.table)
    table_file.save(old, expected.table + 1, {})
    with pytest.raises(errors.UserError, match=f'SHA-256 of {old} is'):
      artifact.read(exported)
    # Of two, the one of this version.
    artifact.write(exported, expected)
    np.testing.assert_array_equal(artifact.read(exported).table, expected.table)

  def test_comes_back(self, exported):
    table = artifact.read(exported)
    again = exported / 'again'
    artifact.write(again, table)
    for name in (artifact.TABLE, artifact.META):
      assert (again / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--to=hf', '--out=x'], 'config.workdir: expected to be set'),
    (['--config.workdir=x', '--to=onnx', '--out=y'], '--to: expected one of'),
    (['--config.workdir=x', '--to=hf'], '--out: a directory is needed'),
    (['--config.workdir=x', '--to=hf', '--out=y'], 'no finished run'),
    (
      ['--config.workdir=x', '--config.names=t', '--to=hf', '--out=y'],
      'config.names: expected a text with {i}',
    ),
    (
      ['--config.workdir=x', '--config.names={i.a}', '--to=hf', '--out=y'],
      'config.names: expected a text with {i}',
    ),
    (['--config.workdir=x', '--to=hf', '--out=gs://b/y'], 'on a disk'),
    (['--config.workdir=x', '--to=hf', '--out=/proc/y'], 'cannot be written'),
    (['--config.gat.logits=3'], "did you mean 'gate'"),
  ],
)
def test_command_line(arguments, message, tmp_path):
  result = subprocess.run(
    [sys.executable, '-m', 'vtokens.export', *arguments],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 1
  assert message in result.stderr
  assert 'Traceback' not in result.stderr
