"""Data sets of TFDS: the real builders, with made-up examples."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vtokens.data import catalogue, formats
from vtokens.data.records import Passage, Record
from vtokens.host import errors

NAMES = [
  'squad',
  'squad/v2.0',
  'natural_questions_open',
  'trivia_qa/unfiltered.nocontext',
  'coqa',
  'web_questions',
]


@pytest.mark.parametrize('name', NAMES)
def test_real_features_random_examples(name):
  """What mock_data makes of the features that the real builder declares."""
  report = formats.BadRecords('skip')
  with tfds.testing.mock_data(num_examples=20):
    found = formats.read_all([f'tfds:{name}:validation'], report=report)
  assert len(found) + report.counts.total() == 20
  assert len(found) >= 5
  stem = f'{name.split("/")[0]}.validation'
  for record in found:
    assert record.dataset == name.split('/')[0]
    assert record.answers
    if name in ('natural_questions_open', 'web_questions'):
      assert record.id.startswith(f'{stem}:')
  # Random text may be blank; nothing else is wrong with it.
  reasons = {message.split(': ', 3)[-1] for message in report.messages}
  assert all(
    'blank string' in reason
    or 'empty' in reason
    or 'no answer' in reason
    or 'questions, expected as many' in reason
    for reason in reasons
  ), reasons


class _Data(list):
  """Examples as a data source of array_record returns them."""


EXAMPLES = {
  'squad': (
    {
      'id': b'56be4db0',
      'title': b'Super_Bowl_50',
      'context': 'The Broncos won – 24 to 10.'.encode(),
      'question': b'Who won?',
      'answers': {
        'text': [b'Broncos', b'The Broncos'],
        'answer_start': [np.int32(4), np.int32(0)],
      },
    },
    Record(
      '56be4db0',
      'squad',
      'Who won?',
      ('Broncos', 'The Broncos'),
      {'gold': (Passage('', 'Super_Bowl_50', 'The Broncos won – 24 to 10.'),)},
    ),
  ),
  'natural_questions_open': (
    {'question': b'who wrote it', 'answer': [b'Kiedis']},
    Record(
      'natural_questions_open.train:1',
      'natural_questions_open',
      'who wrote it',
      ('Kiedis',),
      {},
    ),
  ),
  'trivia_qa/unfiltered.nocontext': (
    {
      'question': b'Who was it?',
      'question_id': b'tc_2',
      'question_source': b'http://x',
      'entity_pages': {'title': []},
      'search_results': {'rank': np.array([], np.int32)},
      'answer': {
        'aliases': [b'Seville', b'Ross'],
        'normalized_aliases': [b'seville'],
        'value': b'Seville',
        'type': b'',
      },
    },
    Record('tc_2', 'trivia_qa', 'Who was it?', ('Seville', 'Ross'), {}),
  ),
  'coqa': (
    {
      'source': b'mctest',
      'story': b'Cotton was white.',
      'questions': [b'What color?', b'Who?'],
      'answers': {
        'input_text': [b'white', b'Cotton'],
        'answer_start': np.array([0, 1], np.int32),
        'answer_end': np.array([0, 1], np.int32),
      },
    },
    Record(
      'coqa.train:1-1',
      'coqa',
      'What color?',
      ('white',),
      {'gold': (Passage('', '', 'Cotton was white.'),)},
    ),
  ),
  'web_questions': (
    {'url': b'http://x', 'question': b'who?', 'answers': [b'Linda Davis']},
    Record(
      'web_questions.train:1', 'web_questions', 'who?', ('Linda Davis',), {}
    ),
  ),
}


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples(name):
  example, expected = EXAMPLES[name]
  # The example is one that the builder's features accept.
  features = tfds.builder(name, try_gcs=False).info.features
  assert set(example) <= set(features)
  with tfds.testing.mock_data(
    as_data_source_fn=lambda *_, **__: _Data([example])
  ):
    assert formats.read_all([f'tfds:{name}']) == [expected]


def test_coqa_all_rounds():
  example, _ = EXAMPLES['coqa']
  with tfds.testing.mock_data(
    as_data_source_fn=lambda *_, **__: _Data([example])
  ):
    found = formats.read_all(['tfds:coqa'], turns='all')
  assert [record.id for record in found] == [
    'coqa.train:1-1',
    'coqa.train:1-2',
  ]
  assert found[1].question == ('User: What color?\nAgent: white\nUser: Who?')


def test_text_that_is_no_utf8():
  example = {'question': b'caf\xe9?', 'answer': [b'x']}
  report = formats.BadRecords('skip')
  with tfds.testing.mock_data(
    as_data_source_fn=lambda *_, **__: _Data(
      [{**example, 'question': b'ok?'}, example]
    )
  ):
    found = formats.read_all(['tfds:natural_questions_open'], report=report)
  assert len(found) == 1
  assert report.messages == [
    'tfds:natural_questions_open: example 2: example: found invalid '
    'continuation byte, expected UTF-8'
  ]


def test_not_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(errors.UserError) as error:
    formats.read_all(['tfds:squad/v2.0:validation'])
  message = str(error.value)
  assert message.startswith(
    'tfds:squad/v2.0:validation: found no examples in array_record in '
  )
  assert (
    "tfds.builder('squad/v2.0', file_format='array_record')"
    '.download_and_prepare()' in message
  )


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('tfds:hotpot_qa', r'not in the catalogue .*Dataset hotpot_qa not found'),
    ('tfds:squad/v3.0', r'tfds:squad/v3\.0: not in the catalogue .*v3\.0'),
    ('tfds:', r'expected tfds:NAME\[/CONFIG\]\[:SPLIT\]'),
  ],
)
def test_no_such_data_set(source, message):
  with pytest.raises(errors.UserError, match=message) as error:
    formats.read_all([source])
  assert len(str(error.value).splitlines()) == 1


SQUAD = {
  'version': '1.1',
  'data': [
    {
      'title': 'T',
      'paragraphs': [
        {
          'context': 'C text',
          'qas': [
            {
              'id': f'a{i}',
              'question': 'Q?',
              'answers': [{'text': 'C', 'answer_start': 0}],
            }
            for i in range(5)
          ],
        }
      ],
    }
  ],
}


def test_a_prepared_data_set(tmp_path, monkeypatch):
  """The real builder, its download apart, writes; no TensorFlow is needed."""
  downloaded = tmp_path / 'train-v1.1.json'
  downloaded.write_text(json.dumps(SQUAD))
  monkeypatch.setattr(
    tfds.download.DownloadManager,
    'download_and_extract',
    lambda _, urls: dict.fromkeys(urls, downloaded),
  )
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  builder = tfds.builder('squad', file_format='array_record', try_gcs=False)
  builder.download_and_prepare()
  found = formats.read_all(['tfds:squad:train[:3]'])
  assert len(found) == 3
  assert {record.id for record in found} <= {f'a{i}' for i in range(5)}
  assert found[0].passages == {'gold': (Passage('', 'T', 'C text'),)}
  assert found[0].dataset == 'squad'
  with pytest.raises(errors.UserError, match=r'tfds:squad:dev: .*train.*valid'):
    formats.read_all(['tfds:squad:dev'])


def test_needs_no_tensorflow():
  """Not even to import what reads data sets of TensorFlow."""
  code = (
    'import sys\n'
    'from vtokens.data import catalogue, formats\n'
    'light = {"tensorflow_datasets", "jax", "pyarrow"} & set(sys.modules)\n'
    'assert not light, light\n'
    'try:\n'
    '  list(catalogue.rows("tfds:squad"))\n'
    'except Exception as e:\n'
    '  assert type(e).__name__ == "UserError", e\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  root = pathlib.Path(catalogue.__file__).parents[2]
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
