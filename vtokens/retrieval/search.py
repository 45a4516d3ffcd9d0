"""Builds indices of a corpus, and searches them for questions."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vtokens.host import claimed_directory
from vtokens.retrieval import (
  bm25,
  dense,
  encoders,
  execute,
  passage_store,
  retrieval_config,
  topk,
)
from vtokens.scoring import unspaced


class Method(Protocol):
  """A way to retrieve. It can be pickled, for Beam's workers."""

  def identity(self) -> dict[str, Any]:
    """The settings that, with the corpus, decide the index."""

  def will_do(self) -> list[dict[str, Any]]:
    """Identities of other indices in which a search gives the same result."""

  def check(self) -> None:
    """Raises a `UserError` if it cannot run here; called before long work."""

  def describe(self) -> str:
    """The settings as text."""

  def build(
    self,
    corpus: passage_store.PassageReader,
    directory: pathlib.Path,
    execution: retrieval_config.Execution,
    label: str,
  ) -> dict[str, Any]:
    """Writes the missing indices of shards; returns facts about the index."""

  def encode_questions(
    self, questions: Sequence[str], path: pathlib.Path
  ) -> None:
    """Writes a file of questions for `search`."""

  def search(
    self,
    directory: pathlib.Path,
    digest: str,
    first_row: int,
    shard: int,
    questions: pathlib.Path,
    k: int,
  ) -> topk.Hits:
    """Finds the best passages of a shard for the questions of a file.

    Args:
      directory: directory of the index.
      digest: digest of the index.
      first_row: row of the shard's first passage.
      shard: number of the shard, from 0.
      questions: file that `encode_questions` wrote.
      k: the most passages for a question.
    """


@dataclasses.dataclass(frozen=True)
class Index:
  """The complete index of one retriever.

  Attributes:
    name: name of the retriever.
    method: how it retrieves.
    directory: directory of the index.
    digest: hash of everything that decides its content.
  """

  name: str
  method: Method
  directory: pathlib.Path
  digest: str


def make_method(
  settings: retrieval_config.Retriever,
  name: str,
  questions: Iterable[str] | None = None,
) -> Method:
  """Makes and checks a retriever of the config.

  Args:
    settings: settings of the retriever.
    name: name of the retriever.
    questions: all questions to search for; None if they are not known.

  Raises:
    errors.UserError: the retriever cannot run here.
  """
  method: Method
  if settings.kind == 'bm25':
    wants_grams = questions is None or any(map(unspaced.is_written, questions))
    method = bm25.BM25Method(settings.bm25, wants_grams)
  else:
    encoder = encoders.settle(settings.dense, name)
    method = dense.DenseMethod(encoder, settings.dense.storage)
  method.check()
  return method


def prepare_index(
  name: str,
  method: Method,
  corpus: passage_store.PassageReader,
  index_dir: pathlib.Path,
  execution: retrieval_config.Execution,
  *,
  rebuild: bool,
) -> Index:
  """Opens the index of a retriever; builds it first if it is absent.

  Args:
    name: name of the retriever.
    method: how it retrieves.
    corpus: corpus to index.
    index_dir: directory that gets the index, in a directory `name`.
    execution: where to do the work.
    rebuild: whether to replace another index in its place.

  Raises:
    errors.UserError: another or a damaged index is in its place, and `rebuild`
      is off.
  """
  directory = index_dir / name
  identity = {'corpus': corpus.identity, **method.identity()}
  if claimed_directory.is_claimed(directory):
    there = claimed_directory.read_identity(directory)
    for other in method.will_do():
      if there == json.loads(json.dumps({'corpus': corpus.identity, **other})):
        identity = there
  complete = claimed_directory.claim(
    directory,
    identity,
    'an index',
    rebuild=rebuild,
    advice=f'choose another --config.index_dir or name than {name}, or '
    'replace it with --config.on_stale_index=rebuild',
  )
  if not complete:
    claimed_directory.finish(
      directory, method.build(corpus, directory, execution, name)
    )
  return Index(name, method, directory, digest(identity))


def digest(identity: dict[str, Any]) -> str:
  """Hash of JSON values, 64 hexadecimal digits."""
  text = json.dumps(identity, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def chunk_path(
  workdir: pathlib.Path, kind: str, name: str, chunk: int, suffix: str
) -> pathlib.Path:
  """Path of a file for a chunk of questions."""
  return workdir / kind / name / f'{chunk:05}{suffix}'


def search(
  index: Index,
  corpus: passage_store.PassageReader,
  chunks: Sequence[Sequence[str]],
  workdir: pathlib.Path,
  execution: retrieval_config.Execution,
  top_k: int,
) -> None:
  """Writes the missing files of the best passages for chunks of questions.

  Args:
    index: index to search.
    corpus: corpus of the index.
    chunks: questions, in chunks.
    workdir: directory that gets `questions/NAME/` and `hits/NAME/`.
    execution: where to do the work.
    top_k: the most passages for a question.
  """
  numbers = range(len(chunks))
  encoded = functools.partial(
    chunk_path, workdir, 'questions', index.name, suffix=''
  )
  found = functools.partial(
    chunk_path, workdir, 'hits', index.name, suffix='.npz'
  )
  execute.for_each(
    retrieval_config.Execution(),  # A model is loaded once.
    lambda chunk: index.method.encode_questions(chunks[chunk], encoded(chunk)),
    numbers,
    lambda chunk: encoded(chunk).exists() or found(chunk).exists(),
    f'{index.name}: encode questions',
  )
  execute.map_reduce(
    execution,
    functools.partial(_search_shard, index, corpus.directory, workdir, top_k),
    range(len(corpus.shard_sizes)),
    functools.partial(topk.merge, k=top_k),
    functools.partial(_write_hits, workdir, index.name),
    numbers,
    lambda chunk: found(chunk).exists(),
    f'{index.name}: search',
  )


def read_hits(workdir: pathlib.Path, name: str, chunk: int) -> topk.Hits:
  """Reads the hits that `search` wrote."""
  with np.load(chunk_path(workdir, 'hits', name, chunk, '.npz')) as file:
    return topk.Hits(rows=file['rows'], scores=file['scores'])


def count_without(workdir: pathlib.Path, name: str, num_chunks: int) -> int:
  """Number of questions for which a retriever found nothing."""
  return sum(
    int((read_hits(workdir, name, chunk).rows[:, 0] < 0).sum())
    for chunk in range(num_chunks)
  )


def _search_shard(
  index: Index,
  corpus: pathlib.Path,
  workdir: pathlib.Path,
  top_k: int,
  shard: int,
  chunk: int,
) -> topk.Hits:
  return index.method.search(
    index.directory,
    index.digest,
    _first_row(corpus, shard),
    shard,
    chunk_path(workdir, 'questions', index.name, chunk, ''),
    top_k,
  )


def _first_row(corpus: pathlib.Path, shard: int) -> int:
  return passage_store.PassageReader.open(corpus).first_row(shard)


def _write_hits(
  workdir: pathlib.Path, name: str, chunk: int, hits: topk.Hits
) -> None:
  path = chunk_path(workdir, 'hits', name, chunk, '.npz')
  with claimed_directory.new_part(path) as part, part.open('wb') as file:
    np.savez(file, rows=hits.rows, scores=hits.scores)
