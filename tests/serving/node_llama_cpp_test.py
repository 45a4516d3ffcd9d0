"""Tests with node-llama-cpp; `.ci/node_llama_cpp` installs it and runs them.

VTOKENS_NODE_LLAMA_CPP names the directory that has it in `node_modules`.
Without it they are left out.
"""

import json
import os
import pathlib
import subprocess

import gguf_place
import our_answers
import pytest
import recipes
import trained_runs

if not os.environ.get('VTOKENS_NODE_LLAMA_CPP'):
  pytest.skip(
    'VTOKENS_NODE_LLAMA_CPP is not set: .ci/node_llama_cpp',
    allow_module_level=True,
  )
PACKAGE = pathlib.Path(
  os.environ['VTOKENS_NODE_LLAMA_CPP'], 'node_modules', 'node-llama-cpp'
)
if not PACKAGE.is_dir():
  raise FileNotFoundError(f'VTOKENS_NODE_LLAMA_CPP: {PACKAGE} is not there')

HEADING = 'node-llama-cpp (tested here)'


def test_answers(tmp_path, monkeypatch):
  gguf_place.make(tmp_path)
  recipes.enter(tmp_path, 'gguf', monkeypatch)
  (tmp_path / 'node_modules').symlink_to(PACKAGE.parent)
  asked, prompts = [], []
  for k in (1, trained_runs.ROWS):
    for one in our_answers.ask(tmp_path / 'run', k):
      found = recipes.execute(
        HEADING, k=k, passages=one.passages, question=one.question
      )
      asked.append(one)
      prompts.append(found['ids'])
  (tmp_path / 'prompts.json').write_text(json.dumps(prompts))
  # The recipe, which ends with the answer to the last prompt, and once more
  # for all: loading takes longest.
  script = tmp_path / 'recipe.mjs'
  script.write_text(
    # Its threads wait by spinning, which is slow where others need the cores.
    recipes.block(HEADING, 'js').replace('{contextSize: 4096', '{threads: 1')
    + """
const all = [];
for (const ids of JSON.parse(readFileSync('prompts.json', 'utf8')))
  all.push(await complete(ids));
console.log(JSON.stringify(all));
await llama.dispose();
"""
  )
  done = subprocess.run(
    ['node', str(script)],
    cwd=tmp_path,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  last, answers = done.stdout.removesuffix('\n').split('\n')[-2:]
  assert json.loads(answers) == [one.line for one in asked]
  assert last == asked[-1].line
  version = json.loads((PACKAGE / 'package.json').read_text())['version']
  assert f'| tested here, {version} |' in recipes.PAGE.read_text()
