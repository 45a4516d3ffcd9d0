"""Tokenised records on disk: written once, read at random by all processes.

  DIR/<key>/meta.json  what was tokenised and how; sizes and SHA-256 of the
                       arrays, and of itself; the set is complete if it exists
            *.npy      flat arrays, mapped into memory
  DIR/<key>.part/      an unfinished set: one file for 2,048 records, so that a
                       killed run continues

The key is a hash of everything that decides the ids: the sources' content, the
tokenizer and the templates. The arrays hold, record by record, the ids of the
question, of each answer, and of each passage.

A program checks a set when it starts, and makes a damaged one again. Processes
that it starts map the files without a check.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vtokens.data import leaks
from vtokens.data.checks import BadRecords
from vtokens.data.containment import Matcher
from vtokens.data.prompt_encoder import Ids, PromptEncoder
from vtokens.data.records import GOLD, Passage, Record
from vtokens.data.token_set import ARRAYS, HAS_ANSWER, IS_GOLD, TokenSet
from vtokens.host import checksums, errors, locks, writers

# Part of the key. Raise _FORMAT instead if only the storage changes, or the
# marks of passages (see `containment`): the old set is then replaced.
_VERSION = 1
_FORMAT = 2
# Records of one partial file: some seconds of work.
CHUNK_RECORDS = 2048
# Directory among the partial files, in which they are joined.
_JOINED = 'joined'
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TokenCache:
  """A directory of token sets.

  Attributes:
    directory: where the sets lie; made if absent.
    encoder: turns text into ids.
    depth: passages of each retriever that are kept.
    run: a name that the processes of one run share, and no other run has. If
      one process has checked a set, the others on the same disk do not check
      it again. '' always checks.
  """

  directory: pathlib.Path
  encoder: PromptEncoder
  depth: int
  run: str = ''

  def open(
    self,
    records: Iterable[Record],
    report: BadRecords,
    *,
    identity: Mapping[str, Any],
    label: str,
    check: Callable[[], None] = lambda: None,
  ) -> TokenSet:
    """Opens the set of a source; makes it first if it is absent or damaged.

    After a kill, making it continues after the last partial file.

    Args:
      records: records of the source; read only to make the set.
      report: the account that reading `records` fills; the set keeps what was
        left out.
      identity: JSON values that differ for other records.
      label: text of the progress bar.
      check: called after each partial file; may raise to stop.

    Raises:
      errors.UserError: reading the records raised it, or the directory cannot
        be written.
    """
    directory = self.directory
    key = cache_key(self.encoder, self.depth, identity)
    final = directory / key
    # Without the lock: the directory may be read-only.
    if not self.run and _problem(final) == '':
      return TokenSet(final)
    try:
      directory.mkdir(parents=True, exist_ok=True)
      # Another process may be making the set. Wait, then find it finished.
      with locks.locked_file(directory / f'{key}.lock') as lock:
        lock.seek(0)
        if not self.run or lock.read() != self.run or not final.exists():
          problem = _problem(final)
          if problem:
            writers.say(
              f'{final}: tokenised data are not as they were written '
              f'({problem}); making them again'
            )
            shutil.rmtree(final)
          if problem != '':
            part = directory / f'{key}.part'
            part.mkdir(exist_ok=True)
            count = self._write_chunks(records, part, label, check)
            try:
              _finish(part, count, final, dict(identity), report)
            finally:
              shutil.rmtree(part / _JOINED, ignore_errors=True)
          lock.truncate(0)
          lock.write(self.run)
    except OSError as e:
      problem = _problem(final)
      if problem == '':
        return TokenSet(final)
      damage = (
        f'tokenised data are damaged ({problem}), and ' if problem else ''
      )
      raise errors.UserError(
        f'config.data.token_cache: {damage}{directory} cannot be written: {e}'
      ) from e
    return TokenSet(final)

  def _write_chunks(
    self,
    records: Iterable[Record],
    part: pathlib.Path,
    label: str,
    check: Callable[[], None],
  ) -> int:
    """Writes the missing partial files; returns how many there are in all."""
    number = 0
    with writers.progress(desc=label, unit='ex', leave=False) as bar:
      for number, chunk in enumerate(_chunks(records), start=1):
        path = _chunk_path(part, number)
        if not _is_whole(path):
          _save_npz(path, _encode_chunk(chunk, self.encoder, self.depth))
        bar.update(len(chunk))
        check()
    return number


def _problem(path: pathlib.Path) -> str | None:
  """What is wrong with a set; '' if it is whole, None if it is absent."""
  if not path.exists():
    return None
  try:
    meta = json.loads((path / 'meta.json').read_text(encoding='utf-8'))
    if not isinstance(meta, dict):
      return 'meta.json holds no object'
    if not checksums.has_seal(meta):
      return 'an earlier version of vtokens made them, without checksums'
    if not checksums.is_sealed(meta):
      return 'the content of meta.json has changed since it was written'
    if meta['format'] != _FORMAT:
      return f'format {meta["format"]}, this version reads {_FORMAT}'
    return checksums.problem(path, meta['files'])
  except (OSError, ValueError, RecursionError) as e:
    return f'meta.json cannot be read: {type(e).__name__}: {e}'


def cache_key(
  encoder: PromptEncoder, depth: int, identity: Mapping[str, Any]
) -> str:
  """Name of a set's directory: equal names mean equal content."""
  content = {
    'version': _VERSION,
    'tokenizer': encoder.tokenizer.sha256,
    'templates': encoder.identity,
    'depth': depth,
    'identity': dict(identity),
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


# Arrays of indices into names. Each partial file has its own names, as JSON.
_NAMED = ('dataset', 'retriever')
_CHUNK_FIELDS = {*ARRAYS.values(), *(f'{name}_names' for name in _NAMED)}
_STARTS = ('sequence_start', 'record_sequence', 'record_passage', 'id_start')


def _chunk_path(part: pathlib.Path, number: int) -> pathlib.Path:
  return part / f'{number - 1:06d}.npz'


def _is_whole(path: pathlib.Path) -> bool:
  """Whether a partial file exists with all arrays undamaged."""
  if not path.exists():
    return False
  try:
    with np.load(path) as file:
      # Reading an array compares its checksum in the zip file.
      whole = {name for name in file.files if file[name] is not None}
  # The errors of damaged zip files are not documented.
  except Exception:
    whole = set()
  if whole == _CHUNK_FIELDS:
    return True
  writers.say(f'{path}: not as it was written; making it again')
  return False


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
  iterator = iter(records)
  while chunk := list(itertools.islice(iterator, CHUNK_RECORDS)):
    yield chunk


def _encode_chunk(
  records: Sequence[Record], encoder: PromptEncoder, depth: int
) -> _Arrays:
  """Encodes records into the arrays of a partial file."""
  chat = encoder.templates.chat
  kept = [
    [
      (name, passage)
      for name, ranked in record.passages.items()
      for passage in ranked[:depth]
    ]
    for record in records
  ]
  answers = iter(
    encoder.answers([a for r in records for a in r.answers], chat=chat)
  )
  passages = encoder.passages([p for row in kept for _, p in row])
  next_passage = iter(passages)
  sequences: list[Ids] = []
  for record, row in zip(records, kept, strict=True):
    sequences.append(encoder.prompt(record.question, name='prompt', chat=chat))
    sequences += itertools.islice(answers, len(record.answers))
    sequences += [
      np.concatenate([ids.body, ids.end, ids.last_end])
      for ids in itertools.islice(next_passage, len(row))
    ]
  flags = [
    has_answer * HAS_ANSWER + is_gold * IS_GOLD
    for record, row in zip(records, kept, strict=True)
    for has_answer, is_gold in passage_marks(record, [p for _, p in row])
  ]
  num_passages = np.array([len(row) for row in kept], np.int64)
  num_answers = np.array([len(r.answers) for r in records], np.int64)
  ids = [record.id.encode() for record in records]
  retriever, retriever_names = _number(name for row in kept for name, _ in row)
  dataset, dataset_names = _number(record.dataset for record in records)
  return {
    'tokens': np.concatenate(sequences).astype(np.uint32),
    'sequence_len': np.array([len(s) for s in sequences], np.int64),
    'record_sequences': 1 + num_answers + num_passages,
    'record_passages': num_passages,
    'end_len': np.array([len(p.end) for p in passages], np.uint32),
    'last_end_len': np.array([len(p.last_end) for p in passages], np.uint32),
    'retriever': retriever,
    'retriever_names': retriever_names,
    'flags': np.array(flags, np.uint8),
    'dataset': dataset,
    'dataset_names': dataset_names,
    'question_key': leaks.hash_questions(r.question for r in records),
    'id_bytes': np.frombuffer(b''.join(ids), np.uint8),
    'id_len': np.array([len(name) for name in ids], np.int64),
  }


def _number(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
  """Numbers names.

  Returns:
    The number of each name, uint32 array of shape [N]; the distinct names as
    JSON in a uint8 array. (In an array of strings each would take the memory of
    the longest.)
  """
  numbers: dict[str, int] = {}
  codes = [numbers.setdefault(name, len(numbers)) for name in names]
  text = json.dumps(list(numbers)).encode()
  return np.array(codes, np.uint32), np.frombuffer(text, np.uint8)


def passage_marks(
  record: Record, passages: Iterable[Passage]
) -> Iterator[tuple[bool, bool]]:
  """Yields of each passage whether it has an answer, and whether it is gold."""
  golds = record.passages.get(GOLD, ())
  ids = {passage.id for passage in golds} - {''}
  texts = {passage.text for passage in golds}
  matcher = Matcher(record.answers)
  for passage in passages:
    is_gold = passage.id in ids or passage.text in texts
    yield matcher.contains(passage.text), is_gold


def has_it(record: Record, passages: Iterable[Passage]) -> list[bool]:
  """Whether each passage has the answer: is gold, or contains an answer."""
  return [any(marks) for marks in passage_marks(record, passages)]


def _save_npz(path: pathlib.Path, arrays: _Arrays) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  writers.write_bytes(path, buffer.getvalue())


def _finish(
  part: pathlib.Path,
  count: int,
  final: pathlib.Path,
  identity: dict[str, Any],
  report: BadRecords,
) -> None:
  """Joins the partial files into flat arrays, then renames the directory."""
  paths = [_chunk_path(part, number) for number in range(1, count + 1)]
  temporary = part / _JOINED
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  names = {
    field: sorted({name for path in paths for name in _names(path, field)})
    for field in _NAMED
  }
  number_of = {
    field: {name: number for number, name in enumerate(names[field])}
    for field in _NAMED
  }
  for field, source in ARRAYS.items():
    is_start = field in _STARTS
    sizes = [len(_read(path, source)) for path in paths]
    shape = (sum(sizes) + is_start,)
    out = np.lib.format.open_memmap(
      temporary / f'{field}.npy', 'w+', _dtype(field), shape
    )
    _reserve(temporary / f'{field}.npy')
    at, total = int(is_start), 0
    for path, size in zip(paths, sizes, strict=True):
      values = _read(path, source)
      if is_start:
        values = total + np.cumsum(values)
        total = int(values[-1]) if size else total
      elif field in names:
        own = [number_of[field][name] for name in _names(path, field)]
        values = np.array(own, np.uint32)[values]
      out[at : at + size] = values
      at += size
    out.flush()
  meta = {
    'format': _FORMAT,
    'identity': identity,
    'datasets': names['dataset'],
    'retrievers': names['retriever'],
    'skipped': report.messages,
    'notes': dict(report.notes),
    'files': checksums.of_files(temporary, [f'{f}.npy' for f in ARRAYS]),
  }
  (temporary / 'meta.json').write_text(
    json.dumps(checksums.seal(meta), indent=2, ensure_ascii=False),
    encoding='utf-8',
  )
  os.replace(temporary, final)
  shutil.rmtree(part)


def _reserve(path: pathlib.Path) -> None:
  """Reserves disk space for a mapped file, if the system can.

  Raises:
    OSError: the disk is full. Without this call, writing to the mapped memory
      would kill the process (SIGBUS).
  """
  if not hasattr(os, 'posix_fallocate'):
    return
  with open(path, 'r+b') as file:
    os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


@functools.lru_cache(maxsize=1)
def _open_npz(path: pathlib.Path) -> Any:
  return np.load(path)


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  array: np.ndarray = _open_npz(path)[name]
  return array


def _names(path: pathlib.Path, field: str) -> list[str]:
  names: list[str] = json.loads(_read(path, f'{field}_names').tobytes())
  return names


def _dtype(field: str) -> type:
  return {
    'tokens': np.uint32,
    'id_bytes': np.uint8,
    'dataset': np.uint32,
    'question_key': np.uint64,
    'end_len': np.uint32,
    'last_end_len': np.uint32,
    'retriever': np.uint32,
    'flags': np.uint8,
  }.get(field, np.int64)
