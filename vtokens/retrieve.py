r"""Finds passages for questions.

    python -m vtokens.retrieve --config configs/retrieve/x.py

`vtokens/retrieval/retrieval_config.py` documents the fields, docs/retrieval.md
what is written. The same command continues a run that was stopped or killed.
"""

import pathlib
import time
from collections.abc import Sequence

from vtokens.data import records
from vtokens.host import claimed_directory, errors, locks, stopping, writers
from vtokens.retrieval import (
  passage_store,
  recall,
  retrieval_config,
  retrieval_inputs,
  retrieved_records,
  search,
)
from vtokens.settings import flags


def retrieve(
  cfg: retrieval_config.Config,
) -> dict[str, dict[str, dict[str, float]]]:
  """Runs or continues a retrieval.

  Args:
    cfg: a validated config.

  Returns:
    Recall as in recall.json: dataset -> retriever -> recall@k -> value.

  Raises:
    errors.UserError: bad input, or a directory belongs to something else.
  """
  workdir, index_dir = pathlib.Path(cfg.workdir), pathlib.Path(cfg.index_dir)
  rebuild = cfg.on_stale_index == 'rebuild'
  questions, skipped = _read_questions(cfg)
  # Before building the index, which takes long.
  locks.check_writable(workdir)
  methods = {}
  for name, settings in cfg.retrievers.items():
    methods[name] = search.make_method(
      settings, name, (record.question for record in questions)
    )
    writers.say(f'{name}: {methods[name].describe()}')
  corpus = passage_store.prepare(cfg.corpus, index_dir, rebuild=rebuild)
  if num_skipped := claimed_directory.read_info(corpus.directory)[
    'num_skipped'
  ]:
    writers.say(
      f'config.corpus: skipped {num_skipped:,} bad passages, see '
      f'{corpus.directory}/{passage_store.SKIPPED}'
    )
  indices = []
  for name, method in methods.items():
    began = time.monotonic()
    index = search.prepare_index(
      name, method, corpus, index_dir, cfg.execution, rebuild=rebuild
    )
    size = claimed_directory.num_bytes(index.directory)
    writers.say(
      f'{name}: index of {len(corpus):,} passages, {size / 1e6:,.1f} MB, '
      f'{size / len(corpus):,.0f} bytes each, ready after '
      f'{time.monotonic() - began:.1f} s'
    )
    indices.append(index)
  chunk_size = _chunk_size(cfg)
  _claim_workdir(cfg, chunk_size, questions, indices)
  if skipped:
    path = workdir / 'skipped_questions.txt'
    writers.write_text(path, ''.join(f'{line}\n' for line in skipped))
    writers.say(
      f'config.questions: skipped {len(skipped):,} bad records, see {path}'
    )
  size = chunk_size
  chunks = [
    questions[start : start + size] for start in range(0, len(questions), size)
  ]
  texts = [[record.question for record in chunk] for chunk in chunks]
  for index in indices:
    search.search(index, corpus, texts, workdir, cfg.execution, cfg.top_k)
    without = search.count_without(workdir, index.name, len(chunks))
    if without:
      writers.say(f'{index.name}: {without:,} questions have no passage')
  ranks = retrieved_records.write_records(
    chunks, list(methods), corpus, workdir, compress=cfg.compress
  )
  asked = [i for i, record in enumerate(questions) if record.answerable]
  table = recall.table(
    [questions[i].dataset for i in asked],
    {name: [found[i] for i in asked] for name, found in ranks.items()},
    cfg.top_k,
  )
  # Last, because this file marks the run as finished.
  writers.write_json(workdir / 'recall.json', table)
  return table


def _read_questions(
  cfg: retrieval_config.Config,
) -> tuple[list[records.Record], list[str]]:
  """The records, and a message for each omitted record."""
  questions, skipped = retrieval_inputs.read_questions(
    cfg.questions.paths,
    on_bad_record=cfg.questions.on_bad_record,
    unanswerable=cfg.questions.unanswerable,
  )
  for record in questions:
    for name in cfg.retrievers.keys() & record.passages.keys():
      raise errors.UserError(
        f'config.retrievers: record {record.id} has passages of {name!r} '
        'already; choose another name'
      )
  return questions, skipped


def _chunk_size(cfg: retrieval_config.Config) -> int:
  """Chunk size of the run in the work directory, or of the config if none.

  It decides the split of results into files, not the results.
  """
  begun = claimed_directory.identity_if_there(pathlib.Path(cfg.workdir))
  size: int = begun.get('chunk_size', cfg.questions.chunk_size)
  if size != cfg.questions.chunk_size:
    writers.say(
      f'config.questions.chunk_size: {size} as {cfg.workdir} was begun with, '
      f'not {cfg.questions.chunk_size}'
    )
  return size


def _claim_workdir(
  cfg: retrieval_config.Config,
  chunk_size: int,
  questions: Sequence[records.Record],
  indices: Sequence[search.Index],
) -> None:
  """Raises unless the work directory belongs to this run or is empty."""
  claimed_directory.claim(
    pathlib.Path(cfg.workdir),
    {
      'questions': records.sha256(questions),
      'chunk_size': chunk_size,
      'top_k': cfg.top_k,
      'compress': cfg.compress,
      'indices': {index.name: index.digest for index in indices},
    },
    'a run',
    rebuild=False,
    advice='choose another --config.workdir, or repeat the same command to '
    'continue that run',
  )


def main(cfg: retrieval_config.Config) -> None:
  """Entry point."""
  try:
    with locks.locked(pathlib.Path(cfg.index_dir)):
      table = retrieve(cfg)
  # Files on disk are complete at any time.
  except stopping.Ended:
    writers.say(f'stopped; continue with: {flags.command_line()}')
    raise
  writers.say(
    'questions whose first k passages hold an answer, in percent\n'
    f'{recall.format_table(table)}\n'
    f'written to {cfg.workdir}: '
    f'records.jsonl{".gz" if cfg.compress else ""}, recall.json'
  )


if __name__ == '__main__':
  flags.run_config(
    main,
    retrieval_config.Config,
    retrieval_config.validate,
    'configs/retrieve/example.py',
  )
