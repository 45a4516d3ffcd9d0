"""Results that no model gave, for tests of the report."""

import numpy as np

from vtokens.data.records import Passage, Record
from vtokens.evaluation.asking.cells import (
  Answer,
  Cell,
  CellResult,
  MainValues,
  Results,
)
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.scoring import metrics

# The wrong one has F1 2 * (1/3 * 1) / (1/3 + 1) = 0.5, and contains the answer.
RIGHT, WRONG = 'Paris', 'Paris or London'


def record(dataset, number, *, retrievers=('bm25',)):
  """A question about whose first passage alone has the answer."""
  return Record(
    f'{dataset}-{number}',
    dataset,
    f'{dataset}: question {number}?',
    (RIGHT, 'City of Paris'),
    {
      name: tuple(
        Passage(
          f'{name}-{number}-{i}',
          'Title',
          f'It was {RIGHT}.' if i == 0 else f'Nothing, {name} {i}.',
        )
        for i in range(3)
      )
      for name in retrievers
    },
  )


def result(cell, records, right, *, stop='end'):
  """A cell's answers: right where `right` is 1, else wrong."""
  answers = [
    Answer(
      RIGHT if r else WRONG,
      1 if r else 4,
      stop if r else 'length',
      shown=tuple(range(min(cell.num_passages, 3))),
    )
    for r in right
  ]
  pairs = [(a.text, r.answers) for a, r in zip(answers, records, strict=True)]
  values = {
    'em': np.array([metrics.exact_match(*pair) for pair in pairs]),
    'f1': np.array([metrics.token_f1(*pair) for pair in pairs]),
    'contains': np.array([float(RIGHT in answer.text) for answer in answers]),
  }
  return CellResult(cell, answers, values, np.zeros(len(answers), bool))


def build(records, spec, **main):
  """Results of cells.

  Args:
    records: dataset -> its questions.
    spec: pairs of a cell and which of its questions are right.
    **main: fields of `MainValues` that differ from those below.
  """
  cells = {
    cell: result(cell, records[cell.dataset], right) for cell, right in spec
  }
  fields = {
    'num_active': {'ours': 5},
    'num_passages': 3,
    'retriever': 'bm25',
  }
  return Results(
    records=records,
    cells=cells,
    conditions=tuple(CONDITIONS),
    main=MainValues(**(fields | main)),
  )


def small():
  """Two datasets of 4 and 2 questions; three conditions at main values."""
  records = {
    'nq': [record('nq', i) for i in range(4)],
    'squad': [record('squad', i) for i in range(2)],
  }
  spec = [
    (cell(name, condition), right)
    for condition, rows in (
      ('closed_book', ([0, 0, 0, 0], [0, 1])),
      ('prompt', ([1, 0, 0, 0], [1, 0])),
      ('tokens', ([1, 1, 1, 0], [0, 1])),
    )
    for name, right in zip(records, rows, strict=True)
  ]
  return build(records, spec)


def cell(dataset, condition, *, model='lm', table='ours', k=5, m=3, by='bm25'):
  """A cell, with what does not apply to its condition left out."""
  table = table if CONDITIONS[condition].tokens else ''
  return Cell(dataset, model, condition, table, k, m, by).only_what_applies()


def large(seed=0, size=60):
  """Three datasets, two tables, all axes varied; numbers by chance."""
  rng = np.random.default_rng(seed)
  retrievers = ('bm25', 'e5-base')
  records = {
    name: [record(name, i, retrievers=retrievers) for i in range(size + 10 * j)]
    for j, name in enumerate(('nq', 'squad', 'triviaqa'))
  }
  spec = []

  def add(condition, chance, **where):
    for name, rows in records.items():
      one = cell(name, condition, **where)
      if one not in dict(spec):
        spec.append((one, rng.random(len(rows)) < chance))

  add('closed_book', 0.05)
  add('concat', 0.02)
  add('chat_prompt', 0.3)
  for m in range(6):
    add('prompt', 0.2 + 0.03 * min(m, 4), m=m)
    add('tokens', 0.25 + 0.06 * min(m, 4), m=m)
  for by in retrievers:
    add('prompt', 0.24, by=by)
    add('tokens', 0.4, by=by)
    add('tokens', 0.35, by=by, table='other', k=20)
  for k in (1, 2, 5, 10, 20):
    add('tokens', 0.3 + 0.03 * np.log2(k), k=k)
    add('tokens', 0.25 + 0.03 * np.log2(k), k=k, table='other')
  return build(records, spec, num_active={'ours': 5, 'other': 20})
