"""Searches a finished index for questions as they come."""

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.data.records import Passage
from vtokens.host import claimed_directory, errors, paths
from vtokens.retrieval import passage_store, retrieval_config, search, topk
from vtokens.settings import schema

_ADVICE = 'expected the config.index_dir of a finished vtokens.retrieve'


class OpenIndex:
  """An index that is searched in a running program, from any thread.

  Args:
    corpus: the passages.
    index: their index.

  Attributes:
    name: name of the retriever.
    digest: hash of everything that decides what is found.
  """

  def __init__(self, corpus: passage_store.PassageReader, index: search.Index):
    self.name = index.name
    self.digest = index.digest
    self._corpus = corpus
    self._index = index

  def __len__(self) -> int:
    """Number of passages."""
    return len(self._corpus)

  def search(self, question: str, k: int = 5) -> list[Passage]:
    """Finds passages for a question.

    Args:
      question: the question.
      k: the most passages.

    Returns:
      The best passages with their scores, best first; none if no word of the
      question is in the corpus.

    Raises:
      errors.UserError: the question is no text, or k is no positive number.
    """
    return self.search_many([question], k)[0]

  def search_many(
    self, questions: Sequence[str], k: int = 5
  ) -> list[list[Passage]]:
    """Finds passages for several questions at once; see `search`."""
    if isinstance(questions, str) or not all(
      isinstance(question, str) for question in questions
    ):
      raise errors.UserError('question: expected a text')
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
      raise errors.UserError(f'k={k!r}: expected a whole number of at least 1')
    index, sizes = self._index, self._corpus.shard_sizes
    k = min(k, len(self._corpus))
    with tempfile.TemporaryDirectory() as directory:
      encoded = pathlib.Path(directory, 'questions')
      index.method.encode_questions(questions, encoded)
      hits = topk.merge(
        [
          index.method.search(
            index.directory,
            index.digest,
            self._corpus.first_row(shard),
            shard,
            encoded,
            k,
          )
          for shard in range(len(sizes))
        ],
        k,
      )
    return [
      [
        self._passage(row, score)
        for row, score in zip(rows, scores, strict=True)
        if row != topk.NO_ROW
      ]
      for rows, scores in zip(
        hits.rows.tolist(), hits.scores.tolist(), strict=True
      )
    ]

  def _passage(self, row: int, score: float) -> Passage:
    found = self._corpus[row]
    return Passage(found.id, found.title, found.text, score)


def open_index(
  directory: str,
  retriever: str | None = None,
  dense: retrieval_config.Dense | str | None = None,
) -> OpenIndex:
  """Opens an index of passages that `vtokens.retrieve` has made.

  Args:
    directory: `config.index_dir` of the retrieval.
    retriever: name of the retriever; None for the only one.
    dense: model of a dense retriever, or all its settings. An index records
      its settings, except for where the encoder is.

  Raises:
    errors.UserError: there is no such index, it is not finished, or it was made
      by another encoder or another version.
  """
  path = pathlib.Path(paths.expand_home(directory))
  if not claimed_directory.is_claimed(path / 'corpus'):
    raise errors.UserError(f'{path}: holds no corpus; {_ADVICE}')
  names = sorted(
    entry.name
    for entry in path.iterdir()
    if entry.name != 'corpus' and claimed_directory.is_claimed(entry)
  )
  if retriever is None and len(names) == 1:
    [retriever] = names
  if retriever not in names:
    raise errors.UserError(
      f'{path}: retriever={retriever!r}: expected one of '
      f'{errors.several(names)}'
    )
  assert retriever is not None
  own = path / retriever
  for part in (path / 'corpus', own):
    if not claimed_directory.is_complete(part):
      raise errors.UserError(
        f'{part}: was not finished; run the same vtokens.retrieve again'
      )
  corpus = passage_store.PassageReader.open(path / 'corpus')
  identity = claimed_directory.read_identity(own)
  method = search.make_method(_settings(identity, own, dense), retriever)
  ways = [method.identity(), *method.will_do()]
  if not any(
    _as_json({'corpus': corpus.identity, **way}) == identity for way in ways
  ):
    raise errors.UserError(
      f'{own}: was made of other passages, by another encoder, or by another '
      'version of a package; repeat vtokens.retrieve with '
      '--config.on_stale_index=rebuild'
    )
  index = search.Index(retriever, method, own, search.digest(identity))
  return OpenIndex(corpus, index)


def _as_json(values: Mapping[str, Any]) -> Any:
  """Values as they are read back from a file."""
  return json.loads(json.dumps(values))


def _settings(
  identity: Mapping[str, Any],
  directory: pathlib.Path,
  dense: retrieval_config.Dense | str | None,
) -> retrieval_config.Retriever:
  """The settings that made an index."""
  if 'bm25' in identity:
    bm25 = schema.build(retrieval_config.BM25, identity['bm25'])
    return retrieval_config.Retriever(bm25=bm25)
  if dense is None:
    raise errors.UserError(
      f'{directory}: is dense, and does not record where its encoder is; name '
      'the encoder with --encoder, in Python with open_index(..., dense=MODEL)'
    )
  if isinstance(dense, str):
    made = identity['dense']
    dense = schema.build(
      retrieval_config.Dense,
      {
        'model': dense,
        'dtype': made['dtype'],
        'storage': made['storage'],
        **made['recipe'],
      },
    )
  return retrieval_config.Retriever(kind='dense', dense=dense)
