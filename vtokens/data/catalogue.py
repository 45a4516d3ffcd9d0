"""Reads datasets of the TensorFlow Datasets catalogue without TensorFlow.

A source is `tfds:NAME[/CONFIG][:SPLIT]`. SPLIT defaults to train and may be any
expression of TFDS, such as `validation[:100]`. The dataset must have been
prepared in array_record, since only TensorFlow reads the default format. The
environment variable TFDS_DATA_DIR names its directory.

tensorflow_datasets 4.9.10 has these datasets of the paper: squad (default v1.1;
squad/v2.0), natural_questions_open, trivia_qa (unfiltered.nocontext for open
questions), coqa, web_questions. It lacks HotpotQA, 2WikiMultiHopQA, MS MARCO
and PopQA.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vtokens.data.checks import BadRecord, Kind
from vtokens.data.files import Row
from vtokens.host import errors

_PREFIX = 'tfds:'


def is_source(source: str) -> bool:
  """Whether a source names a dataset of the catalogue, not a file."""
  return source.startswith(_PREFIX)


def stem(source: str) -> str:
  """Start of the default ids of its records, e.g. 'squad.train'."""
  name, split = _parse(source)
  return f'{name.split("/")[0]}.{split}'


def version(source: str) -> str:
  """Name, version and split of a dataset, which determine its content.

  Raises:
    errors.UserError: see `rows`.
  """
  return f'{_builder(source).info.full_name}:{_parse(source)[1]}'


def rows(source: str) -> Iterator[Row]:
  """Yields the examples of a dataset as rows of plain Python values.

  Raises:
    errors.UserError: tensorflow-datasets is not installed, has no such dataset
      or split, or the dataset is not prepared.
  """
  name, split = _parse(source)
  builder = _builder(source)
  try:
    data = builder.as_data_source(split=split)
  except ValueError as e:
    raise errors.UserError(f'{source}: {e}') from None
  # It is prepared in another format, or not prepared.
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
    # Later lines of the message list all datasets.
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
  """Converts numpy values to Python values, and bytes to text."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.generic):
    return _plain(value.item())
  return value.decode('utf-8') if isinstance(value, bytes) else value
