"""Tests of vtokens.retrieval.bm25 and lexicon."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import retrieval_data

from vtokens.host import claimed_directory, errors
from vtokens.retrieval import (
  bm25,
  lexicon,
  passage_store,
  retrieval_config,
  search,
  topk,
)

QUESTIONS = [
  'berville kadals',
  'Where is the mogoron?',
  'lanhus lanhus rifin',
  'nothing known here',
  '',
]


def build(tmp_path, rows, shard_size=1000, name='bm25', **settings):
  """The index of some passages, and the corpus."""
  path = retrieval_data.write(tmp_path / 'corpus.jsonl', rows)
  index_dir = tmp_path / f'index{shard_size}'
  corpus = passage_store.prepare(
    retrieval_config.Corpus(paths=(path,), shard_size=shard_size),
    index_dir,
    rebuild=False,
  )
  method = search.make_method(
    retrieval_config.Retriever(bm25=retrieval_config.BM25(**settings)), name
  )
  index = search.prepare_index(
    name, method, corpus, index_dir, retrieval_config.Execution(), rebuild=False
  )
  return index, corpus


def find(index, corpus, questions, k, path):
  index.method.encode_questions(questions, path)
  return topk.merge(
    [
      index.method.search(
        index.directory, index.digest, corpus.first_row(shard), shard, path, k
      )
      for shard in range(len(corpus.shard_sizes))
    ],
    k,
  )


def reference_scores(rows, questions, settings):
  """bm25s's own index of all passages, float [questions, passages]."""
  bm25s = lexicon.load_bm25s()
  texts = ['\n'.join([row['title'], row['text']]) for row in rows]
  index = bm25s.BM25(k1=settings.k1, b=settings.b, method='lucene')
  index.index(lexicon.tokenize(settings, texts), show_progress=False)
  return np.stack(
    [
      index.get_scores(tokens) if tokens else np.zeros(len(rows))
      for tokens in lexicon.tokenize(settings, questions)
    ]
  )


@pytest.mark.parametrize('shard_size', [1000, 64, 1])
@pytest.mark.parametrize('k1, b', [(0.9, 0.4), (1.5, 0.75)])
def test_scores_are_those_of_bm25s(tmp_path, shard_size, k1, b):
  rows = retrieval_data.passages(150 if shard_size > 1 else 20)
  index, corpus = build(tmp_path, rows, shard_size, k1=k1, b=b)
  hits = find(index, corpus, QUESTIONS, len(rows), tmp_path / 'q.json')
  expected = reference_scores(
    rows, QUESTIONS, retrieval_config.BM25(k1=k1, b=b)
  )
  for i in range(len(QUESTIONS)):
    found = hits.rows[i] >= 0
    assert set(hits.rows[i][found]) == set(np.flatnonzero(expected[i]))
    np.testing.assert_allclose(
      hits.scores[i][found], expected[i][hits.rows[i][found]], rtol=2e-6
    )
  assert (expected[0] > 0).sum() > 3  # The questions find something,
  assert (hits.rows[3:] == topk.NO_ROW).all()  # and these nothing.


@pytest.mark.parametrize('shard_size', [1, 7, 100, 299])
def test_shards_give_exactly_what_one_index_gives(tmp_path, shard_size):
  rows = retrieval_data.passages(300)
  asked = [q['question'] for q in retrieval_data.questions(rows, 40)]
  whole = find(*build(tmp_path, rows), asked, 20, tmp_path / 'q.json')
  cut = find(*build(tmp_path, rows, shard_size), asked, 20, tmp_path / 'q.json')
  np.testing.assert_array_equal(cut.rows, whole.rows)
  np.testing.assert_array_equal(cut.scores, whole.scores)
  # Equal scores are there, so that their order is tested too.
  assert (np.diff(whole.scores[whole.rows[:, -1] >= 0]) == 0).any()


def test_another_process_finds_each_questions_own_passages(tmp_path):
  """Ids of a vocabulary made anew at load would find the same for all."""
  rows = retrieval_data.passages(200)
  index, _ = build(tmp_path, rows, 50)
  asked = [row['text'] for row in rows[::20]]
  program = (
    'import json, pathlib, sys; import numpy as np;'
    'from vtokens.retrieval import bm25, topk;'
    'from vtokens.retrieval import retrieval_config as config;'
    'from vtokens.retrieval import passage_store as store;'
    'directory, path, asked = map(json.loads, sys.argv[1:]);'
    'directory = pathlib.Path(directory); path = pathlib.Path(path);'
    'method = bm25.BM25Method(config.BM25());'
    'corpus = store.PassageReader.open(directory.parent / "corpus");'
    'method.encode_questions(asked, path);'
    'hits = topk.merge([method.search(directory, "", corpus.first_row(s), s,'
    ' path, 3) for s in range(4)], 3);'
    'print(json.dumps(hits.rows.tolist()))'
  )
  values = [str(index.directory), str(tmp_path / 'q.json'), asked]
  for seed in ('1', '2'):  # Of the order of sets of words.
    result = subprocess.run(
      [sys.executable, '-c', program, *map(json.dumps, values)],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    )
    found = json.loads(result.stdout)
    assert [row[0] for row in found] == list(range(0, 200, 20))


def test_the_index_is_the_same_bytes_in_each_process(tmp_path):
  path = retrieval_data.write(
    tmp_path / 'corpus.jsonl', retrieval_data.passages(100)
  )
  program = (
    'import pathlib, sys; from vtokens.retrieval import search;'
    'from vtokens.retrieval import retrieval_config as config;'
    'from vtokens.retrieval import passage_store as store;'
    'd = pathlib.Path(sys.argv[2]);'
    'c = store.prepare(config.Corpus(paths=(sys.argv[1],), shard_size=40), d,'
    ' rebuild=False);'
    'm = search.make_method(config.Retriever(), "bm25");'
    'search.prepare_index("bm25", m, c, d, config.Execution(), rebuild=False)'
  )
  contents = []
  for seed in ('1', '2'):
    directory = tmp_path / seed
    subprocess.run(
      [sys.executable, '-c', program, path, str(directory)],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      check=True,
      capture_output=True,
    )
    contents.append(
      {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted((directory / 'bm25').rglob('*'))
        if file.is_file()
      }
    )
  assert contents[0] == contents[1]
  assert not any('counts' in name for name in contents[0])


def test_bm25s_itself_reads_a_shard(tmp_path):
  rows = retrieval_data.passages(50)
  index, _ = build(tmp_path, rows)
  shard = passage_store.shard_directory(index.directory, 0)
  loaded = lexicon.load_bm25s().BM25.load(shard, show_progress=False)
  tokens = lexicon.tokenize(retrieval_config.BM25(), [rows[7]['text']])
  found, _ = loaded.retrieve(tokens, k=3, show_progress=False)
  assert found[0, 0] == 7


def test_a_vocabulary_of_another_index_is_refused(tmp_path):
  index, corpus = build(tmp_path, retrieval_data.passages(50))
  shard = passage_store.shard_directory(index.directory, 0)
  lexicon.Vocabulary.save(shard, ['a', 'b'])
  with pytest.raises(errors.UserError, match=r'2 words for .* columns'):
    find(index, corpus, QUESTIONS, 3, tmp_path / 'q.json')


def test_a_shard_without_words(tmp_path):
  rows = [
    {'id': '0', 'title': '', 'text': 'alpha beta'},
    {'id': '1', 'title': '', 'text': '!!!'},
    {'id': '2', 'title': '', 'text': 'alpha'},
  ]
  index, corpus = build(tmp_path, rows, 1)
  hits = find(index, corpus, ['alpha', '???'], 2, tmp_path / 'q.json')
  assert hits.rows.tolist() == [[2, 0], [topk.NO_ROW] * 2]


def test_a_corpus_without_words_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='no passage has a token'):
    build(tmp_path, [{'id': '1', 'title': '', 'text': '!!!'}])


def test_the_settings_of_text():
  def words(text, **settings):
    return lexicon.tokenize(retrieval_config.BM25(**settings), [text])[0]

  plain = {'stemmer': 'none', 'stopwords': 'none'}
  assert words('The Cities of É 7!', **plain) == [
    'the',
    'cities',
    'of',
    'é',
    '7',
  ]
  assert words('The Cities', **plain, lower=False) == ['The', 'Cities']
  assert words('The cities', stemmer='none') == ['cities']
  assert words('The cities') == ['citi']
  assert words('a bc', **plain, token_pattern=r'\b\w\w+\b') == ['bc']
  # Different words of one stem keep their number.
  assert words('city cities city') == ['citi'] * 3


def test_titles_count_as_often_as_they_should(tmp_path):
  rows = [
    {'id': '0', 'title': 'alpha', 'text': 'beta gamma delta'},
    {'id': '1', 'title': 'beta', 'text': 'alpha gamma delta'},
  ]
  for weight, expected in ((0, [1, -1]), (1, [0, 1]), (2, [0, 1])):
    index, corpus = build(
      tmp_path, rows, name=f'w{weight}', title_weight=weight
    )
    hits = find(index, corpus, ['alpha'], 2, tmp_path / 'q.json')
    assert hits.rows[0].tolist() == expected
    assert (hits.scores[0, 0] > hits.scores[0, 1]) == (weight != 1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'stemmer': 'klingon'}, "stemmer='klingon': expected none or one of"),
    ({'stopwords': 'klingon'}, "stopwords='klingon'"),
  ],
)
def test_unknown_languages_are_refused(settings, message):
  with pytest.raises(errors.UserError, match=message):
    search.make_method(
      retrieval_config.Retriever(bm25=retrieval_config.BM25(**settings)), 'x'
    )


def test_identity_has_all_that_matters():
  identity = bm25.BM25Method(retrieval_config.BM25()).identity()
  assert set(identity['versions']) == {'bm25s', 'PyStemmer'}
  other = bm25.BM25Method(
    retrieval_config.BM25(stemmer='none', b=0.5)
  ).identity()
  assert set(other['versions']) == {'bm25s'}
  assert other['bm25']['b'] == 0.5


def test_vocabulary_finds_what_it_holds(tmp_path):
  words = sorted(['b', 'bb', 'é', '鍵', '🔑', '', 'a\nb'])
  lexicon.Vocabulary.save(tmp_path, words)
  vocabulary = lexicon.Vocabulary(tmp_path)
  assert len(vocabulary) == 7
  asked = ['🔑', 'a', 'b', '', 'zz', 'é', 'bb', '鍵', 'a\nb', '鍵鍵']
  expected = [words.index(word) for word in asked if word in words]
  assert vocabulary.ids(asked) == expected


def test_bm25s_is_imported_without_jax():
  program = (
    'import sys; from vtokens.retrieval import lexicon;'
    'lexicon.load_bm25s(); print("jax" in sys.modules)'
  )
  result = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == 'False'


WITHOUT_SPACES = [
  {'id': 'z1', 'title': '', 'text': '北京的壁画由安娜于一九三一年绘制。'},
  {'id': 'z2', 'title': '易北河', 'text': '易北河流经小镇。'},
  {'id': 'z3', 'title': '', 'text': '壁画在河边的市场。猫喜欢它。'},
  {'id': 'e1', 'title': '', 'text': 'Town 2 lies on the Elbe (易北河).'},
  {'id': 'c1', 'title': '', 'text': '使用CUDA编程很难。'},
  {'id': 'c2', 'title': '', 'text': 'CUDA programs are compiled.'},
  {'id': 'j1', 'title': '', 'text': '東京タワーは１９５８年に完成した。'},
  {'id': 't1', 'title': '', 'text': 'กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย'},
  {'id': 'k1', 'title': '', 'text': 'ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា'},
  {'id': 'm1', 'title': '', 'text': 'နေပြည်တော်သည် မြန်မာနိုင်ငံ၏ မြို့တော်'},
  {'id': 'l1', 'title': '', 'text': 'ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ'},
]


@pytest.mark.parametrize('shard_size', [1000, 2])
def test_scripts_without_spaces(tmp_path, shard_size):
  expected = {
    '谁绘制了壁画？': 'z1',
    '哪条河流经小镇？': 'z2',
    '猫吃什么？': 'z3',
    '什么是CUDA？': 'c1',
    '什么是 CUDA 编程': 'c1',
    '東京ﾀﾜｰはいつ完成したか': 'j1',
    '1958年': 'j1',
    'เมืองหลวงของไทยคือ': 't1',
    'រាជធានីនៃកម្ពុជា': 'k1',
    'မြန်မာနိုင်ငံမြို့တော်': 'm1',
    'ນະຄອນຫຼວງຂອງລາວ': 'l1',
    'What does Town 2 lie on?': 'e1',
  }
  index, corpus = build(tmp_path, WITHOUT_SPACES, shard_size)
  hits = find(index, corpus, list(expected), 5, tmp_path / 'q.json')
  found = [corpus[row].id for row in hits.rows[:, 0]]
  assert dict(zip(expected, found, strict=True)) == expected


def test_scores_of_grams_by_hand(tmp_path):
  """Written out for one corpus, without anything of the package."""
  texts = ['甲乙丙', '甲乙', '丁 plain words', 'plain']
  rows = [{'id': str(i), 'title': '', 'text': t} for i, t in enumerate(texts)]
  index, corpus = build(tmp_path, rows, k1=0.9, b=0.4)
  hits = find(index, corpus, ['甲乙'], 4, tmp_path / 'q.json')
  grams = [['甲', '乙', '丙', '甲乙', '乙丙'], ['甲', '乙', '甲乙'], ['丁'], []]
  average = (5 + 3 + 1) / 3
  expected = []
  for own in grams:
    score = 0.0
    for term in ('甲', '乙', '甲乙'):
      df = sum(term in other for other in grams)
      idf = np.log(1 + (4 - df + 0.5) / (df + 0.5))
      tf = own.count(term)
      score += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(own) / average))
    expected.append(score)
  assert hits.rows[0].tolist() == [1, 0, topk.NO_ROW, topk.NO_ROW]
  np.testing.assert_allclose(
    hits.scores[0, :2], [expected[1], expected[0]], rtol=1e-6
  )


def test_english_questions_get_the_same_bits(tmp_path):
  """Next to an index without grams, of the same words by another pattern."""
  rows = retrieval_data.passages(150)
  asked = [q['question'] for q in retrieval_data.questions(rows, 30)]
  for number, row in enumerate(rows):
    row['text'] += ('', ' (北京市)', ' AKB48グループ', ' ｶﾞ１９')[number % 4]
  asked += ['berville “kadals” (北京市)', 'the AKB48 berville kadals']
  (tmp_path / 'plain').mkdir()
  with_grams = build(tmp_path, rows)
  plain = build(tmp_path / 'plain', rows, token_pattern=r'(?u)\b\w+\b(?:)')
  found, expected = (
    find(*one, asked, 20, tmp_path / 'q.json') for one in (with_grams, plain)
  )
  np.testing.assert_array_equal(found.rows, expected.rows)
  np.testing.assert_array_equal(found.scores, expected.scores)
  # A question that is written so finds more by grams than by words.
  question = ['北京']
  for one, number in ((with_grams, 20), (plain, 0)):
    hits = find(*one, question, 20, tmp_path / 'q.json')
    assert (hits.rows >= 0).sum() == number


def test_an_index_of_words_alone_serves_questions_without_grams(tmp_path):
  rows = retrieval_data.passages(20)
  path = retrieval_data.write(tmp_path / 'corpus.jsonl', rows)
  corpus = passage_store.prepare(
    retrieval_config.Corpus(paths=(path,)), tmp_path / 'index', rebuild=False
  )

  def prepare(method):
    return search.prepare_index(
      'x',
      method,
      corpus,
      tmp_path / 'index',
      retrieval_config.Execution(),
      rebuild=False,
    )

  method = search.make_method(retrieval_config.Retriever(), 'x', ['Where?'])
  # As an earlier version claimed it.
  identity = {'corpus': corpus.identity, **method.will_do()[0]}
  assert 'scripts_without_spaces' not in identity
  directory = tmp_path / 'index' / 'x'
  claimed_directory.claim(
    directory, identity, 'an index', rebuild=False, advice=''
  )
  claimed_directory.finish(
    directory, method.build(corpus, directory, retrieval_config.Execution(), '')
  )
  assert prepare(method).digest == search.digest(identity)
  wants = search.make_method(
    retrieval_config.Retriever(), 'x', ['Where?', '在哪里？']
  )
  with pytest.raises(errors.UserError, match='scripts_without_spaces'):
    prepare(wants)
