"""Answers a file of questions, and goes on where a killed program stopped.

Answers are appended to OUTPUT.unfinished, whose first line says what decides
them. Once all are there, they become OUTPUT.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from etils import epath

from vtokens.answering import shown_answers
from vtokens.answering.asked_passages import Shown
from vtokens.answering.requests import Completion, Prepared, Request
from vtokens.answering.run import Run
from vtokens.data.records import Passage
from vtokens.host import errors, json_files, locks, paths, writers
from vtokens.serving import prompt_ids

# What a line of the output must have.
_ROW = {'question': str}


def answer(
  run: Run,
  source: str,
  target: str,
  shown: Shown,
  *,
  k: int | None = None,
  batch_size: int = 32,
  records: bool = False,
) -> int:
  """Answers a file of questions.

  Args:
    run: answers.
    source: JSON lines with `question`, and maybe `passages` and `k`. Other
      fields are kept.
    target: gets a line for each question, with the fields of its line.
    shown: passages of questions without any of their own.
    k: number of virtual tokens of questions that name none; None for all.
    batch_size: questions that are answered together.
    records: write records to train with: the answer is the only accepted one,
      beside the passages it was given. Otherwise a line has the fields of the
      answer, and no passages.

  Returns:
    Number of answers that were there before.

  Raises:
    errors.UserError: a line is wrong (nothing is answered then), the output is
      there, what is there of it was answered from another input, or another
      program is writing it.
  """
  if paths.exists(epath.Path(target)):
    raise errors.UserError(
      f'--output: {target} exists already and is never replaced; choose another'
    )
  rows = _read(source)
  identity = _identity(run, source, shown, k, records)
  unfinished = epath.Path(f'{target}.unfinished')
  if not _resume(unfinished, identity, rows)[0]:
    # A mistake at the end shows now, not after hours, and leaves no file.
    for number, row in enumerate(rows, 1):
      _prepare(run, source, number, row, Shown(_passages(row)), k)
  with _sole_writer(unfinished):
    size, before = _resume(unfinished, identity, rows)
    if not size:
      line = _line(identity)
      writers.append(unfinished, 0, line)
      size = len(line)
    todo = itertools.islice(enumerate(rows, 1), before, None)
    with writers.progress(
      total=len(rows), initial=before, desc='answering', unit='question'
    ) as bar:
      while batch := list(itertools.islice(todo, batch_size)):
        prepared = [
          _prepare(run, source, number, row, shown, k) for number, row in batch
        ]
        found = run.engine.answer(prepared, batch_size=batch_size)
        data = b''.join(
          _line((_record if records else _answer)(row, asked, one))
          for (_, row), asked, one in zip(batch, prepared, found, strict=True)
        )
        writers.append(unfinished, size, data)
        size += len(data)
        bar.update(len(batch))
    _finish(unfinished, epath.Path(target))
  return before


@contextlib.contextmanager
def _sole_writer(path: epath.Path) -> Iterator[None]:
  """Refuses a second program meanwhile; an object store has no locks.

  Raises:
    errors.UserError: another program writes the file, or it cannot be written.
  """

  def busy() -> None:
    raise errors.UserError(
      f'{path}: another program is writing it; wait for it to end, or choose '
      'another --output'
    )

  with contextlib.ExitStack() as stack:
    if not paths.on_object_store(path):
      with paths.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locks.locked_file(pathlib.Path(path), busy))
    yield


def _answer(
  row: Mapping[str, Any], asked: Prepared, answer: Completion
) -> dict[str, Any]:
  del asked
  fields = {name: value for name, value in row.items() if name != 'passages'}
  return {**fields, **shown_answers.as_json(answer)}


def _record(
  row: Mapping[str, Any], asked: Prepared, answer: Completion
) -> dict[str, Any]:
  found = cast(Sequence[Passage], asked.request.passages)  # Of `_prepare`.
  return {
    **row,
    'answers': [answer.text] if answer.text else [],
    'passages': row.get('passages') or shown_answers.passages_as_json(found),
    'confidence': round(answer.confidence, 6),
  }


def _read(source: str) -> list[dict[str, Any]]:
  found = json_files.read_lines(
    paths.expand_home(source), {'question': str}, open_end='keep'
  )
  rows = [row for _, row in found]
  if not rows:
    raise errors.UserError(f'--input: {source}: has no questions')
  return rows


def _passages(row: Mapping[str, Any]) -> tuple[Passage, ...]:
  return tuple(prompt_ids.read_passages(row.get('passages') or ()))


def _prepare(
  run: Run,
  source: str,
  number: int,
  row: Mapping[str, Any],
  shown: Shown,
  k: int | None,
) -> Prepared:
  try:
    passages = list(_passages(row)) or shown.of(row['question'])
    return run.engine.prepare(
      Request(
        question=row['question'],
        passages=passages,
        table=run.name,
        k=row.get('k', k),
      )
    )
  except errors.UserError as e:
    raise errors.UserError(f'{source}:{number}: {e}') from None


def _identity(
  run: Run, source: str, shown: Shown, k: int | None, records: bool
) -> dict[str, Any]:
  """All that decides the answers."""
  data = json_files.read_bytes(paths.expand_home(source))
  given = json.dumps(shown_answers.passages_as_json(shown.given))
  return {
    'input': hashlib.sha256(data).hexdigest(),
    'virtual_tokens': run.table.sha256,
    'base': run.engine.base.fingerprint,
    'quantize': run.engine.base.quantize,
    'k': k,
    'passages': hashlib.sha256(given.encode()).hexdigest(),
    'index': '' if shown.index is None else shown.index.digest,
    'num_passages': shown.number,
    **({'records': True} if records else {}),
    **(
      {'refusal_bias': run.table.refusal_bias} if run.table.refusal_bias else {}
    ),
  }


def _resume(
  path: epath.Path, identity: Mapping[str, Any], rows: list[dict[str, Any]]
) -> tuple[int, int]:
  """Bytes of an unfinished output to keep, and its number of answers."""
  if not paths.exists(path):
    return 0, 0
  advice = f'delete {path} to answer all questions anew'
  size = number = 0
  for number, (end, line) in enumerate(
    json_files.read_lines(path, _ROW, advice, head=dict)
  ):
    if number == 0 and line != identity:
      both = {**line, **identity}
      changed = [x for x in both if line.get(x) != identity.get(x)]
      raise errors.UserError(
        f'{path}: was begun with other values of {errors.several(changed)}; '
        f'choose another --output, or {advice}'
      )
    if number > len(rows):
      raise errors.UserError(
        f'{path}: has more answers than questions; {advice}'
      )
    if number and line['question'] != rows[number - 1]['question']:
      raise errors.UserError(
        f'{path}:{number + 1}: answers another question; {advice}'
      )
    size = end
  return size, number


def _line(values: Mapping[str, Any]) -> bytes:
  return f'{json.dumps(values, ensure_ascii=False)}\n'.encode()


def _finish(unfinished: epath.Path, target: epath.Path) -> None:
  """Turns an unfinished output into the output."""
  _, _, data = unfinished.read_bytes().partition(b'\n')
  writers.write_bytes(target, data)
  unfinished.unlink()
