"""Which questions are asked, and under which data set they count."""

import json

from vtokens.evaluation import eval_config
from vtokens.evaluation.asking import questions


def test_folders_shards_and_names(tmp_path):
  sources = []
  for name, ids in (
    ('nq/test-00000-of-00002.jsonl', range(7)),
    ('nq/test-00001-of-00002.jsonl', [7]),
    ('tqa/test-00000-of-00001.jsonl', [0]),
    ('other.jsonl', [0]),
  ):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    rows = [
      {'id': f'q{i}', 'question': f'{name} {i}?', 'answers': ['b']} for i in ids
    ]
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    sources.append(str(path))
  sources[3] = f'mine={sources[3]}'
  cfg = eval_config.Config(
    data=eval_config.Data(sources=tuple(sources)),
    conditions=('closed_book',),
    num_passages=(0,),
  )
  said = []
  found = questions.read(cfg, said.append)
  # One data set of eight: an average counts it once.
  assert {name: len(part) for name, part in found.items()} == {
    'nq': 8,
    'tqa': 1,
    'mine': 1,
  }
  assert [r.id for r in found['nq']] == [f'nq/q{i}' for i in range(8)]
  assert found['mine'][0].id == 'mine/q0'
  assert said == ['10 records without passages']
