"""Dense retrieval: an exhaustive faiss index for each shard.

Scores are inner products of embeddings. Only their last bits depend on the
shards, since the order of BLAS's sums depends on the sizes of its matrices.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import tqdm

from vtokens.data import records
from vtokens.host import claimed_directory
from vtokens.retrieval import (
  encoders,
  execute,
  passage_store,
  retrieval_config,
  topk,
)

_BATCH = 2048  # Passages between two moves of the progress bar.
_INDEX = 'index.faiss'


@dataclasses.dataclass(frozen=True)
class DenseMethod:
  """Dense retrieval with fixed settings; see `search.Method`.

  Attributes:
    encoder: encoder of questions and passages.
    storage: type of stored embeddings, float32 or float16.
  """

  encoder: encoders.SentenceEncoder
  storage: str

  def identity(self) -> dict[str, Any]:
    """The settings that, with the corpus, decide the index."""
    return {'dense': {**self.encoder.identity(), 'storage': self.storage}}

  def will_do(self) -> list[dict[str, Any]]:
    """Identities of other indices that would also do: none."""
    return []

  def check(self) -> None:
    """Raises a UserError if a package is missing."""
    _faiss()
    self.encoder.encode_questions(['a'])

  def describe(self) -> str:
    """The settings as text."""
    return (
      f'{self.encoder.name}, {self.encoder.sources}, stored as {self.storage}'
    )

  def build(
    self,
    corpus: passage_store.PassageReader,
    directory: pathlib.Path,
    execution: retrieval_config.Execution,
    label: str,
  ) -> dict[str, Any]:
    """Writes the index of every shard; returns facts about it."""
    execute.for_each(
      execution,
      functools.partial(_index_shard, self, corpus.directory, directory),
      range(len(corpus.shard_sizes)),
      lambda shard: passage_store.shard_directory(directory, shard).exists(),
      f'{label}: encode',
    )
    # Facts, not part of the identity: a new version may change the last bits of
    # embeddings, which is no reason to encode the corpus again.
    names = ('sentence-transformers', 'transformers', 'torch', 'faiss-cpu')
    return {'versions': {name: _version(name) for name in names}}

  def encode_questions(
    self, questions: Sequence[str], path: pathlib.Path
  ) -> None:
    """Writes the questions' embeddings, float32 array of shape [B, D]."""
    with claimed_directory.new_part(path) as part, part.open('wb') as file:
      np.save(file, self.encoder.encode_questions(questions))

  def search(
    self,
    directory: pathlib.Path,
    digest: str,
    first_row: int,
    shard: int,
    questions: pathlib.Path,
    k: int,
  ) -> topk.Hits:
    """The best passages of one shard; see `search.Method`."""
    index = _open_shard(passage_store.shard_directory(directory, shard), digest)
    scores, rows = index.search(np.load(questions), min(k, index.ntotal))
    rows = rows + first_row
    order = np.lexsort((rows, -scores), axis=1)
    return topk.Hits(
      rows=np.take_along_axis(rows, order, axis=1),
      scores=np.take_along_axis(scores, order, axis=1),
    )


def _index_shard(
  method: DenseMethod, corpus: pathlib.Path, directory: pathlib.Path, shard: int
) -> None:
  passages = passage_store.PassageReader.open(corpus)
  size = passages.shard_sizes[shard]
  faiss = _faiss()
  index = None
  with tqdm.tqdm(
    total=size, desc=f'shard {shard}', unit=' passages', leave=False
  ) as bar:
    for start in range(0, size, _BATCH):
      batch = passages.shard(shard, start, start + _BATCH)
      vectors = method.encoder.encode_passages([_text(p) for p in batch])
      if index is None:
        index = _new_index(faiss, vectors.shape[1], method.storage)
      index.add(vectors)
      bar.update(len(vectors))
  with claimed_directory.new_part(
    passage_store.shard_directory(directory, shard)
  ) as part:
    part.mkdir()
    faiss.write_index(index, str(part / _INDEX))


def _new_index(faiss: Any, dimension: int, storage: str) -> Any:
  if storage == 'float32':
    return faiss.IndexFlatIP(dimension)
  return faiss.IndexScalarQuantizer(
    dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
  )


@functools.cache
def _open_shard(directory: pathlib.Path, digest: str) -> Any:
  """A shard's memory-mapped index. `digest` is part of the cache's key."""
  del digest
  faiss = _faiss()
  # The flag for flat indices; IO_FLAG_MMAP is for inverted lists.
  return faiss.read_index(str(directory / _INDEX), faiss.IO_FLAG_MMAP_IFC)


def _text(passage: records.Passage) -> str:
  if not passage.title:
    return passage.text
  return f'{passage.title}\n{passage.text}'


def _faiss() -> Any:
  try:
    import faiss
  except ImportError as e:
    raise encoders.missing_extra(e) from e
  return faiss


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return 'none'
