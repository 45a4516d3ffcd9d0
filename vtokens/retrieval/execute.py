"""Runs a function over many items, in a loop or on Apache Beam.

The functions write files and may be repeated: a killed run continues with the
items whose files are missing.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import tqdm

from vtokens.host import errors
from vtokens.retrieval import retrieval_config

Item = TypeVar('Item')
Part = TypeVar('Part')
Key = TypeVar('Key', bound=Hashable)


def for_each(
  settings: retrieval_config.Execution,
  work: Callable[[Item], None],
  items: Sequence[Item],
  is_done: Callable[[Item], bool],
  label: str,
) -> None:
  """Calls `work` with each item that is not done."""
  todo = [item for item in items if not is_done(item)]
  if not todo:
    return
  if settings.runner == 'loop':
    for item in _bar(items, todo, label):
      work(item)
    return
  beam = _beam()
  with (
    _watch(items, todo, is_done, label),
    _pipeline(beam, settings) as pipeline,
  ):
    _ = (
      pipeline
      | beam.Create(todo)
      | beam.Reshuffle()
      | beam.Map(lambda item: work(item))
    )


def map_reduce(
  settings: retrieval_config.Execution,
  work: Callable[[Part, Key], Any],
  parts: Sequence[Part],
  combine: Callable[[Sequence[Any]], Any],
  write: Callable[[Key, Any], None],
  keys: Sequence[Key],
  is_done: Callable[[Key], bool],
  label: str,
) -> None:
  """For each key that is not done, combines the results of all parts.

  Args:
    settings: where to run.
    work: computes the result of a part and a key.
    parts: parts, e.g. shards.
    combine: combines results of one key, and results of itself.
    write: writes the combined result of a key.
    keys: keys, e.g. chunks of questions.
    is_done: whether a key is done.
    label: text of the progress bar.
  """
  todo = [key for key in keys if not is_done(key)]
  if not todo:
    return
  if settings.runner == 'loop':
    for key in _bar(keys, todo, label):
      results = (work(part, key) for part in parts)
      # One by one: all results may not fit into memory.
      total = functools.reduce(lambda *two: combine(two), results)
      write(key, combine([total]))
    return
  beam = _beam()
  pairs = list(itertools.product(parts, todo))
  with (
    _watch(keys, todo, is_done, label),
    _pipeline(beam, settings) as pipeline,
  ):
    _ = (
      pipeline
      | beam.Create(pairs)
      | beam.Reshuffle()
      | beam.MapTuple(lambda part, key: (key, work(part, key)))
      | beam.CombinePerKey(lambda results: combine(list(results)))
      | beam.MapTuple(write)
    )


def _bar(items: Sequence[Any], todo: Sequence[Any], label: str) -> tqdm.tqdm:
  return tqdm.tqdm(
    todo, label, total=len(items), initial=len(items) - len(todo)
  )


@contextlib.contextmanager
def _watch(
  items: Sequence[Any],
  todo: Sequence[Any],
  is_done: Callable[[Any], bool],
  label: str,
) -> Iterator[None]:
  """Shows progress by the files on disk: workers may be on other machines."""
  stop = threading.Event()
  with _bar(items, todo, label) as bar:

    def look() -> None:
      while not stop.wait(1.0):
        bar.n = len(items) - sum(not is_done(item) for item in todo)
        bar.refresh()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
      yield
      bar.n = len(items)
    finally:
      stop.set()
      thread.join()


def _pipeline(beam: Any, settings: retrieval_config.Execution) -> Any:
  from apache_beam.options import pipeline_options

  return beam.Pipeline(
    options=pipeline_options.PipelineOptions(
      list(settings.beam_options), save_main_session=False
    )
  )


def _beam() -> Any:
  try:
    import apache_beam
  except ImportError as e:
    raise errors.UserError(
      'config.execution.runner: beam needs Apache Beam, which is not '
      f"installed ({e}); try: pip install 'vtokens[beam]'"
    ) from e
  return apache_beam
