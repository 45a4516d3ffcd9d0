"""Writes records with the passages found, and ranks of passages with answers.

Each chunk of questions becomes a part; the file is the parts in order. The
parts of a compressed file are separate gzip members, which gzip allows.
"""

import functools
import gzip
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from vtokens.data import containment, records
from vtokens.host import claimed_directory, json_files
from vtokens.retrieval import (
  execute,
  passage_store,
  retrieval_config,
  search,
)

# For records with 100 passages, level 6 saves 4 % and takes 2.3 times as long.
_LEVEL = 4


def write_records(
  chunks: Sequence[Sequence[records.Record]],
  names: Sequence[str],
  corpus: passage_store.PassageReader,
  workdir: pathlib.Path,
  *,
  compress: bool,
) -> dict[str, list[int]]:
  """Writes the records.

  Args:
    chunks: questions, in chunks as they were searched.
    names: names of the retrievers, in the order to write them.
    corpus: corpus that was searched.
    workdir: directory with the hits; gets records.jsonl or records.jsonl.gz.
    compress: whether to write records.jsonl.gz.

  Returns:
    For each retriever the rank of the first passage with an answer to each
    question, 0 for none; see `recall`.
  """
  suffix = '.jsonl.gz' if compress else '.jsonl'
  whole = workdir / f'records{suffix}'
  part = functools.partial(_part, workdir, suffix)
  ranks = functools.partial(_part, workdir, '.ranks.json')

  def write(chunk: int) -> None:
    lines, found = _lines(chunks[chunk], chunk, names, corpus, workdir)
    data = ''.join(lines).encode()
    if compress:
      data = gzip.compress(data, compresslevel=_LEVEL, mtime=0)
    with claimed_directory.new_part(part(chunk)) as path:
      path.write_bytes(data)
    with claimed_directory.new_part(ranks(chunk)) as path:
      path.write_text(json.dumps(found), 'utf-8')

  numbers = range(len(chunks))
  if not (whole.exists() and all(ranks(chunk).exists() for chunk in numbers)):
    execute.for_each(
      retrieval_config.Execution(),
      write,
      numbers,
      lambda chunk: part(chunk).exists() and ranks(chunk).exists(),
      'write records',
    )
    with claimed_directory.new_part(whole) as path, path.open('wb') as file:
      for chunk in numbers:
        with part(chunk).open('rb') as source:
          shutil.copyfileobj(source, file)
  for chunk in numbers:
    claimed_directory.remove(part(chunk))
  result: dict[str, list[int]] = {name: [] for name in names}
  advice = f'delete {workdir} to have it made again'
  for chunk in numbers:
    ranked = json_files.read(ranks(chunk), {str: [int]}, advice)
    for name, found in ranked.items():
      result[name] += found
  return result


def _part(workdir: pathlib.Path, suffix: str, chunk: int) -> pathlib.Path:
  return workdir / 'parts' / f'{chunk:05}{suffix}'


def _lines(
  questions: Sequence[records.Record],
  chunk: int,
  names: Sequence[str],
  corpus: passage_store.PassageReader,
  workdir: pathlib.Path,
) -> tuple[list[str], dict[str, list[int]]]:
  """The lines of a chunk, and the ranks of first passages with an answer."""
  hits = {name: search.read_hits(workdir, name, chunk) for name in names}
  lines = []
  ranks: dict[str, list[int]] = {name: [] for name in names}
  for i, record in enumerate(questions):
    passages: dict[str, Any] = {
      name: [_as_json(passage, passage.score) for passage in ranked]
      for name, ranked in record.passages.items()
    }
    matcher = containment.Matcher(record.answers)
    for name in names:
      found = [
        # The shortest decimal that rounds to this float32.
        (corpus[row], float(str(score)))
        for row, score in zip(
          hits[name].rows[i], hits[name].scores[i], strict=True
        )
        if row >= 0
      ]
      passages[name] = [_as_json(passage, score) for passage, score in found]
      ranks[name].append(matcher.first(passage for passage, _ in found))
    line = {
      'id': record.id,
      'dataset': record.dataset,
      'question': record.question,
      'answers': list(record.answers),
      'passages': passages,
      **({} if record.answerable else {'answerable': False}),
    }
    lines.append(json.dumps(line, ensure_ascii=False) + '\n')
  return lines, ranks


def _as_json(passage: records.Passage, score: float | None) -> dict[str, Any]:
  value = {'id': passage.id, 'title': passage.title, 'text': passage.text}
  return value if score is None else {**value, 'score': score}
