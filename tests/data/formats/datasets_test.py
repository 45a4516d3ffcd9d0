"""Data sets as they are published, a faithful sample of each."""

import csv
import dataclasses
import io
import json

import pyarrow as pa
import pytest

from vtokens.data import formats
from vtokens.data.records import Passage, Record, RecordError


def write(path, value, indent=None):
  path.write_text(json.dumps(value, indent=indent))
  return str(path)


def counted(*sources, **kwargs):
  report = formats.BadRecords(**kwargs)
  return formats.read_all(sources, report=report), report


def squad(*questions, context='The Broncos won Super Bowl 50.', **changes):
  return {
    'version': '1.1',
    'data': [
      {
        'title': 'Super_Bowl_50',
        'paragraphs': [
          {'context': 'Another.', 'qas': []},
          {'context': context, 'qas': list(questions), **changes},
        ],
      }
    ],
  }


QUESTION = {
  'id': '56be4db0',
  'question': 'Who won Super Bowl 50?',
  'answers': [
    {'answer_start': 4, 'text': 'Broncos'},
    {'answer_start': 0, 'text': 'The Broncos'},
    {'answer_start': 4, 'text': 'Broncos'},
  ],
}
IMPOSSIBLE = {
  'id': '5a8d7bf7',
  'question': 'Who lost Super Bowl 51?',
  'is_impossible': True,
  'answers': [],
  'plausible_answers': [{'answer_start': 4, 'text': 'Broncos'}],
}
SQUAD_RECORD = Record(
  '56be4db0',
  'squad',
  'Who won Super Bowl 50?',
  ('Broncos', 'The Broncos'),
  {'gold': (Passage('', 'Super_Bowl_50', 'The Broncos won Super Bowl 50.'),)},
)


@pytest.mark.parametrize('indent', [None, 0, 2])
def test_squad(tmp_path, indent):
  path = write(tmp_path / 'squad.json', squad(QUESTION), indent)
  assert formats.read_all([path]) == [SQUAD_RECORD]


def test_squad_2_unanswerable(tmp_path):
  question = {**QUESTION, 'is_impossible': False}
  path = write(tmp_path / 'squad.json', squad(question, IMPOSSIBLE))
  found, report = counted(path)
  assert found == [SQUAD_RECORD]
  assert report.counts == {'unanswerable': 1}
  where = f'{path}: data[0].paragraphs[1].qas[1]'
  reason = 'is_impossible: the source says that there is no answer'
  # It is no bad record, so there is no message of one.
  assert report.messages == []
  assert [(place, why) for place, _, why in report.skipped] == [(where, reason)]
  assert list(report.notes.values()) == [1]
  with pytest.raises(RecordError) as error:
    counted(path, on_unanswerable='error')
  assert str(error.value) == f'{where}: {reason}'


def test_squad_2_unanswerable_is_kept(tmp_path):
  question = {**QUESTION, 'is_impossible': False}
  path = write(tmp_path / 'squad.json', squad(question, IMPOSSIBLE))
  found, report = counted(path, on_unanswerable='keep')
  assert found[0] == SQUAD_RECORD
  assert found[1] == Record(
    '5a8d7bf7',
    'squad',
    'Who lost Super Bowl 51?',
    (),
    SQUAD_RECORD.passages,
  )
  assert not found[1].answerable
  assert not report.counts


def test_squad_2_of_hugging_face(tmp_path):
  """Its columns lack is_impossible."""
  row = {
    'id': '5a8d7bf7',
    'title': 'Super_Bowl_50',
    'context': 'The Broncos won Super Bowl 50.',
    'question': 'Who lost Super Bowl 51?',
    'answers': {'text': [], 'answer_start': []},
  }
  path = tmp_path / 'squad.jsonl'
  rows = [row, {**row, 'id': 'b', 'answers': {'text': ['B'], 'x': [0]}}]
  path.write_text(''.join(f'{json.dumps(r)}\n' for r in rows))
  found, report = counted(str(path))
  assert [record.id for record in found] == ['b']
  assert report.counts == {'unanswerable': 1}
  found, _ = counted(str(path), on_unanswerable='keep')
  assert [record.answers for record in found] == [(), ('B',)]


def test_any_row_can_be_marked_as_unanswerable(tmp_path):
  path = tmp_path / 'own.jsonl'
  rows = [
    {'question': 'a?', 'passages': ['A.'], 'answerable': False},
    {'question': 'b?', 'answers': [], 'answerable': False},
    {'question': 'c?', 'answer': 'C', 'answerable': False},
    {'question': 'd?', 'golden_answers': [], 'is_impossible': True},
    {'question': 'e?', 'answers': ['E'], 'answerable': True},
  ]
  path.write_text(''.join(f'{json.dumps(r)}\n' for r in rows))
  found, _ = counted(str(path), on_unanswerable='keep')
  assert [r.answers for r in found] == [(), (), (), (), ('E',)]
  assert found[0].passages == {'given': (Passage('', '', 'A.'),)}
  found, report = counted(str(path))
  assert [r.answers for r in found] == [('E',)]
  assert report.counts == {'unanswerable': 4}
  # Empty answers alone are a mistake.
  path.write_text('{"question": "a?", "answers": []}\n')
  with pytest.raises(RecordError, match='answers: found an empty array'):
    counted(str(path), on_unanswerable='keep')


def test_squad_errors_name_the_place(tmp_path):
  bad = {**QUESTION, 'id': 'b', 'answers': [{'text': 'x'}, {'text': 5}]}
  path = write(tmp_path / 'squad.json', squad(QUESTION, bad, 'what?'))
  with pytest.raises(RecordError) as error:
    counted(path)
  where = f'{path}: data[0].paragraphs[1]'
  message = 'answers[1].text: found a number (5), expected a string'
  assert str(error.value).startswith(f'{where}.qas[1]: {message}. Fix')
  found, report = counted(path, on_bad_record='skip')
  assert found == [SQUAD_RECORD]
  assert report.messages == [
    f'{where}.qas[1]: {message}',
    f'{where}.qas[2]: record: found a string ("what?"), expected one JSON '
    'object',
  ]


def test_squad_bytes_that_are_no_utf8(tmp_path):
  content = json.dumps(squad(QUESTION, {**QUESTION, 'id': 'b'}))
  path = tmp_path / 'squad.json'
  path.write_bytes(content.encode().replace(b'"id": "b"', b'"id": "\xe9"'))
  found, report = counted(str(path), on_bad_record='skip')
  assert found == [SQUAD_RECORD]
  assert report.counts == {'invalid_utf8': 1}
  assert 'id: found byte 0xe9 at position 1, exp' in report.messages[0]


def test_squad_rows_as_published_in_columns(tmp_path):
  """What Hugging Face and TFDS make of SQuAD."""
  columns = {'text': ['Broncos', 'The Broncos'], 'answer_start': [4, 0]}
  row = {
    'id': '56be4db0',
    'title': 'Super_Bowl_50',
    'context': 'The Broncos won Super Bowl 50.',
    'question': 'Who won Super Bowl 50?',
    'answers': columns,
  }
  none = {**row, 'id': 'x', 'answers': {'text': [], 'answer_start': []}}
  path = tmp_path / 'squad.jsonl'
  path.write_text(f'{json.dumps(row)}\n{json.dumps(none)}\n')
  found, report = counted(str(path))
  assert found == [SQUAD_RECORD]
  assert report.counts == {'unanswerable': 1}


@pytest.mark.parametrize('answers', ['Broncos', ['Broncos', None, 'B']])
def test_mrqa_has_texts_for_answers(tmp_path, answers):
  row = {'context': 'The Broncos won.', 'question': 'Who?', 'answers': answers}
  path = write(tmp_path / 'mrqa.jsonl', row)
  (record,) = formats.read_all([path])
  assert record.answers[0] == 'Broncos'
  assert record.passages == {'gold': (Passage('', '', 'The Broncos won.'),)}


@pytest.mark.parametrize('answers', [5, [5], [{'text': 'x'}, 'y']])
def test_squad_answers_of_another_type(tmp_path, answers):
  row = {'context': 'c', 'question': 'Who?', 'answers': answers}
  with pytest.raises(RecordError, match=r'answers.*: found '):
    formats.read_all([write(tmp_path / 'mrqa.jsonl', row)])


@pytest.mark.parametrize(
  ('document', 'message'),
  [
    ({'data': [{'title': 'x'}]}, r'data\[0\]: found neither paragraphs'),
    (
      {'data': [{'paragraphs': [{'context': 'x'}]}]},
      r'aphs\[0\]\.qas: found no',
    ),
    ({'data': [{'paragraphs': {}}]}, r'data\[0\]\.paragraphs: found no array'),
  ],
)
def test_a_document_of_another_structure(tmp_path, document, message):
  path = write(tmp_path / 'squad.json', document)
  for policy in ('error', 'skip'):
    with pytest.raises(RecordError, match=message):
      counted(path, on_bad_record=policy)


def test_a_document_of_unknown_keys(tmp_path):
  path = write(tmp_path / 'a.json', {'version': 1, 'items': [{}]}, indent=2)
  with pytest.raises(
    RecordError, match=r'JSON value with the keys version, it'
  ):
    counted(path)


def test_a_document_that_is_cut_off(tmp_path):
  path = tmp_path / 'squad.json'
  path.write_text(json.dumps(squad(QUESTION), indent=1)[:-20])
  with pytest.raises(
    RecordError, match=r'json:\d+: found no JSON at column \d'
  ):
    counted(str(path), on_bad_record='skip')


HOTPOT = {
  '_id': '5a7a06935542990198eaf050',
  'answer': "Arthur's Magazine",
  'question': 'Which magazine was started first?',
  'supporting_facts': [["Arthur's Magazine", 0], ['First for Women', 0]],
  'context': [
    ['Radio City', ['Radio City is a station.', ' It started in 2001.']],
    ['First for Women', ['First for Women is a magazine.']],
    ["Arthur's Magazine", ['It was American.', ' It started in 1844.']],
    ['Empty', []],
  ],
  'type': 'comparison',
  'level': 'medium',
}
PARAGRAPHS = (
  Passage('', 'Radio City', 'Radio City is a station. It started in 2001.'),
  Passage('', 'First for Women', 'First for Women is a magazine.'),
  Passage('', "Arthur's Magazine", 'It was American. It started in 1844.'),
)
HOTPOT_RECORD = Record(
  '5a7a06935542990198eaf050',
  'hotpot',
  'Which magazine was started first?',
  ("Arthur's Magazine",),
  {'given': PARAGRAPHS, 'gold': PARAGRAPHS[1:]},
)


def test_hotpot(tmp_path):
  path = write(tmp_path / 'hotpot.json', [HOTPOT])
  found, report = counted(path)
  assert found == [HOTPOT_RECORD]
  assert report.notes == {'blank passages left out': 1}


def test_2wiki(tmp_path):
  row = {
    **HOTPOT,
    # Its sentences do not start with a space.
    'context': [[t, [s.strip() for s in ss]] for t, ss in HOTPOT['context']],
    'evidences': [['a', 'b', 'c']],
    'type': 'bridge_comparison',
    'entity_ids': 'Q1_Q2',
  }
  path = write(tmp_path / 'hotpot.json', [row], indent=1)
  assert formats.read_all([path]) == [HOTPOT_RECORD]


def test_2wiki_with_json_as_text(tmp_path):
  """As its Parquet files have it."""
  row = {
    **HOTPOT,
    **{key: json.dumps(HOTPOT[key]) for key in ('context', 'supporting_facts')},
    'evidences': '[]',
  }
  path = write(tmp_path / 'hotpot.jsonl', row)
  assert formats.read_all([path]) == [HOTPOT_RECORD]


def test_hotpot_in_columns(tmp_path):
  row = {
    **HOTPOT,
    'id': HOTPOT['_id'],
    'supporting_facts': {
      'title': ["Arthur's Magazine", 'First for Women'],
      'sent_id': [0, 0],
    },
    'context': {
      'title': [title for title, _ in HOTPOT['context']],
      'sentences': [sentences for _, sentences in HOTPOT['context']],
    },
  }
  del row['_id']
  path = write(tmp_path / 'hotpot.jsonl', row)
  assert formats.read_all([path]) == [HOTPOT_RECORD]


def test_hotpot_full_wiki_may_lack_gold_paragraphs(tmp_path):
  path = write(
    tmp_path / 'hotpot.json', [{**HOTPOT, 'context': HOTPOT['context'][:1]}]
  )
  (record,) = formats.read_all([path])
  assert record.passages == {'given': PARAGRAPHS[:1]}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'context': ['x']},
      r'\[0\]: context\[0\]: found a string \("x"\), expect',
    ),
    ({'context': [['t', 's']]}, r'context\[0\]\[1\]: found a string \("s"\)'),
    (
      {'context': [['t', [1]]]},
      r'context\[0\]\[1\]\[0\]: found a number \(1\)',
    ),
    ({'supporting_facts': [1]}, r'supporting_facts\[0\]: found a number \(1\)'),
    ({'answer': ''}, r'\[0\]: answer: found an empty string'),
  ],
)
def test_hotpot_errors(tmp_path, changes, message):
  path = write(tmp_path / 'hotpot.json', [{**HOTPOT, **changes}])
  with pytest.raises(RecordError, match=message):
    counted(path)


def test_nq_open(tmp_path):
  path = tmp_path / 'NQ-open.dev.jsonl'
  path.write_text(
    '{"question": "when was the last time anyone was on the moon", "answer": '
    '["14 December 1972 UTC", "December 1972"]}\n'
    '{"question": "who wrote it", "answer": "Kiedis"}\n'
  )
  assert formats.read_all([str(path)]) == [
    Record(
      'NQ-open.dev:1',
      'NQ-open',
      'when was the last time anyone was on the moon',
      ('14 December 1972 UTC', 'December 1972'),
      {},
    ),
    Record('NQ-open.dev:2', 'NQ-open', 'who wrote it', ('Kiedis',), {}),
  ]


POPQA_COLUMNS = [
  'id',
  'subj',
  'prop',
  'obj',
  'subj_id',
  'prop_id',
  'obj_id',
  's_aliases',
  'o_aliases',
  's_uri',
  'o_uri',
  's_wiki_title',
  'o_wiki_title',
  's_pop',
  'o_pop',
  'question',
  'possible_answers',
]


def popqa(*answers):
  """A file as pandas writes it, a row for each value of possible_answers."""
  text = io.StringIO()
  writer = csv.DictWriter(
    text, POPQA_COLUMNS, delimiter='\t', lineterminator='\n'
  )
  writer.writeheader()
  for i, possible in enumerate(answers):
    writer.writerow(
      {
        **dict.fromkeys(POPQA_COLUMNS, 'x'),
        'id': 4222362 + i,
        'question': "What is George Rankin's occupation?",
        'possible_answers': possible,
      }
    )
  return text.getvalue()


def test_popqa(tmp_path):
  path = tmp_path / 'popQA.tsv'
  path.write_text(popqa('["politician", "pol\\u00edtico"]', '["a \\"b\\""]'))
  assert '"[""politician""' in path.read_text()
  first, second = formats.read_all([str(path)])
  assert first == Record(
    '4222362',
    'popQA',
    "What is George Rankin's occupation?",
    ('politician', 'político'),
    {},
  )
  assert second.answers == ('a "b"',)


def test_popqa_as_python_writes_it(tmp_path):
  path = tmp_path / 'popQA.tsv'
  path.write_text(popqa("['politician', 'a \"b\"']"))
  (record,) = formats.read_all([str(path)])
  assert record.answers == ('politician', 'a "b"')


def test_popqa_errors(tmp_path):
  path = tmp_path / 'popQA.tsv'
  lines = popqa('["a"]', '[a]', '"a', '["a", 5]', '["a"]').splitlines(True)
  lines[5] = 'too\tfew\n'
  path.write_bytes(''.join(lines).encode() + b'caf\xe9' + b'\tx' * 16 + b'\n')
  found, report = counted(str(path), on_bad_record='skip')
  assert [record.id for record in found] == ['4222362']
  assert [m.removeprefix(f'{path}:') for m in report.messages] == [
    '3: possible_answers: found a string ("[a]"), expected a JSON array of '
    'strings',
    '4: possible_answers: found a string ("\\"a"), expected a JSON array of '
    'strings',
    '5: possible_answers[1]: found a number (5), expected a string',
    '6: row: found 2 fields, expected 17: id, subj, prop and 14 more',
    '7: possible_answers: found a string ("x"), expected a JSON array of '
    'strings',
  ]


def coqa(**changes):
  turns = [
    ('What color was Cotton?', 'white'),
    ('Where did she live?', 'a barn'),
  ]
  return {
    'version': '1.0',
    'data': [
      {
        'source': 'mctest',
        'id': '3dr23u6w',
        'filename': 'mc160.test.41',
        'story': 'Once a white kitten named Cotton lived in a barn.',
        'questions': [
          {'input_text': question, 'turn_id': i}
          for i, (question, _) in enumerate(turns, start=1)
        ],
        'answers': [
          {
            'span_start': 0,
            'span_end': 9,
            'span_text': 'a span',
            'input_text': answer,
            'turn_id': i,
          }
          for i, (_, answer) in enumerate(turns, start=1)
        ],
        'additional_answers': {
          '0': [
            {'input_text': 'White', 'turn_id': 1},
            {'input_text': 'a barn', 'turn_id': 2},
          ]
        },
        'name': 'mc160.test.41',
        **changes,
      }
    ],
  }


STORY = Passage('', '', 'Once a white kitten named Cotton lived in a barn.')


def test_coqa_first_round(tmp_path):
  path = write(tmp_path / 'coqa.json', coqa(), indent=2)
  assert formats.read_all([path]) == [
    Record(
      '3dr23u6w-1',
      'coqa',
      'What color was Cotton?',
      ('white', 'White'),
      {'gold': (STORY,)},
    )
  ]


def test_coqa_without_an_id(tmp_path):
  path = write(tmp_path / 'coqa.jsonl', {**coqa()['data'][0], 'id': None})
  (record,) = formats.read_all([path])
  assert record.id == 'coqa:1-1'


def test_coqa_all_rounds_with_history(tmp_path):
  path = write(tmp_path / 'coqa.json', coqa())
  first, second = formats.read_all([path], turns='all')
  assert first.question == 'User: What color was Cotton?'
  assert second == Record(
    '3dr23u6w-2',
    'coqa',
    'User: What color was Cotton?\nAgent: white\nUser: Where did she live?',
    ('a barn',),
    {'gold': (STORY,)},
  )


def test_coqa_errors(tmp_path):
  bad = [{'input_text': 'white'}, {'input_text': 7}]
  path = write(tmp_path / 'coqa.json', coqa(answers=bad))
  assert len(formats.read_all([path])) == 1
  with pytest.raises(RecordError) as error:
    formats.read_all([path], turns='all')
  assert str(error.value).startswith(
    f'{path}: data[0], round 2: answers[0]: found a number (7), expected a str'
  )
  path = write(tmp_path / 'coqa.json', coqa(answers=bad[:1]))
  with pytest.raises(
    RecordError, match=r'data\[0\]: answers: found 1 for 2 quest'
  ):
    formats.read_all([path])


@pytest.mark.parametrize('text', [None, 7])
@pytest.mark.parametrize('broken', ['questions', 'answers'])
def test_coqa_rounds_after_one_without_text(tmp_path, broken, text):
  rounds = {
    'questions': ['Q1?', 'Q2?', 'Q3?', 'Q4?'],
    'answers': ['a1', 'a2', 'a3', 'a4'],
  }
  rounds[broken][1] = text
  story = {'story': 'A kitten.', 'additional_answers': {}, **rounds}
  path = write(tmp_path / 'coqa.jsonl', {'id': 'c', **story})
  report = formats.BadRecords('skip')
  (first,) = formats.read_all([path], report=report, turns='all')
  assert (first.question, first.answers) == ('User: Q1?', ('a1',))
  assert [place for place, *_ in report.skipped] == [
    f'{path}:1, round {number}' for number in (2, 3, 4)
  ]
  assert all(
    why.startswith('round 2: found no text for its question or answer')
    for *_, why in report.skipped[1:]
  )


def ms_marco():
  passages = [
    {
      'is_selected': 0,
      'url': 'http://a',
      'passage_text': 'The project was big.',
    },
    {
      'is_selected': 1,
      'url': 'http://b',
      'passage_text': 'It cost two billion.',
    },
  ]
  return {
    'answers': {'0': ['Two billion.'], '1': ['No Answer Present.']},
    'passages': {'0': passages, '1': passages[:1]},
    'query': {'0': 'what did the project cost', '1': 'who paid'},
    'query_id': {'0': 1102432, '1': 1102431},
    'query_type': {'0': 'NUMERIC', '1': 'PERSON'},
    'wellFormedAnswers': {'0': ['It cost two billion.'], '1': '[]'},
  }


MS_MARCO_RECORD = Record(
  '1102432',
  'marco',
  'what did the project cost',
  ('Two billion.',),
  {
    'given': (
      Passage('', '', 'The project was big.'),
      Passage('', '', 'It cost two billion.'),
    ),
    'gold': (Passage('', '', 'It cost two billion.'),),
  },
)


@pytest.mark.parametrize('indent', [None, 2])
def test_ms_marco(tmp_path, indent):
  path = write(tmp_path / 'marco.json', ms_marco(), indent)
  found, report = counted(path)
  assert found == [MS_MARCO_RECORD]
  assert [(place, why) for place, _, why in report.skipped] == [
    (f'{path}: row 1', 'answers: the source says that there is no answer')
  ]


def test_ms_marco_rows_in_parquet(tmp_path):
  import pyarrow.parquet as pq

  columns = ms_marco()
  rows = []
  for i in columns['query']:
    row = {key: column[i] for key, column in columns.items()}
    items = row['passages']
    row['passages'] = {k: [item[k] for item in items] for k in items[0]}
    row['wellFormedAnswers'] = []
    rows.append(row)
  path = str(tmp_path / 'marco.parquet')
  pq.write_table(pa.Table.from_pylist(rows), path)
  found, report = counted(path)
  assert found == [MS_MARCO_RECORD]
  assert report.counts == {'unanswerable': 1}
  kept, _ = counted(path, on_unanswerable='keep')
  assert [record.answerable for record in kept].count(False) == 1


def test_trivia_qa(tmp_path):
  row = {
    'question': 'Who was the man behind The Chipmunks?',
    'question_id': 'tc_2',
    'question_source': 'http://www.triviacountry.com/',
    'answer': {
      'aliases': ['David Seville', 'Ross Bagdasarian'],
      'normalized_aliases': ['david seville'],
      'value': 'David Seville',
      'type': 'WikipediaEntity',
    },
  }
  hidden = {
    **row,
    'question_id': 'tc_3',
    'answer': {'aliases': [], 'value': '<unk>'},
  }
  path = tmp_path / 'trivia.jsonl'
  path.write_text(f'{json.dumps(row)}\n{json.dumps(hidden)}\n')
  found, report = counted(str(path))
  assert found == [
    Record(
      'tc_2',
      'trivia',
      row['question'],
      ('David Seville', 'Ross Bagdasarian'),
      {},
    )
  ]
  assert report.counts == {'unanswerable': 1}
  # It has an answer, which is not published.
  assert counted(str(path), on_unanswerable='keep')[0] == found


PARAGRAPHS_OF_MUSIQUE = [
  {
    'idx': i,
    'title': f'Town {i}',
    'paragraph_text': f'Town {i} lies on the Elbe.',
    'is_supporting': i == 1,
  }
  for i in range(3)
]
MUSIQUE = {
  'id': '2hop__1_2',
  'paragraphs': PARAGRAPHS_OF_MUSIQUE,
  'question': 'Which river passes the town of the mural?',
  'question_decomposition': [
    {'id': 1, 'question': 'mural >> town', 'answer': 'Town 1'}
  ],
  'answer': 'Elbe',
  'answer_aliases': ['River Elbe', 'Labe'],
  'answerable': True,
}


def test_musique(tmp_path):
  path = tmp_path / 'musique.jsonl'
  none = {**MUSIQUE, 'id': '2hop__3_4', 'answerable': False}
  bare = {**MUSIQUE, 'id': '2hop__5_6', 'answer_aliases': []}
  path.write_text(''.join(f'{json.dumps(r)}\n' for r in (MUSIQUE, none, bare)))
  found, report = counted(str(path))
  towns = tuple(
    Passage('', f'Town {i}', f'Town {i} lies on the Elbe.') for i in range(3)
  )
  record = Record(
    '2hop__1_2',
    'musique',
    MUSIQUE['question'],
    ('Elbe', 'River Elbe', 'Labe'),
    {'given': towns, 'gold': towns[1:2]},
  )
  assert found[0] == record
  assert (found[1].id, found[1].answers) == ('2hop__5_6', ('Elbe',))
  assert report.counts == {'unanswerable': 1}
  found, report = counted(str(path), on_unanswerable='keep')
  assert found[1] == dataclasses.replace(record, id='2hop__3_4', answers=())
  assert not report.counts


def test_trivia_qa_with_evidence_says_that_it_is_left_out(tmp_path):
  row = {
    'question': 'Who?',
    'question_id': 'tc_1',
    'answer': {'value': 'I', 'aliases': ['I']},
    'entity_pages': {'title': ['A'], 'wiki_context': ['Long.']},
    'search_results': {'title': [], 'search_context': []},
  }
  found, report = counted(write(tmp_path / 'trivia.jsonl', row))
  assert found[0].passages == {}
  note = 'records of TriviaQA whose evidence, whole documents, was left out'
  assert report.notes == {note: 1, 'records without passages': 1}


@pytest.mark.parametrize(
  'extra',
  [
    # What Hugging Face, TFDS and the authors have beside what is read.
    {'type': 'bridge', 'level': 'medium', 'evidences': [['a', 'b', 'c']]},
    {'answer_id': 'Q1', 'evidences_id': [['Q1', 'P1', 'Q2']]},
    {'entity_ids': 'Q1_Q2'},
  ],
)
def test_annotations_of_2wiki_do_not_block(tmp_path, extra):
  path = write(tmp_path / 'hotpot.json', [{**HOTPOT, **extra}])
  assert formats.read_all([path]) == [HOTPOT_RECORD]
