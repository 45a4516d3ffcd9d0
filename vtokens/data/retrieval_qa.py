"""Writes and parses records as a TensorFlow Datasets dataset in array_record.

Importing this module needs the package tensorflow-datasets, not TensorFlow.
"""

import contextlib
import dataclasses
import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from vtokens.data.records import Passage, Record
from vtokens.host import errors

try:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import shuffle, writer
  from tensorflow_datasets.proto import tf_example_pb2
except ImportError as e:
  raise errors.UserError(
    f'Built datasets need tensorflow-datasets: pip install tensorflow-datasets '
    f'({e})'
  ) from e

Example = tf_example_pb2.Example

NAME = 'retrieval_qa'
VERSION = '1.0.0'
_DESCRIPTION = """\
Questions with their answers and the passages that retrievers found for them.

passages is one list: those of the first retriever in rank order, best first,
then those of the second, and so on. retrievers names all that were asked, also
such as found nothing, in the order of their passages. The retriever 'gold' is
what annotators marked, 'given' what a file gave without a name. A score that
is not known is NaN, an id or title that is not known is ''.
"""


def features() -> tfds.features.FeaturesDict:
  """The schema, for any user of tfds."""
  text = tfds.features.Text
  return tfds.features.FeaturesDict(
    {
      'id': text(doc='Unique in its split.'),
      'dataset': text(doc='The name that results are grouped by.'),
      'question': text(doc='Never blank.'),
      'answers': tfds.features.Sequence(
        text(), doc='None blank; any one counts; none if there is no answer.'
      ),
      'retrievers': tfds.features.Sequence(
        text(), doc='Names, in the order of their passages.'
      ),
      'passages': tfds.features.Sequence(
        {
          'retriever': text(doc='One of retrievers.'),
          'id': text(doc="In the corpus; '' if not known."),
          'title': text(doc="'' if not known."),
          'text': text(doc='Never blank.'),
          # As bytes: tf.train.Example would round a float to 32 bits.
          'score': tfds.features.Tensor(
            shape=(),
            dtype=np.float64,
            encoding=tfds.features.Encoding.BYTES,
            doc="The retriever's; NaN if not known.",
          ),
        },
        doc='By retriever, each in rank order, best first.',
      ),
    }
  )


def to_example(record: Record) -> dict[str, Any]:
  """Converts a record to a dict with the keys of `features`."""
  return {
    'id': record.id,
    'dataset': record.dataset,
    'question': record.question,
    'answers': list(record.answers),
    'retrievers': list(record.passages),
    'passages': [
      {
        'retriever': retriever,
        'id': passage.id,
        'title': passage.title,
        'text': passage.text,
        'score': math.nan if passage.score is None else passage.score,
      }
      for retriever, ranked in record.passages.items()
      for passage in ranked
    ],
  }


def keyed_example(record: Record) -> tuple[bytes, dict[str, Any]]:
  """(key, example) for a builder, which sorts by a hash of the key."""
  # Bytes, since tfds replaces '\\' by '/' in a str.
  return record.id.encode(), to_example(record)


def parse(serialized: bytes) -> Record:
  """Parses a serialized example.

  Reading the protocol buffer directly is four times as fast as with tfds.
  """
  values = Example.FromString(serialized).features.feature

  def texts(key: str) -> list[str]:
    return [value.decode() for value in values[key].bytes_list.value]

  ranked: dict[str, list[Passage]] = {name: [] for name in texts('retrievers')}
  for retriever, id_, title, text, encoded in zip(
    texts('passages/retriever'),
    texts('passages/id'),
    texts('passages/title'),
    texts('passages/text'),
    values['passages/score'].bytes_list.value,
    strict=True,
  ):
    (score,) = struct.unpack('<d', encoded)
    ranked[retriever].append(
      Passage(id_, title, text, None if math.isnan(score) else score)
    )
  (record_id,) = texts('id')
  (dataset,) = texts('dataset')
  (question,) = texts('question')
  return Record(
    id=record_id,
    dataset=dataset,
    question=question,
    answers=tuple(texts('answers')),
    passages={name: tuple(passages) for name, passages in ranked.items()},
  )


@dataclasses.dataclass(eq=False)
class RetrievalQaConfig(tfds.core.BuilderConfig):
  """The content of a dataset to build.

  Attributes:
    splits: split name -> a function that returns the split's records, or a Beam
      PTransform that yields them as `keyed_example`.
  """

  splits: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, repr=False
  )


class RetrievalQa(tfds.core.GeneratorBasedBuilder):
  """A dataset of records, named by its `BuilderConfig`.

  Records are sorted by a hash of their ids, so the order of the inputs does not
  matter.
  """

  VERSION = tfds.core.Version(VERSION)
  # Nothing is downloaded. Otherwise tfds 4.9.10 would look for checksums with
  # the package importlib_resources, which it does not require.
  url_infos = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self, description=_DESCRIPTION, features=features()
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {
      name: self._generate_examples(split) if callable(split) else split
      for name, split in self.builder_config.splits.items()
    }

  def _generate_examples(
    self, split: Callable[[], Iterator[Record]]
  ) -> Iterator[tuple[bytes, dict[str, Any]]]:
    return map(keyed_example, split())

  def _example_writer(self) -> writer.ExampleWriter:
    return _CanonicalWriter(self.info.file_format)


class _CanonicalWriter(writer.ExampleWriter):
  """Writes equal examples as equal bytes.

  A tf.train.Example has a map, which tfds serializes in an order that differs
  between processes.
  """

  def write(self, path: Any, examples: Any) -> Any:
    return super().write(
      path, ((key, _canonical(example)) for key, example in examples)
    )


def _canonical(serialized: bytes) -> bytes:
  example = Example.FromString(serialized)
  canonical: bytes = example.SerializeToString(deterministic=True)
  return canonical


def write(
  directory: str,
  name: str,
  splits: Mapping[str, Any],
  *,
  num_shards: int = 0,
  beam_options: Any = None,
) -> str:
  """Writes a dataset.

  Args:
    directory: an empty directory.
    name: name of the dataset.
    splits: see `RetrievalQaConfig`.
    num_shards: number of shards of each split; 0 lets tfds choose the largest
      power of two with at least 64 MiB in each, before compression.
    beam_options: PipelineOptions, if `splits` has PTransforms.

  Returns:
    The directory of the finished dataset, below `directory`.

  Raises:
    errors.UserError: a split is too large to sort in memory.
  """
  config = tfds.download.DownloadConfig(
    try_download_gcs=False,
    beam_options=beam_options,
    num_shards=num_shards or None,
  )
  with _quiet_tfds():
    builder = RetrievalQa(
      data_dir=directory,
      config=RetrievalQaConfig(name=name, splits=splits),
      file_format='array_record',
    )
    try:
      builder.download_and_prepare(download_config=config)
    except ModuleNotFoundError as e:
      if e.name != 'tensorflow':
        raise
      raise errors.UserError(
        f'A split of {name} is larger than the {memory_limit() / 2**30:.0f} '
        "GiB that are sorted in memory (60 % of this machine's). Build it "
        "with runner='beam' on a cluster, keep fewer passages "
        '(max_passages), or pip install tensorflow, with which '
        'tensorflow-datasets sorts on disk'
      ) from e
  return os.fspath(builder.data_path)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Hides the banners and bars of tfds, and makes it sort in memory.

  Above `MAX_MEM_BUFFER_SIZE` tfds sorts on disk, which needs TensorFlow.
  """
  limit, verbosity = shuffle.MAX_MEM_BUFFER_SIZE, logging.get_verbosity()
  shuffle.MAX_MEM_BUFFER_SIZE = memory_limit()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    shuffle.MAX_MEM_BUFFER_SIZE = limit
    logging.set_verbosity(verbosity)
    tfds.enable_progress_bar()


def memory_limit() -> int:
  """Bytes of records that one process may sort: 60 % of the memory."""
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return total * 6 // 10
