"""Tests of `--to gguf`: tiny files of many kinds, and SmolLM2, in llama.cpp."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import family_models
import gguf
import gguf_models
import gguf_runs
import numpy as np
import pytest
import trained_runs
import transformers

from vtokens import export
from vtokens.data import records
from vtokens.exports import (
  export_format,
  exporting,
  reference,
  torch_consumer,
  trained_table,
)
from vtokens.exports.gguf import (
  gguf_copy,
  gguf_file,
  llama_consumer,
  llama_gate,
)
from vtokens.host import errors
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving import plug, table_file

ROWS = trained_runs.ROWS
Type = gguf.GGMLQuantizationType


def _tensors(path):
  return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _values(tensor):
  return gguf.dequantize(tensor.data, tensor.tensor_type)


# In a process of its own: llama.cpp may end it.
_BIT_BY_BIT = """
import ctypes, sys
import llama_cpp as l
import numpy as np
base, export, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
quiet = l.llama_log_callback(lambda *_: None)
l.llama_log_set(quiet, ctypes.c_void_p(0))
l.llama_backend_init()
ids = np.random.default_rng(0).integers(3, count, size=60).tolist()

def logits(path):
  model = l.llama_model_load_from_file(
    path.encode(), l.llama_model_default_params()
  )
  params = l.llama_context_default_params()
  params.n_ctx = params.n_batch = params.n_ubatch = 64
  context = l.llama_init_from_model(model, params)
  batch = l.llama_batch_init(64, 0, 1)
  batch.n_tokens = len(ids)
  for i, token in enumerate(ids):
    batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
  assert l.llama_decode(context, batch) == 0
  size = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
  found = l.llama_get_logits(context)
  return np.ctypeslib.as_array(found, shape=(len(ids), size)).copy()

before, after = logits(base), logits(export)
assert np.isfinite(before).all() and before.std() > 0.1
assert np.array_equal(before[:, :count], after[:, :count])
print('bit by bit')
"""


def _assert_logits_are_those_of_the_base(base, out, count):
  """All logits at all positions, through the other binding of llama.cpp."""
  pytest.importorskip('llama_cpp')
  found = subprocess.run(
    [sys.executable, '-c', _BIT_BY_BIT, str(base), str(out), str(count)],
    capture_output=True,
    text=True,
  )
  assert found.stdout == 'bit by bit\n', found.stderr


_REFUSED = 'phi_f32'


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(
      case, marks=[pytest.mark.exhaustive] if case == 'granite_tied_f32' else []
    )
    for case in gguf_runs.CASES
    if case != _REFUSED
  ],
)
def test_exported(case, tmp_path):
  base = gguf_runs.save(tmp_path, case)
  out = tmp_path / 'out'
  export.export(gguf_runs.settings(tmp_path), 'gguf', str(out))
  gate = json.loads((out / 'gate.json').read_text())
  assert gate['passed']
  assert len(gate['checks']) == 11
  assert sorted(path.name for path in out.iterdir()) == [
    'README.md',
    'gate.json',
    'model.gguf',
    'virtual_tokens',
    'vtokens.json',
  ]
  before, after = _tensors(base), _tensors(out / 'model.gguf')
  ids = list(plug.load(out).meta.tokens.ids)
  old_fields = gguf_copy.read_fields(gguf.GGUFReader(base), '')
  fields = gguf_copy.read_fields(gguf.GGUFReader(out / 'model.gguf'), '')
  kinds = old_fields['tokenizer.ggml.token_type'].value
  first = next((i for i, kind in enumerate(kinds) if kind == 5), len(kinds))
  assert ids == list(range(first, first + ROWS))
  # Values, as the base has them and as the run has them.
  table, _ = table_file.load(tmp_path / 'run' / 'table.safetensors')
  found = _values(after['token_embd.weight'])
  assert len(found) == max(len(kinds), first + ROWS)
  np.testing.assert_array_equal(found[ids], table)
  old = np.setdiff1d(np.arange(len(kinds)), ids)
  np.testing.assert_array_equal(
    found[old], _values(before['token_embd.weight'])[old]
  )
  # The head: of its own, in the old type, and of as many rows.
  head = before.get('output.weight', before['token_embd.weight'])
  new = after['output.weight']
  assert new.tensor_type == head.tensor_type == gguf_runs.CASES[case][2]
  np.testing.assert_array_equal(new.data[old], head.data[old])
  assert len(new.data) == len(found)
  # None of the rest changes.
  for name in before.keys() - {'token_embd.weight', 'output.weight'}:
    assert after[name].tensor_type == before[name].tensor_type
    np.testing.assert_array_equal(after[name].data, before[name].data)
  assert after.keys() == {*before, 'output.weight'}
  # Metadata: the same but for the tokens.
  size = f'{gguf_runs.CASES[case][0]}.vocab_size'
  changed = {
    'tokenizer.ggml.tokens',
    'tokenizer.ggml.token_type',
    'tokenizer.ggml.scores',
    'tokenizer.ggml.suppress_tokens',
    size,
  }
  assert b'/home/maker' in base.read_bytes()
  assert b'/home/maker' not in (out / 'model.gguf').read_bytes()
  kept = {name for name in old_fields if not name.startswith('quantize.')}
  assert fields.keys() == {*kept, 'tokenizer.ggml.suppress_tokens'}
  assert fields['tokenizer.ggml.suppress_tokens'].value == ids
  for name in fields.keys() - changed:
    assert fields[name] == old_fields[name]
  names = fields['tokenizer.ggml.tokens'].value
  assert [names[i] for i in ids] == [b'[ref%d]' % (i + 1) for i in range(ROWS)]
  assert len(names) == len(found) == len(set(names))
  types = fields['tokenizer.ggml.token_type'].value
  assert {types[i] for i in ids} == {3}
  assert len(types) == len(found)
  if 'tokenizer.ggml.scores' in fields:
    assert len(fields['tokenizer.ggml.scores'].value) == len(found)
  if size in fields:
    assert fields[size].value == len(found)
  # A name in a passage stays text.
  tokenizer = gguf_tokenizer.read_tokenizer(out / 'model.gguf')
  prompt = plug.prompt_ids(
    tokenizer, trained_runs.PASSAGES, 'When?', 2, plug.load(out).meta
  )
  assert [i for i in prompt if i in ids] == ids[:2]
  _assert_logits_are_those_of_the_base(base, out / 'model.gguf', first)


def test_what_is_exact_in_f16_stays_f16(tmp_path):
  base = gguf_runs.save(tmp_path, 'gemma3_tied_f16')
  file = tmp_path / 'run' / 'table.safetensors'
  table, metadata = table_file.load(file)
  table = table.astype(np.float16).astype(np.float32)
  table_file.save(file, table, metadata)
  out = tmp_path / 'out'
  export.export(gguf_runs.settings(tmp_path, questions=4), 'gguf', str(out))
  embedding = _tensors(out / 'model.gguf')['token_embd.weight']
  assert embedding.tensor_type == Type.F16
  ids = list(plug.load(out).meta.tokens.ids)
  np.testing.assert_array_equal(_values(embedding)[ids], table)
  first = ids[0]
  _assert_logits_are_those_of_the_base(base, out / 'model.gguf', first)


# kind -> where in a block its factors are, f16.
FACTORS = {
  Type.Q2_K: slice(-4, None),
  Type.Q3_K: slice(-2, None),
  Type.Q4_K: slice(0, 4),
  Type.Q5_K: slice(0, 4),
  Type.Q6_K: slice(-2, None),
  Type.IQ4_NL: slice(0, 2),
  Type.IQ4_XS: slice(0, 2),
}


@pytest.mark.parametrize('kind', FACTORS, ids=lambda kind: kind.name)
@pytest.mark.parametrize('tied', [False, True])
def test_types_that_only_llama_cpp_writes(kind, tied, tmp_path):
  family_models.save(
    tmp_path / 'hf', 'llama3', hidden_size=256, tie_word_embeddings=tied
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  rows = model.config.vocab_size
  fields = gguf_models.tokenizer('llama3', rows)
  plain, base = tmp_path / 'plain.gguf', tmp_path / 'base.gguf'
  gguf_models.write(plain, 'llama', model, tokenizer=fields)
  reader = gguf.GGUFReader(plain)
  block, size = gguf.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(0)
  blocks = rng.integers(256, size=(rows, 256 // block, size)).astype(np.uint8)
  factors = blocks[..., FACTORS[kind]]
  factors[:] = np.full(factors.shape[-1] // 2, 2.0**-9, '<f2').view(np.uint8)
  matrix = blocks.reshape(rows, -1)
  changed = gguf_copy.Tensor(
    '', kind, matrix.shape, matrix.dtype, lambda: matrix
  )
  gguf_copy.save(
    base,
    reader,
    gguf_copy.read_fields(reader, ''),
    [
      dataclasses.replace(changed, name=tensor.name)
      if tensor.name in (gguf_file.EMBEDDING, gguf_file.HEAD)
      else gguf_copy.as_it_is(tensor)
      for tensor in reader.tensors
    ],
  )
  trained_runs.write_run(tmp_path / 'run', base)
  source = trained_table.read(str(tmp_path / 'run'), '[ref{i}]')
  plan = gguf_file.place(source.table, source.base, str(base))
  out = tmp_path / 'out.gguf'
  gguf_file.write(out, source.table, plan, str(base))
  assert not gguf_file.differences(out, plan, source.table.table, str(base))
  found = _tensors(out)
  assert found['token_embd.weight'].tensor_type == Type.F32
  assert found['output.weight'].tensor_type == kind
  np.testing.assert_array_equal(found['output.weight'].data[:rows], matrix)
  _assert_logits_are_those_of_the_base(base, out, rows)


@pytest.mark.exhaustive
def test_smollm2(smollm2_path, tmp_path):
  trained_runs.write_run(tmp_path / 'run', smollm2_path)
  out = tmp_path / 'out'
  settings = gguf_runs.settings(tmp_path, questions=3, logits=1, sampled=90)
  export.export(settings, 'gguf', str(out))
  file = out / 'model.gguf'
  _assert_logits_are_those_of_the_base(smollm2_path, file, 49_152)


class TestGate:
  """What is wrong is not exported."""

  @pytest.fixture(scope='class')
  def one(self, tmp_path_factory):
    root = tmp_path_factory.mktemp('one')
    gguf_runs.save(root, 'llama_tied_q4_0')
    return root

  def _refused(self, one, match, tmp_path, **gate):
    settings = gguf_runs.settings(one, **{'questions': 4, **gate})
    with pytest.raises(errors.UserError, match='(?s)' + match):
      export.export(settings, 'gguf', str(tmp_path / 'out'))
    assert not list(tmp_path.iterdir())

  def test_rows_that_differ(self, one, tmp_path, monkeypatch):
    monkeypatch.setattr(
      export_format.Placement, 'stored', lambda self, table: table * 1.01
    )
    self._refused(one, 'with all weights as f32: log prob', tmp_path)

  def test_weights_that_differ(self, one, tmp_path, monkeypatch):
    as_it_is = gguf_copy.as_it_is

    def changed(tensor):
      found = as_it_is(tensor)
      if tensor.name != 'blk.1.ffn_down.weight':
        return found
      return dataclasses.replace(found, read=lambda: tensor.data[::-1].copy())

    monkeypatch.setattr(gguf_copy, 'as_it_is', changed)
    self._refused(
      one, 'as they should be: blk.1.ffn_down.weight.*differ from', tmp_path
    )

  def test_tokens_that_would_be_said(self, one, tmp_path, monkeypatch):
    quietest = reference.quietest
    monkeypatch.setattr(
      reference,
      'quietest',
      lambda _, probes: quietest(range(200), probes)[::-1],
    )
    monkeypatch.setattr(gguf_file, 'SUPPRESS', 'x')
    self._refused(one, 'virtual tokens among sampled ones', tmp_path)

  def test_names_that_are_text(self, one, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, 'KIND', gguf.TokenType.NORMAL)
    self._refused(one, 'names of virtual tokens recognised', tmp_path)

  def test_file_that_llama_cpp_does_not_take(self, one, tmp_path, monkeypatch):
    changed = gguf_file.changed_fields

    def short(fields, plan):
      found = changed(fields, plan)
      name = 'tokenizer.ggml.token_type'
      kinds = dataclasses.replace(found[name], value=found[name].value[:-1])
      return {**found, name: kinds}

    monkeypatch.setattr(gguf_file, 'changed_fields', short)
    self._refused(one, 'expected three equal numbers', tmp_path)


def test_a_head_with_a_bias(tmp_path):
  gguf_runs.save(tmp_path, _REFUSED)
  out = tmp_path / 'out'
  with pytest.raises(errors.UserError) as e:
    export.export(gguf_runs.settings(tmp_path), 'gguf', str(out))
  assert str(e.value).startswith(
    f'--to gguf: the head of {tmp_path / "base.gguf"} has a bias (model_type '
    'phi)'
  )
  assert not out.exists()


class _Answers:
  """A consumer of an answer and of log probabilities, whatever it is asked."""

  def __init__(self, answer, logs):
    self._answer, self._logs = answer, np.array(logs)

  def prompt_ids(self, passages, question):
    return [1, 2]

  def virtual_ids(self):
    return [3]

  def answer(self, ids, most):
    return self._answer

  def log_probabilities(self, ids, count, size):
    return np.tile(self._logs, (count, 1))


class TestCompare:
  def _compare(self, answer, logs=(-1.0, -1.0, -9.0, -9.0)):
    logits = np.tile(np.float32([-1.0, -1.0, -9.0]), (3, 1))
    record = records.Record('q', '', 'When?', ('1859',), {})
    probe = reference.Probe(record, (), (1, 2), (0, 1, 2), logits)
    return llama_gate.compare(
      _Answers(answer, logs), [probe], 3, np.arange(3), 4, 1e-4
    )

  def test_equal(self):
    found = self._compare([0, 1, 2])
    assert (found.same, found.ties, found.asked) == (1, 0, 1)
    assert found.worst < 1e-6
    np.testing.assert_allclose(found.virtual, np.exp(-9))

  def test_parts_where_either_is_as_likely(self):
    found = self._compare([0, 0, 2])
    assert (found.same, found.ties) == (0, 1)

  def test_parts_elsewhere(self):
    found = self._compare([0, 2, 2])
    assert (found.same, found.ties) == (0, 0)

  def test_llama_cpp_knows_another_end(self):
    assert self._compare([0, 1]).same == 1
    assert self._compare([0, 2]).same == 0

  def test_numbers_that_are_none(self):
    found = self._compare([0, 1, 2], (-1.0, np.nan, -9.0, -9.0))
    assert np.isnan(found.worst)


def test_a_base_that_is_no_gguf_file(tmp_path):
  family_models.save(tmp_path / 'base', 'llama2')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  with pytest.raises(errors.UserError, match=r'is no GGUF file.*convert_hf_to'):
    export.export(gguf_runs.settings(tmp_path), 'gguf', str(tmp_path / 'out'))


def test_a_base_that_can_have_no_head(tmp_path, monkeypatch):
  family = {
    **gguf_runs.CASES['gemma3_tied_f16'][4],
    'final_logit_softcapping': 30.0,
  }
  monkeypatch.setitem(
    gguf_runs.CASES, 'x', ('gemma2', 'gemma', Type.F16, {}, family)
  )
  gguf_runs.save(tmp_path, 'x')
  with pytest.raises(errors.UserError, match=r'architecture gemma2 .*--to hf'):
    export.export(gguf_runs.settings(tmp_path), 'gguf', str(tmp_path / 'out'))


def test_a_path_without_a_directory(tmp_path, monkeypatch):
  gguf_runs.save(tmp_path, 'llama_tied_q4_0')
  monkeypatch.chdir(tmp_path)
  assert torch_consumer.load_model('base.gguf').config.vocab_size == 337


def test_name_of_a_token(tmp_path):
  gguf_runs.save(tmp_path, 'llama_q8_0')
  settings = gguf_runs.settings(tmp_path)
  settings.names = '<0x0{i}>'
  with pytest.raises(errors.UserError, match="has a token '<0x01>' already"):
    export.export(settings, 'gguf', str(tmp_path / 'out'))


def test_llama_cpp_that_is_not_installed(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  for name in ('gguf', 'hf-base'):
    with pytest.raises(errors.UserError, match=f'--to {name}: .*pip install'):
      exporting.require_consumers(export_format.FORMATS[name])


def test_a_file_that_ends_llama_cpp(tmp_path):
  path = tmp_path / 'x.gguf'
  path.write_bytes(b'GGUF' + bytes(1000))
  with pytest.raises(errors.UserError, match='fails on it'):
    with llama_consumer.serve(path, 64, 'served'):
      pass
