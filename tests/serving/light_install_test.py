"""The wheel of serving/, in an environment that has only what it declares."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import venv
import zipfile

import family_models
import packaging.requirements
import pytest
import torch
import trained_runs
import transformers

from vtokens.exports import trained_table
from vtokens.serving import artifact, plug

_ROOT = pathlib.Path(__file__).parents[2]

_PROGRAM = """
import importlib.util, json, sys
import torch, transformers
from vtokens import plug, vllm_client

base, exported, passages, question = json.loads(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(base)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
table = plug.load(exported)
plug.attach(model, table)
ids = plug.prompt_ids(tokenizer, passages, question, k=3, meta=table.meta)
out = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
absent = ('jax', 'flax', 'tensorflow_datasets', 'grain', 'orbax', 'bm25s')
print(json.dumps({
  'answer': out[0, len(ids) :].tolist(),
  'client': vllm_client.Client.__name__,
  'from': plug.__file__,
  'there': [name for name in absent if importlib.util.find_spec(name)],
}))
"""


def _declared(setup):
  """The requirements in a setup.py, by name."""
  found = re.findall(r"^ +'([\w-]+)((?:\[\w+\])?[><=][^']*)'", setup, re.M)
  return dict(found)


def test_ranges_are_those_of_the_whole_package():
  light, whole = (
    _declared((_ROOT / place / 'setup.py').read_text(encoding='utf-8'))
    for place in ('serving', '')
  )
  assert len(light) > 5
  assert light.items() <= whole.items()


def _needed(requirements):
  """Names of the installed distributions that meet requirements, and theirs."""
  found = {}
  waiting = [(needed.name, frozenset(needed.extras)) for needed in requirements]
  while waiting:
    name, extras = waiting.pop()
    distribution = importlib.metadata.distribution(name)
    before = found.get(distribution.name)
    if before is not None and extras <= before:
      continue
    found[distribution.name] = extras | (before or frozenset())
    for text in distribution.requires or ():
      needed = packaging.requirements.Requirement(text)
      applies = not needed.marker or any(
        needed.marker.evaluate({'extra': extra}) for extra in extras | {''}
      )
      if applies:
        waiting.append((needed.name, frozenset(needed.extras)))
  return found


@pytest.mark.slow
def test_an_environment_without_jax(tmp_path):
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
  quiet = ['-q', '--no-deps']
  package, wheels = _ROOT / 'serving', tmp_path / 'wheels'
  subprocess.run(
    [*pip, 'wheel', *quiet, '--no-build-isolation', '-w', wheels, package],
    check=True,
  )
  [wheel] = wheels.glob('vtokens_serving-*.whl')
  with zipfile.ZipFile(wheel) as archive:
    modules = [name for name in archive.namelist() if name.endswith('.py')]
    heavy = [n for n in modules if b'\nimport jax' in archive.read(n)]
  assert heavy == [] and 'vtokens/plug.py' in modules
  venv.create(tmp_path / 'venv', symlinks=True)
  python = tmp_path / 'venv/bin/python'
  subprocess.run(
    [*pip, '--python', python, 'install', *quiet, '--no-index', wheel],
    check=True,
  )
  [site] = (tmp_path / 'venv/lib').glob('*/site-packages')
  text = (site / next(site.glob('*.dist-info/METADATA'))).read_text()
  requires = [
    packaging.requirements.Requirement(line)
    for line in re.findall(r'^Requires-Dist: (.+)$', text, re.M)
  ]
  torch_too = packaging.requirements.Requirement('torch')
  for name in _needed([*requires, torch_too]):
    distribution = importlib.metadata.distribution(name)
    tops = {path.parts[0] for path in distribution.files or ()}
    for top in tops - {'..', '__pycache__'}:
      place = site / top
      if not place.exists():
        place.symlink_to(distribution.locate_file(top))

  base, exported = tmp_path / 'base', tmp_path / 'exported'
  family_models.save(base, 'llama2')
  trained_runs.write_run(tmp_path / 'run', base)
  exported.mkdir()
  table = trained_table.read(str(tmp_path / 'run')).table
  artifact.write(exported, table)
  passages, question = trained_runs.PASSAGES, trained_runs.QUESTION
  arguments = [str(base), str(exported), passages, question]
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [python, '-c', _PROGRAM, json.dumps(arguments)],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['there'] == []
  assert found['client'] == 'Client'
  assert pathlib.Path(found['from']).is_relative_to(site)

  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  tokenizer = transformers.AutoTokenizer.from_pretrained(base)
  plug.attach(model, table)
  ids = plug.prompt_ids(tokenizer, passages, question, k=3, meta=table.meta)
  out = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
  assert found['answer'] == out[0, len(ids) :].tolist()
