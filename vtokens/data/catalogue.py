"""Data sets of the TensorFlow Datasets catalogue, read without TensorFlow.

A source is `tfds:NAME[/CONFIG][:SPLIT]`, the split being train by default, or
any expression that TFDS knows, such as `validation[:100]`. The data set must
have been prepared in array_record, the default format being one that only
TensorFlow reads; where it lies is what the environment variable TFDS_DATA_DIR
says.

What tensorflow_datasets 4.9.10 has of the data sets of the paper: squad (v1.1
is its default, squad/v2.0), natural_questions_open, trivia_qa
(unfiltered.nocontext for open questions), coqa, web_questions. It has no
HotpotQA, 2WikiMultiHopQA, MS MARCO or PopQA.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vtokens.data.checks import BadRecord, Kind
from vtokens.data.files import Row
from vtokens.host import errors

_PREFIX = 'tfds:'


def is_source(source: str) -> bool:
  """Whether it names a data set of the catalogue, not a file."""
  return source.startswith(_PREFIX)


def stem(source: str) -> str:
  """What default ids of its records start with: 'squad.train'."""
  name, split = _parse(source)
  return f'{name.split("/")[0]}.{split}'


def version(source: str) -> str:
  """Name, version and split of a data set, which fix its content.

  Raises:
    errors.UserError: see `rows`.
  """
  return f'{_builder(source).info.full_name}:{_parse(source)[1]}'


def rows(source: str) -> Iterator[Row]:
  """The examples of a data set, as rows of plain Python values.

  Raises:
    errors.UserError: tensorflow-datasets is not installed, has no such data
      set or split, or the data set is not prepared.
  """
  name, split = _parse(source)
  builder = _builder(source)
  try:
    data = builder.as_data_source(split=split)
  except ValueError as e:
    raise errors.UserError(f'{source}: {e}') from None
  # Prepared in another format; not prepared.
  except (NotImplementedError, AssertionError):
    raise errors.UserError(
      f'{source}: found no examples in array_record in {builder.data_path}. '
      'Prepare them (this downloads the data set and, for some, needs '
      'TensorFlow) with: python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{name}', file_format='array_record')"
      '.download_and_prepare()"'
    ) from None
  for i in range(len(data)):
    yield Row(i + 1, f'{source}: example {i + 1}', _plain_or_bad(data[i]))


def _builder(source: str) -> Any:
  name, _ = _parse(source)
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise errors.UserError(
      f'{source}: tensorflow-datasets is missing: pip install '
      'tensorflow-datasets'
    ) from None
  try:
    return tfds.builder(name, try_gcs=False)
  except (tfds.core.DatasetNotFoundError, ValueError) as e:
    # The messages go on with the names of all data sets.
    reason = str(e).partition('\n')[0]
    raise errors.UserError(
      f'{source}: not in the catalogue of tensorflow-datasets '
      f'{tfds.__version__}: {reason}'
    ) from None


def _parse(source: str) -> tuple[str, str]:
  name, _, split = source.removeprefix(_PREFIX).partition(':')
  if not name:
    raise errors.UserError(
      f'{source}: found no name, expected tfds:NAME[/CONFIG][:SPLIT], such as '
      'tfds:squad/v2.0:validation'
    )
  return name, split or 'train'


def _plain_or_bad(example: Any) -> Any | BadRecord:
  try:
    return _plain(example)
  except UnicodeDecodeError as e:
    return BadRecord(
      Kind.INVALID_UTF8, f'example: found {e.reason}, expected UTF-8'
    )


def _plain(value: Any) -> Any:
  """Without the types of numpy, and bytes as text."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.generic):
    return _plain(value.item())
  return value.decode('utf-8') if isinstance(value, bytes) else value
