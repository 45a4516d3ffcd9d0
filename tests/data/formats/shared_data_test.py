"""Real questions with real passages, where they are at hand."""

import gzip
import itertools
import json
import lzma
import pathlib

import pytest

from vtokens.data import formats

ROOT = pathlib.Path(__file__).parents[4] / 'shared/data'
SETS = {
  'squad.test': {'gold', 'bm25'},
  'entityquestions.dev': {'gold', 'bm25'},
  'triviaqa.test': {'given', 'bm25'},
  'nq.test': {'gold', 'given', 'bm25'},
  'hotpotqa.test': {'bm25'},
  'webquestions.test': {'bm25'},
  'ottqa.test': {'gold', 'bm25'},
  'inscit.test': {'gold', 'bm25'},
}
NUM = 60  # of each set

pytestmark = pytest.mark.skipif(
  not (ROOT / 'qa').is_dir(), reason='the data is not there'
)


@pytest.fixture(scope='module')
def rows():
  """The first lines of each file of questions, that is without bad ones."""
  found = {}
  for name in SETS:
    with gzip.open(ROOT / f'qa/{name}.jsonl.gz', 'rt') as file:
      found[name] = [json.loads(x) for x in itertools.islice(file, NUM)]
  return found


@pytest.fixture(scope='module')
def corpus(rows, tmp_path_factory):
  """The passages that these lines name, and others, out of the corpus."""
  wanted = {
    passage_id
    for found in rows.values()
    for row in found
    for passage_id, _ in row['retrieved']
  }
  path = tmp_path_factory.mktemp('corpus') / 'wiki.jsonl'
  passages = {}
  with path.open('w') as out:
    for part in sorted((ROOT / 'corpus').glob('*.jsonl.xz')):
      with lzma.open(part, 'rt', encoding='utf-8') as file:
        for i, line in enumerate(file):
          # Parsing all would take longer than decompressing.
          passage_id = line[7 : line.index('"', 7)]
          if passage_id in wanted:
            passages[passage_id] = json.loads(line)
          if passage_id in wanted or i % 100 == 0:
            out.write(line)
  assert passages.keys() == wanted
  return str(path), passages


def test_shared_questions_with_their_corpus(rows, corpus, tmp_path):
  path, passages = corpus
  sources = []
  for name, lines in rows.items():
    source = tmp_path / f'{name}.jsonl.gz'
    with gzip.open(source, 'wt') as file:
      file.writelines(f'{json.dumps(line)}\n' for line in lines)
    sources.append(str(source))
  report = formats.BadRecords()
  found = formats.read_all(sources, corpus=[path], report=report)
  assert report.num_good == len(found) == NUM * len(SETS)
  assert report.counts.total() == 0
  expected = [row for lines in rows.values() for row in lines]
  seen = {name: set() for name in SETS}
  for record, row, name in zip(
    found, expected, [n for n in SETS for _ in range(NUM)], strict=True
  ):
    assert (record.id, record.question) == (row['id'], row['question'])
    assert record.answers == tuple(row['answers'])
    assert record.dataset == name.split('.')[0]
    assert [(p.id, p.score) for p in record.passages['bm25']] == [
      tuple(pair) for pair in row['retrieved']
    ]
    for passage in record.passages['bm25']:
      assert passage.text == passages[passage.id]['text']
      assert passage.title == passages[passage.id]['title']
    listed = row.get('passages', ())
    gold = [p['text'] for p in listed if p.get('gold', False)]
    # Gold ones are also among those given, if any is not gold.
    given = [p['text'] for p in listed] if len(gold) < len(listed) else []
    for kind, texts in (('gold', gold), ('given', given)):
      assert [p.text for p in record.passages.get(kind, ())] == texts
    seen[name] |= record.passages.keys()
  assert {name: SETS[name] & seen[name] for name in SETS} == seen
  assert set().union(*seen.values()) == {'gold', 'given', 'bm25'}


def test_bad_characters_of_real_data_are_replaced():
  report = formats.BadRecords()
  sources = [str(p) for p in sorted((ROOT / 'qa').glob('triviaqa.*.gz'))]
  questions = [r.question for r in formats.read_records(sources, report=report)]
  # Quotation marks of Windows-1252 that became control characters.
  assert report.notes['rows with control characters, which were replaced'] == 7
  assert len(questions) == 8_827 + 10_777
  assert sum('\u2018' in question for question in questions) >= 6
