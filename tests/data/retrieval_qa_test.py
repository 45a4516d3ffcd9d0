import importlib.util
import math
import pathlib

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import example_serializer

from vtokens.data import retrieval_qa
from vtokens.data.records import Passage, Record
from vtokens.host import errors

TEXT = st.text(
  st.characters(blacklist_categories=('Cs', 'Cc')), min_size=1, max_size=20
)
PASSAGE = st.builds(
  Passage,
  id=st.just('') | TEXT,
  title=st.just('') | TEXT,
  text=TEXT,
  score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
RECORD = st.builds(
  Record,
  id=TEXT,
  dataset=TEXT,
  question=TEXT,
  answers=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
  passages=st.dictionaries(
    TEXT, st.lists(PASSAGE, max_size=3).map(tuple), max_size=3
  ),
)

RECORDS = [
  Record(
    id=f'r{i}',
    dataset='d',
    question=f'Which number is {i}?',
    answers=(str(i), f'no. {i}'),
    passages={
      'zebra': (Passage(f'p{i}', 'Title', f'It is {i}.', 0.1 * i),),
      'bm25': (),
      'dense': (Passage('', '', 'Ünïcode', None), Passage('', '', 'b', -1e300)),
    },
  )
  for i in range(50)
]


def through_bytes(record):
  """As tfds writes it."""
  features = retrieval_qa.features()
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  return retrieval_qa.parse(
    serializer.serialize_example(
      features.encode_example(retrieval_qa.to_example(record))
    )
  )


@settings(deadline=None, max_examples=100)
@given(RECORD)
def test_nothing_is_lost(record):
  back = through_bytes(record)
  assert back == record
  # Equality of dicts does not see their order.
  assert list(back.passages) == list(record.passages)


def test_scores_keep_all_bits_and_none_is_not_a_number():
  passages = tuple(
    Passage('', '', 'x', score) for score in (0.1, 1 / 3, 1e-300, None, -0.0)
  )
  record = Record('i', 'd', 'q', ('a',), {'bm25': passages})
  scores = [p.score for p in through_bytes(record).passages['bm25']]
  assert scores == [0.1, 1 / 3, 1e-300, None, 0.0]
  assert math.copysign(1, scores[-1]) == -1


def test_other_users_of_tfds_can_read_it(tmp_path):
  path = retrieval_qa.write(
    str(tmp_path), 'numbers', {'train': lambda: iter(RECORDS)}
  )
  source = tfds.data_source('retrieval_qa/numbers', data_dir=tmp_path)['train']
  assert len(source) == 50
  by_id = {example['id']: example for example in source}
  example = by_id[b'r3']
  assert example['question'] == b'Which number is 3?'
  assert list(example['answers']) == [b'3', b'no. 3']
  assert list(example['retrievers']) == [b'zebra', b'bm25', b'dense']
  passages = example['passages']
  assert list(passages['retriever']) == [b'zebra', b'dense', b'dense']
  assert [float(s) for s in passages['score']][::2] == [0.1 * 3, -1e300]
  assert math.isnan(passages['score'][1])
  info = tfds.builder_from_directory(path).info
  assert info.splits['train'].num_examples == 50
  assert 'NaN' in info.description


def test_the_order_of_the_input_does_not_matter(tmp_path):
  contents = []
  for name, records in (('a', RECORDS), ('b', RECORDS[::-1])):
    path = retrieval_qa.write(
      str(tmp_path / name),
      'numbers',
      {'train': lambda records=records: iter(records)},
      num_shards=3,
    )
    shards = sorted(pathlib.Path(path).glob('*.array_record-*'))
    assert len(shards) == 3
    contents.append([file.read_bytes() for file in shards])
  assert contents[0] == contents[1]


def test_ids_that_differ_in_a_slash_are_two(tmp_path):
  records = [Record(id_, 'd', 'q', ('a',), {}) for id_ in ('a/b', 'a\\b')]
  retrieval_qa.write(str(tmp_path), 'two', {'train': lambda: iter(records)})


def test_too_large_for_memory(tmp_path, monkeypatch):
  # setup.py does not install it, so that .ci/run never skips this.
  if importlib.util.find_spec('tensorflow'):
    pytest.skip('TensorFlow is installed: tfds sorts on disk')
  monkeypatch.setattr(retrieval_qa, 'memory_limit', lambda: 1000)
  with pytest.raises(errors.UserError, match="runner='beam'"):
    retrieval_qa.write(
      str(tmp_path), 'numbers', {'train': lambda: iter(RECORDS)}
    )
