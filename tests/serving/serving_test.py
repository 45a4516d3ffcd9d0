"""Tests of what users copy: docs/serving.md, and the cards of exports.

Programs that are not here (SGLang, Ollama, TGI) are stood in for by a server
that notes what it is sent. vllm_test.py runs vLLM.
"""

import dataclasses
import json
import pathlib
import re
import sys
import types

import family_models
import gguf_runs
import numpy as np
import pytest
import recipes
import torch
import trained_runs
import transformers
import vllm_like_server
import yaml
from transformers.models.qwen2 import modeling_qwen2

from vtokens.exports import (
  card,
  hf_checkpoint,
  spring_file,
  trained_table,
  vocabulary_rows,
)
from vtokens.exports.formats import FORMATS, peft_format
from vtokens.exports.gguf import gguf_file, llama_consumer
from vtokens.host import errors
from vtokens.serving import artifact, plug, trained_file

PASSAGES, QUESTION = trained_runs.PASSAGES, trained_runs.QUESTION


# Ends that note requests.
@pytest.fixture
def server():
  with vllm_like_server.serve() as found:
    yield found


def _write(
  source: trained_table.Source, base: pathlib.Path, kind: str, out
) -> None:
  """An export without its gate."""
  out.mkdir()
  table = source.table
  tokens = table.meta.tokens
  if kind == 'hf':
    plan = hf_checkpoint.place(table, source.base, str(base))
    tokens = plan.tokens
    end = hf_checkpoint.answer_end(table, source.base)
    hf_checkpoint.write(out, table, plan, str(base), end)
  elif kind == 'peft':
    vocabulary = vocabulary_rows.read_vocabulary(str(base))
    tokens = vocabulary_rows.inside(vocabulary, tokens, source.base)
    peft_format.write(out, table, tokens, source.base)
  elif kind == 'spring-pt':
    spring_file.write(out / spring_file.FILE, table.table)
  elif kind == 'gguf':
    plan = gguf_file.place(table, source.base, str(base))
    tokens = plan.tokens
    gguf_file.write(out / gguf_file.FILE, table, plan, str(base))
  meta = dataclasses.replace(table.meta, tokens=tokens)
  artifact.write(out, artifact.Artifact(table.table, meta))
  (out / 'README.md').write_text(card.render(meta, FORMATS[kind], []))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A base that samples and has a penalty, and all exports of one table."""
  root = tmp_path_factory.mktemp('serving')
  family_models.save(root / 'base', 'qwen')
  file = root / 'base' / 'generation_config.json'
  values = json.loads(file.read_text())
  values |= {'do_sample': True, 'temperature': 3.0, 'repetition_penalty': 1.5}
  file.write_text(json.dumps(values))
  trained_runs.write_run(root / 'run', root / 'base')
  source = trained_table.read(str(root / 'run'))
  for kind in ('vtokens', 'spring-pt', 'hf', 'peft'):
    _write(source, root / 'base', kind, root / kind)
  return root


@pytest.fixture(scope='module')
def gguf_place(tmp_path_factory):
  """A base in GGUF and the exports of it."""
  root = tmp_path_factory.mktemp('gguf')
  base = gguf_runs.save(root, 'llama_tied_q4_0')
  source = trained_table.read(str(root / 'run'))
  for kind in ('vtokens', 'gguf'):
    _write(source, base, kind, root / kind)
  return root


def _most_likely(place, passages, question) -> list[int]:
  """The answer, by the plainest of means."""
  table = plug.load(place / 'vtokens')
  model = transformers.AutoModelForCausalLM.from_pretrained(place / 'base')
  tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'base')
  prompt = plug.prompt_ids(
    tokenizer, passages, question, trained_runs.ROWS, table.meta
  )
  rows = torch.cat(
    [model.get_input_embeddings().weight, torch.from_numpy(table.table)]
  ).detach()
  ids = []
  while len(ids) < 16 and tokenizer.eos_token_id not in ids:
    given = rows[torch.tensor([[*prompt, *ids]])]
    ids.append(int(model(inputs_embeds=given).logits[0, -1].argmax()))
  return ids


def _run(place, kind, heading, monkeypatch, address='') -> dict:
  """What the lines leave behind, in a directory with `exported` and `base`."""
  recipes.enter(place, kind, monkeypatch)
  return recipes.execute(heading, address)


class TestTested:
  """Recipes that are marked 'tested here'."""

  @pytest.mark.parametrize(
    'kind, heading',
    [
      ('hf', 'transformers, with hf (tested here)'),
      ('vtokens', 'transformers, with the unchanged base (tested here)'),
      ('peft', 'PEFT (tested here)'),
    ],
  )
  def test_transformers(self, place, kind, heading, monkeypatch):
    found = _run(place, kind, heading, monkeypatch)
    expected = _most_likely(place, found['passages'], found['question'])
    assert found['out'][0, len(found['ids']) :].tolist() == expected
    assert isinstance(found['answer'], str)

  def test_keys_and_values(self, place, monkeypatch):
    """Keys and values of text, at their places, are the text."""
    heading = 'transformers, with keys and values (tested here)'
    names: dict = {}
    recipes.enter(place, 'vtokens', monkeypatch)
    exec(recipes.python(heading)[0], names)
    meta, text = names['table'].meta, [66, 71, 30, 80, 91]
    model = transformers.AutoModelForCausalLM.from_pretrained(place / 'base')
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'base')
    prompt = plug.prompt_ids(
      tokenizer, names['passages'], names['question'], len(text), meta
    )
    at = prompt.index(meta.tokens.ids[0])
    whole = [*prompt[:at], *text, *prompt[at + len(text) :]]
    cache = transformers.DynamicCache()
    model(torch.tensor([whole]), past_key_values=cache)
    position_ids = torch.arange(at, at + len(text))[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1), position_ids)
    keys, values = (
      torch.cat([getattr(x, name) for x in cache.layers]).detach()[
        :, :, at : at + len(text)
      ]
      for name in ('keys', 'values')
    )
    back, _ = modeling_qwen2.apply_rotary_pos_emb(keys, keys, cos, -sin)
    made = {
      name: np.ascontiguousarray(x.transpose(1, 2).numpy())
      for name, x in (('keys', back), ('values', values))
    }
    meta = dataclasses.replace(
      meta,
      kind='kv',
      format=2,
      shape=made['keys'].shape,
      table_sha256=trained_file.sha256(made),
    )
    artifact.write(place / 'kv', artifact.Artifact(made, meta))
    found = _run(place, 'kv', heading, monkeypatch)
    expected = model.generate(
      torch.tensor([whole]),
      max_new_tokens=16,
      do_sample=False,
      repetition_penalty=1.0,
    )
    answer = found['out'][0, len(prompt) :].tolist()
    assert answer
    assert expected[0, len(whole) :].tolist()[: len(answer)] == answer
    assert isinstance(found['answer'], str)

  def test_llama_cpp(self, gguf_place, monkeypatch):
    file = gguf_place / 'gguf' / 'model.gguf'
    with llama_consumer.serve(file, 512, 'served') as address:
      found = _run(
        gguf_place, 'gguf', 'llama.cpp (tested here)', monkeypatch, address
      )
      body = {'prompt': found['ids'], 'n_predict': 16, 'temperature': 0}
      again = llama_consumer.post(address, '/completion', body)
      # Of the same tokens, as text.
      text = plug.prompt_text(
        found['tokenizer'], PASSAGES, QUESTION, 3, found['table'].meta
      )
      read = llama_consumer.post(
        address,
        '/tokenize',
        {'content': text, 'parse_special': True, 'add_special': True},
      )
    assert found['answer'] == again['content']
    assert read['tokens'] == plug.prompt_ids(
      found['tokenizer'],
      _without_names(PASSAGES),
      QUESTION,
      3,
      found['table'].meta,
    )


def _without_names(passages):
  """As `prompt_text` writes them."""
  return [{**p, 'text': p['text'].replace('[ref', '[ ref')} for p in passages]


class TestFromDocumentation:
  """The others: what is sent."""

  def _sent(self, place, kind, heading, monkeypatch, server, answer):
    url, handler = server
    handler.answer = json.dumps(answer).encode()
    found = _run(place, kind, heading, monkeypatch, url)
    [(path, _, body)] = handler.requests
    assert found['answer'] == '1859'
    return found, path, body

  def test_sglang(self, place, server, monkeypatch):
    found, path, body = self._sent(
      place,
      'hf',
      'SGLang (from documentation)',
      monkeypatch,
      server,
      {'text': '1859'},
    )
    assert path == '/generate'
    assert body['input_ids'] == found['ids']

  def test_ollama(self, gguf_place, server, monkeypatch):
    found, path, body = self._sent(
      gguf_place,
      'gguf',
      'Ollama (from documentation)',
      monkeypatch,
      server,
      {'response': '1859'},
    )
    assert path == '/api/generate'
    assert body['raw'] and not body['stream']
    assert ''.join(found['table'].meta.tokens.names) in body['prompt']

  def test_tgi(self, place, server, monkeypatch):
    found, path, body = self._sent(
      place,
      'hf',
      'TGI (from documentation)',
      monkeypatch,
      server,
      {'generated_text': '1859'},
    )
    assert path == '/generate'
    assert ''.join(found['table'].meta.tokens.names) in body['inputs']


def test_every_recipe_is_run():
  """By a test that names its heading."""
  headings = set(recipes.headings())
  tests = pathlib.Path(__file__).parent.glob('*_test.py')
  said = '\n'.join(file.read_text() for file in tests)
  assert headings <= set(
    re.findall(r"'([^'\n]* \((?:tested|from) [a-z]*\))'", said)
  )
  text = recipes.PAGE.read_text()
  known = {
    re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings
  }
  assert set(re.findall(r'\]\(#([^)]*)\)', text)) == known


class _Generator:
  """FlashRAG's, as far as it is used: the steps of its add_new_tokens."""

  def __init__(self, base: pathlib.Path):
    self.base = base
    self.model = None
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)

  def add_new_tokens(self, file: str) -> None:
    self.model = transformers.AutoModelForCausalLM.from_pretrained(self.base)
    rows = torch.load(file)
    names = [f'[ref{i + 1}]' for i in range(len(rows))]
    self.tokenizer.add_tokens(names)
    embedding = self.model.get_input_embeddings()
    old = embedding.weight.detach()
    # Of PyTorch's default dtype, not of the model's.
    matrix = torch.zeros(len(old) + len(rows), old.shape[1])
    matrix[: len(old)] = old
    matrix[self.tokenizer.convert_tokens_to_ids(names)] = rows
    embedding.weight.data = matrix


@dataclasses.dataclass
class _PromptTemplate:
  """FlashRAG's, as far as it is used."""

  config: object
  user_prompt: str
  enable_chat: bool


class TestFlashRAG:
  """Its steps, and the lines of the page, which then give our prompts."""

  def _run(self, root, name, monkeypatch, **changes):
    family_models.save(root / 'base', name, **changes)
    trained_runs.write_run(root / 'run', root / 'base')
    file = root / 'run' / 'config.json'
    values = json.loads(file.read_text())
    values['templates']['passage'] = 'Doc {index}(Title: {title}) {text}\n'
    file.write_text(json.dumps(values))
    source = trained_table.read(str(root / 'run'))
    _write(source, root / 'base', 'spring-pt', root / 'spring-pt')
    (root / 'exported').symlink_to('spring-pt')
    monkeypatch.chdir(root)
    code = '\n'.join(recipes.python('FlashRAG (from documentation)'))
    code = code.replace('51', '6')
    if name in ('llama3', 'qwen_untied'):
      # As its comments say.
      code = re.sub('^names = ', '# ', code, flags=re.MULTILINE)
      code = code.replace('# names = ', 'names = ')
    flashrag = {
      'flashrag.prompt': {'PromptTemplate': _PromptTemplate},
      'flashrag.utils': {'get_generator': _Generator},
    }
    for module, content in flashrag.items():
      monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**content))
    names: dict = {'config': root / 'base'}
    exec(code, names)
    return names

  @pytest.mark.parametrize(
    'name, changes',
    [
      ('llama2', {}),
      ('mistral', {}),
      ('llama3', {'tie_word_embeddings': False}),
      # Fewer padding rows than virtual tokens.
      ('qwen_untied', {}),
    ],
  )
  def test_prompts_and_logits(self, name, changes, tmp_path, monkeypatch):
    changes = {'dtype': torch.bfloat16, **changes}
    found = self._run(tmp_path, name, monkeypatch, **changes)
    model, tokenizer = found['generator'].model, found['generator'].tokenizer
    shown = ''.join(
      f'Doc {i + 1}(Title: {one["title"]}) {one["text"]}\n'
      for i, one in enumerate(found['passages'])
    )
    text = found['template'].user_prompt.format(
      reference=shown, question=found['question']
    )
    ids = tokenizer(text)['input_ids']
    table = found['table']
    plain = transformers.AutoTokenizer.from_pretrained('base')
    ours = plug.prompt_ids(
      plain, found['passages'], found['question'], trained_runs.ROWS, table.meta
    )
    place = dict(
      zip(
        table.meta.tokens.ids,
        tokenizer.convert_tokens_to_ids(list(table.meta.tokens.names)),
        strict=True,
      )
    )
    # From the virtual tokens on it is the prompt of training.
    virtual = [place[i] for i in table.meta.tokens.ids]
    ours = [place.get(i, i) for i in ours]
    assert (
      ids[ids.index(virtual[0]) :]
      == ours[ours.index(virtual[0]) :]
      == [*virtual, *ours[ours.index(virtual[-1]) + 1 :]]
    )
    # The model is the base with the table attached.
    base = transformers.AutoModelForCausalLM.from_pretrained('base')
    plug.attach(base, table)
    back = {there: i for i, there in place.items()}
    given = torch.tensor([[back.get(i, i) for i in ids]])
    with torch.no_grad():
      expected = base(given).logits
      assert torch.equal(model(torch.tensor([ids])).logits, expected)

  def test_a_tied_head_gets_the_rows_too(self, tmp_path, monkeypatch):
    """What the page warns of."""
    found = self._run(tmp_path, 'llama3', monkeypatch)
    logits = found['generator'].model(torch.tensor([[1, 2]])).logits
    size = found['table'].meta.base.vocab_size
    assert logits.shape[-1] == size + trained_runs.ROWS


class TestPromptText:
  """Text of which the export's tokenizer makes the ids of `prompt_ids`."""

  @pytest.mark.parametrize('name', family_models.FAMILIES)
  def test_ids(self, name, tmp_path):
    family_models.save(tmp_path / 'base', name, num_hidden_layers=1)
    trained_runs.write_run(tmp_path / 'run', tmp_path / 'base')
    source = trained_table.read(str(tmp_path / 'run'))
    _write(source, tmp_path / 'base', 'hf', tmp_path / 'out')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
    meta = plug.load(tmp_path / 'out').meta
    text = plug.prompt_text(tokenizer, PASSAGES, QUESTION, 3, meta)
    passages = _without_names(PASSAGES)
    assert tokenizer(text)['input_ids'] == plug.prompt_ids(
      tokenizer, passages, QUESTION, 3, meta
    )

  @pytest.mark.parametrize('position', ['first', 'last'])
  def test_elsewhere(self, position, place):
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'hf')
    meta = plug.load(place / 'hf').meta
    prompt = dataclasses.replace(meta.prompt, position=position)
    meta = dataclasses.replace(meta, prompt=prompt)
    with pytest.raises(errors.UserError, match=f'stand {position} in a prompt'):
      plug.prompt_text(tokenizer, PASSAGES, QUESTION, 3, meta)

  def test_special_tokens_of_the_base(self, place):
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / 'hf')
    meta = plug.load(place / 'hf').meta
    passages = ['An end: <|im_end|> [ref12]']
    text = plug.prompt_text(tokenizer, passages, QUESTION, 1, meta)
    assert text.startswith('[1] An end: < |im_end|> [ref12]\n\n[ref1]Question')


def _at(code: str, base: str, is_needed: bool) -> str:
  """A card's lines with the base's path, beside the export, for its name."""
  code, count = re.subn(
    f"^base = '{base}'  # Where it is: .*$",
    f"base = '../{base}'",
    code,
    flags=re.MULTILINE,
  )
  assert count == is_needed
  return code


class TestCards:
  """The usage that an export's README shows."""

  def _usage(self, directory) -> tuple[dict, str]:
    text = (directory / 'README.md').read_text()
    head, _, rest = text.removeprefix('---\n').partition('---\n')
    return (
      yaml.safe_load(head),
      rest.partition('```python\n')[2].partition('```')[0],
    )

  @pytest.mark.parametrize('kind', ['vtokens', 'spring-pt', 'hf', 'peft'])
  def test_answers(self, place, kind, monkeypatch):
    """The most likely ones, whatever the base's generation config says."""
    head, code = self._usage(place / kind)
    # The hub knows no paths.
    assert 'base_model' not in head
    monkeypatch.chdir(place / kind)
    names = {'passages': PASSAGES, 'question': QUESTION}
    exec(_at(code, 'base', kind != 'hf'), names)
    answer = names['out'][0, len(names['ids']) :].tolist()
    expected = _most_likely(place, PASSAGES, QUESTION)
    tokenizer = names['tokenizer']
    ends = [
      i for i, token in enumerate(expected) if '\n' in tokenizer.decode([token])
    ]
    expected = expected[: min([*ends, 15]) + 1]
    assert answer == expected
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert names['answer'] == text.strip()
    virtual = set(names['table'].meta.tokens.ids)
    assert len(virtual & set(names['ids'])) == trained_runs.ROWS

  def test_a_base_of_the_hub(self, place):
    meta = plug.load(place / 'hf').meta
    base = dataclasses.replace(meta.base, id='org/base', revision='0123')
    text = card.render(dataclasses.replace(meta, base=base), FORMATS['hf'], [])
    assert '\nbase_model: "org/base"\n' in text

  def test_gguf(self, gguf_place, monkeypatch):
    _, code = self._usage(gguf_place / 'gguf')
    monkeypatch.chdir(gguf_place / 'gguf')
    names = {'passages': PASSAGES, 'question': QUESTION}
    with llama_consumer.serve(
      pathlib.Path('model.gguf'), 512, 'served'
    ) as address:
      exec(code.replace('http://127.0.0.1:8080', address), names)
    assert isinstance(names['answer'], str)
    assert names['body']['stop'] == ['\n']

  def test_every_recipe_stops_at_a_line_break(self, place, monkeypatch):
    """Also where the ids before an answer are virtual, which have no text."""
    _, code = self._usage(place / 'vtokens')
    monkeypatch.chdir(place / 'vtokens')
    names = {'passages': PASSAGES, 'question': QUESTION}
    exec(_at(code, 'base', True), names)
    model, tokenizer = names['model'], names['tokenizer']
    [line_break] = tokenizer('\n', add_special_tokens=False)['input_ids']
    with torch.no_grad():
      # Whatever is asked, the model says line breaks.
      head = torch.nn.Linear(64, model.config.vocab_size)
      head.weight.zero_()
      head.bias.copy_(torch.eye(model.config.vocab_size)[line_break])
      model.lm_head = head
    monkeypatch.setattr(
      transformers.AutoModelForCausalLM, 'from_pretrained', lambda _: model
    )
    plug.detach(model)
    last = [*names['ids'], *names['table'].meta.tokens.ids]
    # By the name that recipes import.
    monkeypatch.setattr('vtokens.plug.prompt_ids', lambda *_, **__: last)
    exec(_at(code, 'base', True), names)
    assert names['out'][0, len(last) :].tolist() == [line_break]
    assert names['answer'] == ''

  def test_a_base_in_gguf(self, gguf_place, monkeypatch):
    _, code = self._usage(gguf_place / 'vtokens')
    monkeypatch.chdir(gguf_place / 'vtokens')
    names = {'passages': PASSAGES, 'question': QUESTION}
    [file] = gguf_place.glob('*.gguf')
    exec(_at(code, file.name, True), names)
    assert names['out'].shape[1] > len(names['ids'])
