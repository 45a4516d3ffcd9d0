"""Lists of what is supported, and what `vtokens models PATH` says."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import tiny_models
import wrapped_models
from transformers.models.auto import modeling_auto

from vtokens.host import errors
from vtokens.models import supported
from vtokens.models.families import refused, registry, wrappers

_ROOT = pathlib.Path(__file__).parents[2]


def test_every_type_of_transformers_is_supported_or_refused_with_a_reason():
  """A type of a new release is in neither list, and fails here."""
  known = {
    *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
  }
  ours = {*registry.families(), *wrappers.WRAPPERS}
  # Some text parts are types of their own.
  assert (
    not known - ours - wrappers.TEXT_TYPES.keys() - refused.reasons().keys()
  )
  # Nor is anything refused that is supported, or unknown there.
  assert not ours & refused.reasons().keys()
  assert not refused.reasons().keys() - known
  assert not ours - known


def test_a_refusal_says_why():
  fields = {'model_type': 'dbrx'}
  with pytest.raises(errors.UserError, match=r'dbrx.*mixture of experts'):
    registry.from_hf(fields)


def test_every_family_is_described():
  for family in registry.families().values():
    about = family.about
    assert about.models and about.beyond and 0 < about.difference < 2e-4


def test_the_page_has_the_tables():
  """docs/models.md has what `vtokens models --markdown` prints."""
  page = (_ROOT / 'docs' / 'models.md').read_text()
  tables = supported.families(), supported.multimodal(), supported.quantised()
  for table in tables:
    assert table.markdown() in page


def test_the_numbers_of_the_readme():
  found = re.findall(r'^\| (\d+) ', (_ROOT / 'README.md').read_text(), re.M)
  tables = supported.families(), supported.multimodal(), supported.quantised()
  assert found == [str(len(table.rows)) for table in tables]


def test_a_base_that_loads(tmp_path):
  wrapped_models.save(tmp_path, 'qwen3_vl')
  lines, loads = supported.describe(str(tmp_path))
  text = '\n'.join(lines)
  assert loads
  assert 'qwen3_vl: a multimodal model' in text
  assert 'model_type qwen3_vl_text' in text
  # Counted by hand: embedding, head, final norm; norms, attention, MLP.
  layer = 2 * 32 + 2 * 8 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
  assert f'parameters: {2 * 320 * 32 + 32 + 2 * layer:,}' in text


def test_a_base_that_does_not_load(tmp_path):
  """The type is told although the weights are broken."""
  tiny_models.save(tmp_path, num_hidden_layers=1)
  config = tmp_path / 'config.json'
  values = json.loads(config.read_text())
  config.write_text(json.dumps({**values, 'model_type': 'deepseek_v4'}))
  (tmp_path / 'model.safetensors').write_bytes(b'broken')
  lines, loads = supported.describe(str(tmp_path))
  assert not loads
  assert lines[0].endswith('model_type deepseek_v4')
  assert 'does not load' in lines[1] and 'hyper-connections' in lines[1]


def test_the_command(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'vtokens', 'models', str(tmp_path / 'none')],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (1, '')
  assert 'none: not found' in done.stderr
