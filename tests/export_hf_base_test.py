"""Tests of `--to hf-base`: a base in GGUF for what reads no GGUF."""

import json
import re

import family_models
import gguf
import gguf_models
import gguf_runs
import numpy as np
import pytest
import safetensors.torch
import tiny_models
import torch
import trained_runs
import transformers

from vtokens import config, export
from vtokens.exports import trained_table
from vtokens.exports.formats import hf_base_format
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving import artifact, plug


@pytest.mark.parametrize('case', ['llama_tied_q4_0', 'gemma3_tied_f16'])
def test_exported(case, tmp_path):
  # With products as in the quickstart; the weights are those of the file.
  base = gguf_runs.save(tmp_path, case, quantize='bfloat16')
  out = tmp_path / 'out'
  settings = gguf_runs.settings(tmp_path, questions=4, logits=2)
  export.export(settings, 'hf-base', str(out))
  found = json.loads((out / 'gate.json').read_text())
  assert found['passed'] and len(found['checks']) == 8
  # As transformers itself reads the file.
  expected = transformers.AutoModelForCausalLM.from_pretrained(
    base.parent, gguf_file=base.name, dtype=torch.float32
  ).state_dict()
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert model.dtype == torch.float32
  tensors = model.state_dict()
  assert tensors.keys() == expected.keys()
  for name, tensor in tensors.items():
    torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
  # No rows are added, and the table is beside it.
  [rows] = [
    int(tensor.shape[1])
    for tensor in gguf.GGUFReader(base).tensors
    if tensor.name == 'token_embd.weight'
  ]
  assert model.config.vocab_size == rows
  table = plug.load(out)
  assert table.meta.tokens.ids[0] == rows
  np.testing.assert_array_equal(
    table.table, trained_table.read(str(tmp_path / 'run')).table.table
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  ids = plug.prompt_ids(
    tokenizer, trained_runs.PASSAGES, trained_runs.QUESTION, 5, table.meta
  )
  assert ids == plug.prompt_ids(
    gguf_tokenizer.read_tokenizer(base),
    trained_runs.PASSAGES,
    trained_runs.QUESTION,
    5,
    table.meta,
  )
  ends = model.generation_config.eos_token_id
  assert tokenizer.eos_token_id in ([ends] if isinstance(ends, int) else ends)


def test_a_directory_is_one_already(tmp_path):
  family_models.save(tmp_path / 'base', 'llama2')
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  with pytest.raises(errors.UserError, match='servers read as it is'):
    export.export(
      trained_runs.quick(tmp_path / 'run'), 'hf-base', str(tmp_path / 'out')
    )
  assert not (tmp_path / 'out').exists()


class TestGate:
  """What is not the base's is found."""

  @pytest.fixture(scope='class')
  def place(self, tmp_path_factory):
    root = tmp_path_factory.mktemp('gate')
    gguf_runs.save(root, 'qwen2_f32_2_spare')
    return root

  @pytest.fixture
  def written(self, place, tmp_path):
    source = trained_table.read(str(place / 'run'))
    hf_base_format.write(tmp_path / 'out', source.base)
    artifact.write(tmp_path / 'out', source.table)
    return tmp_path / 'out', source.base

  @pytest.mark.parametrize(
    'change, said',
    [
      (lambda t: t['model.norm.weight'].add_(1e-6), '1 differ'),
      (lambda t: t.pop('model.norm.weight'), '1 are missing'),
      (lambda t: t.update(more=torch.zeros(1)), r"1 differ \['more'\]"),
    ],
  )
  def test_tensors(self, written, change, said):
    out, opened = written
    assert hf_base_format.same_tensors(out, opened).passed
    file = out / 'model.safetensors'
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, {'format': 'pt'})
    check = hf_base_format.same_tensors(out, opened)
    assert not check.passed
    assert re.search(said, check.found)

  @pytest.mark.parametrize(
    'architecture, changes, tensor',
    [
      (
        'granitehybrid',
        {
          'model_type': 'granitemoehybrid',
          'num_local_experts': 4,
          'shared_intermediate_size': 40,
          'layer_types': ['linear_attention', 'full_attention'],
          'mamba_n_heads': 4,
          'mamba_d_head': 16,
          'mamba_n_groups': 2,
          'mamba_d_state': 8,
        },
        'model.layers.0.mamba.conv1d.weight',
      ),
      # A tensor for each expert.
      pytest.param(
        'qwen3moe',
        {
          'model_type': 'qwen3_moe',
          'num_experts': 4,
          'head_dim': 8,
          'moe_intermediate_size': 48,
          'norm_topk_prob': True,
        },
        'model.layers.1.mlp.experts.0.up_proj.weight',
        marks=pytest.mark.exhaustive,
      ),
    ],
  )
  def test_tensors_that_the_file_has_otherwise(
    self, architecture, changes, tensor, tmp_path
  ):
    reference = tiny_models.save(
      tmp_path / 'hf',
      vocab_size=400,
      **{'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2},
      **{'num_experts_per_tok': 2, **changes},
    )
    base = tmp_path / 'base.gguf'
    tokenizer = gguf_models.tokenizer('llama3', 400)
    gguf_models.write(base, architecture, reference, tokenizer=tokenizer)
    opened = frozen_base.open_base(config.Base(str(base)))
    out = tmp_path / 'out'
    hf_base_format.write(out, opened)
    check = hf_base_format.same_tensors(out, opened)
    assert check.passed, check.found
    file = out / 'model.safetensors'
    tensors = safetensors.torch.load_file(file)
    tensors[tensor].view(-1)[-1] += 1e-6
    safetensors.torch.save_file(tensors, file, {'format': 'pt'})
    found = hf_base_format.same_tensors(out, opened).found
    assert found.startswith(f"1 differ ['{tensor}']")

  def test_ids(self, written, place):
    out, _ = written
    file = out / 'tokenizer.json'
    text = file.read_text()
    path = str(place / 'base.gguf')

    def passed():
      tokenizer = transformers.AutoTokenizer.from_pretrained(out)
      return [
        c.passed for c in hf_base_format.same_ids(tokenizer, path, ['In 1859.'])
      ]

    assert passed() == [True, True]
    values = json.loads(text)
    # Not the normaliser: transformers has its own for Qwen 2.
    values['model'] |= {'merges': [], 'ignore_merges': False}
    file.write_text(json.dumps(values))
    assert passed() == [True, False]
