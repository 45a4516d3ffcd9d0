"""Formats of retrieval-augmented question answering, a sample of each."""

import json

import pytest

from vtokens.data import formats
from vtokens.data.records import Passage, Record, RecordError


def write(path, *rows, array=False):
  if array:
    text = json.dumps(list(rows), indent=4)
  else:
    text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  path.write_text(text)
  return str(path)


def skipping(*sources, **kwargs):
  report = formats.BadRecords('skip')
  found = formats.read_all(sources, report=report, **kwargs)
  return found, report


SPRING = {
  'question': 'who got the first nobel prize in physics',
  'target': ['Wilhelm Conrad Röntgen', 'Röntgen'],
  'ret_passages': ['The first Nobel Prize in Physics ...', 'Nobel was ...'],
}
ATLAS = {
  'question': 'What is the capital of the country?',
  'answers': ['Paris'],
  'passages': [
    {'title': 'Paris', 'text': 'Paris is a capital.', 'section': 'Intro'}
  ],
  'metadata': {'id': 3},
}
DPR = {
  'question': 'who sings does he love me with reba',
  'answers': ['Linda Davis', 'Linda Davis'],
  'ctxs': [
    {
      'id': 'wiki:11828866',
      'title': 'Does He Love You',
      'text': 'A duet with Linda Davis.',
      'score': '81.62',
      'has_answer': True,
    },
    {'id': 12, 'title': 'Reba', 'text': 'A singer.', 'score': 80},
  ],
}
DPR_PASSAGES = (
  Passage(
    'wiki:11828866', 'Does He Love You', 'A duet with Linda Davis.', 81.62
  ),
  Passage('12', 'Reba', 'A singer.', 80.0),
)


def test_spring(tmp_path):
  path = write(tmp_path / 'nq.train.jsonl', SPRING)
  assert formats.read_all([path]) == [
    Record(
      'nq.train:1',
      'nq',
      SPRING['question'],
      tuple(SPRING['target']),
      {'given': tuple(Passage('', '', t) for t in SPRING['ret_passages'])},
    )
  ]


def test_atlas(tmp_path):
  as_query = {'query': ATLAS['question'], **ATLAS}
  del as_query['question']
  path = write(tmp_path / 'a.jsonl', ATLAS, as_query)
  for i, record in enumerate(formats.read_all([path], dataset='nq')):
    assert record == Record(
      f'a:{i + 1}',
      'nq',
      ATLAS['question'],
      ('Paris',),
      {'given': (Passage('', 'Paris', 'Paris is a capital.'),)},
    )


@pytest.mark.parametrize('array', [True, False])
def test_dpr_and_fid(tmp_path, array):
  fid = {**DPR, 'id': 'q2', 'target': 'Linda Davis'}
  del fid['answers']
  path = write(tmp_path / 'dpr.json', DPR, fid, array=array)
  first, second = formats.read_all([path])
  # Answers that occur twice would be drawn twice as often.
  assert (first.id, first.answers) == ('dpr:1', ('Linda Davis',))
  assert (second.id, second.answers) == ('q2', ('Linda Davis',))
  assert first.passages == second.passages == {'given': DPR_PASSAGES}


@pytest.mark.parametrize('row', [DPR, ATLAS])
def test_trivia_qa_of_fid_and_atlas_has_target_and_aliases(tmp_path, row):
  row = {**row, 'target': 'Politics', 'answers': ['POLITICS', 'Polity']}
  path = write(tmp_path / 'tqa.json', row, array=True)
  (record,) = formats.read_all([path])
  assert record.answers == ('Politics', 'POLITICS', 'Polity')


def test_errors_name_the_item_of_an_array(tmp_path):
  bad = {**DPR, 'ctxs': [DPR['ctxs'][0], {'id': '1', 'title': 'x'}]}
  path = write(tmp_path / 'dpr.json', DPR, bad, array=True)
  with pytest.raises(RecordError) as error:
    formats.read_all([path])
  assert str(error.value).startswith(
    f'{path}: [1]: ctxs[1].text: missing, found only id, title, expected'
  )
  found, report = skipping(path)
  assert [record.id for record in found] == ['dpr:1']
  assert report.counts == {'missing_key': 1}


FLASHRAG = {
  'id': 'test_0',
  'question': 'who got the first nobel prize in physics',
  'golden_answers': ['Wilhelm Conrad Röntgen'],
  'metadata': {},
}
CACHED = {
  'id': '628',
  'contents': '"Nobel Prize"\nThe first was given\nin 1901.',
  'score': 0.87,
}


def test_flashrag_without_passages(tmp_path):
  path = write(tmp_path / 'test.jsonl', FLASHRAG)
  report = formats.BadRecords()
  (record,) = formats.read_all([path], report=report, dataset='nq')
  assert record == Record(
    'test_0', 'nq', FLASHRAG['question'], ('Wilhelm Conrad Röntgen',), {}
  )
  assert report.notes == {'records without passages': 1}


def test_flashrag_with_its_retrieval_cache(tmp_path):
  path = write(
    tmp_path / 'test.jsonl',
    FLASHRAG,
    {**FLASHRAG, 'id': 'b', 'question': 'and chemistry?'},
  )
  cache = tmp_path / 'retrieval_cache.json'
  cache.write_text(
    json.dumps({FLASHRAG['question']: [CACHED], 'else?': []}, indent=4)
  )
  report = formats.BadRecords()
  first, second = formats.read_all([path, str(cache)], report=report)
  assert first.passages == {
    'given': (
      Passage('628', '"Nobel Prize"', 'The first was given\nin 1901.', 0.87),
    )
  }
  assert second.passages == {}
  assert report.notes == {
    'records without passages': 1,
    f'records for which nothing is in {cache}': 1,
  }


def test_flashrag_cache_of_ids_and_a_corpus(tmp_path):
  path = write(tmp_path / 'test.jsonl', FLASHRAG)
  cache = tmp_path / 'retrieval_cache.json'
  cache.write_text(
    json.dumps({FLASHRAG['question']: [{'id': 628, 'score': 1}]})
  )
  corpus = write(
    tmp_path / 'wiki.jsonl',
    {'id': '627', 'contents': 'Other\nText.'},
    {'id': '628', 'contents': 'Nobel Prize\nThe first.'},
  )
  (record,) = formats.read_all([path, str(cache)], corpus=[corpus])
  assert record.passages == {
    'given': (Passage('628', 'Nobel Prize', 'The first.', 1.0),)
  }


def test_flashrag_cache_of_other_questions_is_an_error(tmp_path):
  path = write(tmp_path / 'test.jsonl', FLASHRAG)
  cache = tmp_path / 'retrieval_cache.json'
  cache.write_text(json.dumps({'else?': [CACHED]}))
  with pytest.raises(RecordError, match=r'cache\.json: nothing in it is for'):
    formats.read_all([path, str(cache)])
  with pytest.raises(RecordError, match=r'expected a file of the questions'):
    formats.read_all([str(cache)])


def test_flashrag_bad_entry_of_a_cache(tmp_path):
  path = write(tmp_path / 'test.jsonl', FLASHRAG)
  cache = tmp_path / 'retrieval_cache.json'
  cache.write_text(json.dumps({FLASHRAG['question']: [{'contents': 5}]}))
  with pytest.raises(RecordError) as error:
    formats.read_all([path, str(cache)])
  assert str(error.value).startswith(
    f'{path}:1: its entry in {cache}: [0].contents: found a number (5), exp'
  )


def test_flashrag_intermediate_data(tmp_path):
  item = {**FLASHRAG, 'output': {'retrieval_result': [CACHED], 'pred': 'x'}}
  path = write(tmp_path / 'intermediate_data.json', item, array=True)
  (record,) = formats.read_all([path])
  assert [p.id for p in record.passages['given']] == ['628']


KILT = {
  'id': '5328',
  'input': 'who got the first nobel prize in physics',
  'meta': {},
  'output': [
    {
      'answer': 'Wilhelm Conrad Röntgen',
      'provenance': [
        {
          'wikipedia_id': '628785',
          'title': 'List of Nobel laureates in Physics',
          'section': 'Section::::Abstract.',
          'start_paragraph_id': 1,
          'start_character': 0,
          'end_paragraph_id': 3,
          'end_character': 96,
          'bleu_score': 1.0,
          'meta': {},
        }
      ],
    },
    {'answer': 'Röntgen', 'provenance': [{'wikipedia_id': '1', 'title': 'x'}]},
    {'answer': 'Röntgen'},
    {
      'provenance': [
        {
          'wikipedia_id': '628785',
          'start_paragraph_id': 1,
          'end_paragraph_id': 3,
        }
      ]
    },
  ],
}
KILT_PAGE = {
  '_id': '628785',
  'wikipedia_id': '628785',
  'wikipedia_title': 'List of Nobel laureates in Physics',
  'text': [
    'List of Nobel laureates in Physics\n',
    'The first was awarded in 1901 to Röntgen.\n',
    'Section::::Laureates.\n',
    'Two women have won.\n',
    'Not asked for.\n',
  ],
  'categories': 'Lists',
}


def test_kilt(tmp_path):
  path = write(tmp_path / 'nq-dev-kilt.jsonl', KILT)
  corpus = write(tmp_path / 'kilt_knowledgesource.json', KILT_PAGE)
  title = 'List of Nobel laureates in Physics'
  (record,) = formats.read_all([path], corpus=[corpus])
  assert record == Record(
    '5328',
    'nq-dev-kilt',
    KILT['input'],
    ('Wilhelm Conrad Röntgen', 'Röntgen'),
    {
      'gold': (
        Passage('628785:1', title, 'The first was awarded in 1901 to Röntgen.'),
        Passage('628785:3', title, 'Two women have won.'),
      )
    },
  )


def test_kilt_without_its_corpus_has_no_passages_and_says_so(tmp_path):
  path = write(tmp_path / 'nq-dev-kilt.jsonl', KILT)
  report = formats.BadRecords()
  (record,) = formats.read_all([path], report=report)
  assert record.passages == {}
  assert report.notes == {
    'passages left out: named by id alone, and no corpus was given': 1,
    'records without passages': 1,
  }


def test_kilt_errors(tmp_path):
  def with_source(**changes):
    source = {**KILT['output'][0]['provenance'][0], **changes}
    return {**KILT, 'output': [{'answer': 'x', 'provenance': [source]}]}

  path = write(
    tmp_path / 'a.jsonl',
    {**KILT, 'output': [{'provenance': []}]},
    with_source(start_paragraph_id='1'),
    with_source(end_paragraph_id=10**9),
    with_source(wikipedia_id='2'),
    with_source(start_paragraph_id=None),
  )
  corpus = write(tmp_path / 'kilt.json', KILT_PAGE)
  found, report = skipping(path, corpus=[corpus])
  assert len(found) == 1
  assert found[0].passages == {}
  where = 'output[0].provenance[0]'
  assert [m.removeprefix(f'{path}:') for m in report.messages] == [
    '1: output: found no answer, expected at least one',
    f'2: {where}.start_paragraph_id: found a string ("1"), expected a whole '
    'number',
    f'3: {where}: found paragraphs 1 to 1000000000, expected at most 1000 '
    'from 0 on',
    f'4: {where}: found the passage id 2:1, which the corpus does not have, '
    'expected it there',
  ]


PYSERINI = {
  '0': {
    'question': 'big little lies season 2 how many episodes',
    'answers': ['seven'],
    'contexts': [
      {
        'docid': '18768923',
        'score': '72.2',
        'text': '"Big Little Lies"\nSeason two.',
        'has_answer': False,
      },
      {'docid': '3', 'score': '70.1', 'has_answer': False},
    ],
  },
  '1': {'question': 'who?', 'answers': ['I'], 'contexts': []},
}


@pytest.mark.parametrize('indent', [None, 4])
def test_pyserini(tmp_path, indent):
  path = tmp_path / 'run.json'
  path.write_text(json.dumps(PYSERINI, indent=indent))
  corpus = write(
    tmp_path / 'c.jsonl', {'id': 3, 'title': 'T', 'text': 'Three.'}
  )
  first, second = formats.read_all([str(path)], corpus=[corpus])
  assert (first.id, first.answers) == ('0', ('seven',))
  assert first.passages == {
    'given': (
      Passage('18768923', '"Big Little Lies"', 'Season two.', 72.2),
      Passage('3', 'T', 'Three.', 70.1),
    )
  }
  assert (second.id, second.passages) == ('1', {'given': ()})


SHARED = {
  'id': 'nq-test-0',
  'question': 'who got the first nobel prize in physics',
  'answers': ['Röntgen'],
  'passages': [
    {'id': 'nq0', 'title': 'N', 'text': 'Gold.', 'gold': True},
    {'id': 'd608', 'title': 'M', 'text': 'Found.'},
  ],
  'retrieved': [['w2', 21.2], ['w1', 18.73]],
  'answer_in_retrieved': 0,
}


def test_passages_named_by_id(tmp_path):
  path = write(tmp_path / 'nq.test.jsonl', SHARED)
  corpus = write(
    tmp_path / 'c.jsonl',
    {'id': 'w1', 'title': 'One', 'text': 'First.'},
    {'id': 'w2', 'title': '', 'text': 'Second.'},
    # Nobody asks for it, so nobody looks at it.
    {'id': 'w3', 'title': '', 'text': '\x00'},
  )
  (record,) = formats.read_all([path], corpus=[corpus])
  assert record.passages == {
    'gold': (Passage('nq0', 'N', 'Gold.'),),
    # The gold one keeps its place among those listed.
    'given': (Passage('nq0', 'N', 'Gold.'), Passage('d608', 'M', 'Found.')),
    'bm25': (
      Passage('w2', '', 'Second.', 21.2),
      Passage('w1', 'One', 'First.', 18.73),
    ),
  }


def test_a_passage_that_the_corpus_lacks(tmp_path):
  path = write(
    tmp_path / 'a.jsonl', {**SHARED, 'id': 'x', 'retrieved': []}, SHARED
  )
  corpus = write(tmp_path / 'c.jsonl', {'id': 'w2', 'text': 'Second.'})
  with pytest.raises(RecordError) as error:
    formats.read_all([path], corpus=[corpus])
  assert str(error.value).startswith(
    f'{path}:2: retrieved[1]: found the passage id w1, which the corpus does '
    'not have, expected it there. '
  )
  found, report = skipping(path, corpus=[corpus])
  assert [record.id for record in found] == ['x']
  assert report.counts == {'missing_passage': 1}


def test_a_passage_that_the_corpus_has_twice(tmp_path):
  path = write(tmp_path / 'a.jsonl', SHARED)
  passage = {'id': 'w2', 'text': 'Second.'}
  corpus = write(
    tmp_path / 'c.jsonl', passage, {'id': 'w1', 'text': 'x'}, passage
  )
  with pytest.raises(RecordError, match=r'c\.jsonl:3: id: found w2, which an'):
    formats.read_all([path], corpus=[corpus])
  found, report = skipping(path, corpus=[corpus])
  assert len(found[0].passages['bm25']) == 2
  assert report.counts == {'duplicate_id': 1}


def test_bm25_twice_is_an_error(tmp_path):
  row = {**SHARED, 'passages': {'bm25': ['x']}}
  path = write(tmp_path / 'a.jsonl', row)
  with pytest.raises(RecordError, match=r':1: retrieved: found passages of bm'):
    formats.read_all([path])


def test_training_files_of_dpr(tmp_path):
  def ctx(text, **more):
    return {'title': 'T', 'text': text, 'score': 1.5, 'title_score': 0, **more}

  row = {
    'dataset': 'nq_train_psgs_w100',
    'question': 'who painted the mural',
    'answers': ['Anna B'],
    'positive_ctxs': [ctx('Anna B did.', passage_id='17'), ctx('')],
    'negative_ctxs': [ctx('Dogs bark.', psg_id=3)],
    'hard_negative_ctxs': [ctx('A fresco dries.', passage_id='99')],
  }
  path = write(tmp_path / 'biencoder-nq-dev.json', row, array=True)
  report = formats.BadRecords()
  gold = Passage('17', 'T', 'Anna B did.', 1.5)
  assert formats.read_all([path], report=report) == [
    Record(
      'biencoder-nq-dev:1',
      'nq_train_psgs_w100',
      'who painted the mural',
      ('Anna B',),
      {
        'given': (
          gold,
          Passage('99', 'T', 'A fresco dries.', 1.5),
          Passage('3', 'T', 'Dogs bark.', 1.5),
        ),
        'gold': (gold,),
      },
    )
  ]
  assert report.notes == {'blank passages left out': 1}


@pytest.mark.parametrize('answer', [None, 'What the system said.'])
@pytest.mark.parametrize(
  'truth',
  [
    {'ground_truth': '1931'},
    {'ground_truths': ['1931']},
    {'reference': '1931'},
  ],
)
def test_ragas_takes_the_truth_for_the_answer(tmp_path, answer, truth):
  row = {'question': 'When?', 'answer': answer, 'contexts': ['In 1931.', ' ']}
  if 'reference' in truth:  # Of version 0.2.
    row = {
      'user_input': 'When?',
      'response': answer,
      'retrieved_contexts': ['In 1931.', None],
      'reference_contexts': ['It was in 1931.'],
    }
  path = write(tmp_path / 'ragas.jsonl', {**row, **truth})
  (record,) = formats.read_all([path])
  assert (record.question, record.answers) == ('When?', ('1931',))
  assert record.passages['given'] == (Passage('', '', 'In 1931.'),)
  gold = (Passage('', '', 'It was in 1931.'),)
  assert record.passages.get('gold') == (gold if 'reference' in truth else None)


def test_a_systems_contexts_without_a_truth_are_no_data(tmp_path):
  row = {'question': 'When?', 'answer': 'So it says.', 'contexts': ['x']}
  path = write(tmp_path / 'ragas.jsonl', row)
  with pytest.raises(RecordError, match=':1: contexts: found keys that look'):
    formats.read_all([path])


@pytest.mark.parametrize('key', ['query', 'question'])
def test_rgb(tmp_path, key):
  row = {
    'id': 0,
    key: 'When?',
    'answer': ['1931', 'in 1931'],
    'fakeanswer': '1950',
    'positive': ['Painted in 1931.'],
    'positive_wrong': ['Painted in 1950.'],
    'negative': ['A fresco dries.'],
  }
  path = write(tmp_path / 'en_fact.json', row)
  assert formats.read_all([path]) == [
    Record(
      '0',
      'en_fact',
      'When?',
      ('1931', 'in 1931'),
      {
        'given': tuple(
          Passage('', '', text)
          for text in (
            'Painted in 1931.',
            'A fresco dries.',
            'Painted in 1950.',
          )
        ),
        'gold': (Passage('', '', 'Painted in 1931.'),),
      },
    )
  ]


def test_alce(tmp_path):
  docs = [{'id': '5', 'title': 'T', 'text': 'x', 'score': 0.5, 'summary': 's'}]
  asqa = {
    'sample_id': '-7',
    'question': 'Who?',
    'qa_pairs': [{'question': 'Who first?', 'short_answers': ['Anna B']}],
    'annotations': [{'long_answer': 'Anna.', 'knowledge': []}],
    'wikipages': [],
    'answer': 'Anna B did.',
    'docs': docs,
  }
  qampari = {
    'id': '3',
    'question': 'Which?',
    'answers': [['a', 'b'], ['c']],
    'answer': 'a, c.',
    'docs': docs,
  }
  path = write(tmp_path / 'alce.json', asqa, qampari, array=True)
  given = {'given': (Passage('5', 'T', 'x', 0.5),)}
  assert formats.read_all([path]) == [
    Record('-7', 'alce', 'Who?', ('Anna B did.',), given),
    Record('3', 'alce', 'Which?', ('a, c.',), given),
  ]


def test_crag(tmp_path):
  row = {
    'interaction_id': 'd1',
    'query_time': '03/05/2024',
    'domain': 'music',
    'query': 'who sang?',
    'answer': 'Anna',
    'alt_ans': ['Anna B'],
    'search_results': [
      {
        'page_name': 'Singers',
        'page_url': 'http://a',
        'page_snippet': 'Anna sang.',
        'page_result': '<html>',
      },
      {'page_name': 'None', 'page_snippet': '', 'page_result': ''},
    ],
  }
  path = write(tmp_path / 'crag.jsonl', row)
  report = formats.BadRecords()
  (record,) = formats.read_all([path], report=report)
  assert record == Record(
    'd1',
    'crag',
    'who sang?',
    ('Anna', 'Anna B'),
    {'given': (Passage('', 'Singers', 'Anna sang.'),)},
  )
  assert report.notes == {
    'blank passages left out': 1,
    'web pages of CRAG left out: their snippets are the passages': 1,
  }


def test_mirage(tmp_path):
  row = {
    'source': 'popqa',
    'query_id': '7',
    'query': 'Who?',
    'doc_name': 'Anna',
    'answer': ['Anna', 'Anna B'],
  }
  path = write(tmp_path / 'dataset.json', row, array=True)
  assert formats.read_all([path]) == [
    Record('7', 'dataset', 'Who?', ('Anna', 'Anna B'), {})
  ]
