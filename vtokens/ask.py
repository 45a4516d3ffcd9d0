r"""Answers questions with the virtual tokens of a run.

One question, or a session, in which each line is a question:

    python -m vtokens.ask --workdir runs/quickstart \
      --question 'Who wrote it?' --passage 'A passage.' --passage 'Another.'
    python -m vtokens.ask --workdir runs/quickstart

`--compare` also shows answers without virtual tokens, `--index` finds the
passages, `--input` and `--output` answer a file.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from vtokens.answering import (
  answer_file,
  asked_passages,
  run,
  session,
  shown_answers,
)
from vtokens.answering.asked_passages import Shown
from vtokens.answering.requests import Completion
from vtokens.answering.run import Run
from vtokens.host import errors, writers
from vtokens.retrieval import open_index
from vtokens.serving import prompt_ids
from vtokens.settings import flags

_WORKDIR = flags.define_path(
  'workdir',
  None,
  'Work directory of a finished run, or an export --to vtokens.',
)
_BASE = flags.define_path(
  'base', None, 'The base, if it has moved; default: as in training.'
)
_QUESTION = absl_flags.DEFINE_string(
  'question', None, 'The question; without it a session begins.'
)
_PASSAGE = absl_flags.DEFINE_multi_string(
  'passage', [], 'A passage, best first.'
)
_PASSAGES = flags.define_path(
  'passages',
  None,
  'File of passages: .jsonl with text and title, or text with blank lines '
  'between passages.',
)
_INDEX = flags.define_path(
  'index', None, 'Index of vtokens.retrieve that finds the passages.'
)
_RETRIEVER = absl_flags.DEFINE_string(
  'retriever', None, 'Name of the retriever in --index, if it has several.'
)
_ENCODER = flags.define_path(
  'encoder', None, 'Model of a dense retriever in --index.'
)
_NUM_PASSAGES = absl_flags.DEFINE_integer(
  'num_passages', 5, 'Passages to find in --index.'
)
_NUM_ACTIVE = absl_flags.DEFINE_integer(
  'num_active', None, 'Virtual tokens used (k); default: all.'
)
_REFUSAL_BIAS = absl_flags.DEFINE_float(
  'refusal_bias',
  0.0,
  'For virtual tokens trained to refuse: above 0 they refuse more, below 0 '
  'less (docs/training.md).',
)
_COMPARE = absl_flags.DEFINE_boolean(
  'compare', False, 'Also answer without virtual tokens.'
)
_JSON = absl_flags.DEFINE_boolean('json', False, 'Write answers as JSON lines.')
_INPUT = flags.define_path(
  'input', None, 'JSON lines of questions, and maybe their passages, to answer.'
)
_OUTPUT = flags.define_path(
  'output',
  None,
  'File for the answers to --input. The same command continues after a kill.',
)
_RECORDS = absl_flags.DEFINE_boolean(
  'records',
  False,
  'Write --output as training records: the answers become accepted answers, '
  'with the passages that were shown.',
)
_BATCH_SIZE = absl_flags.DEFINE_integer(
  'batch_size', 8, 'Questions of --input that are answered together.'
)


def ask(
  workdir: str,
  question: str,
  passages: Sequence[str],
  num_active: int | None = None,
) -> dict[str, Completion]:
  """Greedy answers to one question, with and without virtual tokens.

  Args:
    workdir: of a finished run, or an export.
    question: the question.
    passages: their texts, best first.
    num_active: virtual tokens used (k); None for all.

  Returns:
    Label of the condition -> answer, with its text and confidence; the virtual
    tokens come last.

  Raises:
    errors.UserError: there is no finished run, its base has changed, the
      question or a passage is not text, or the question is too long.
  """
  prompt_ids.check_question(question, '--question')
  shown = Shown(prompt_ids.read_passages(passages))
  loaded = run.load(workdir, where='--workdir')
  k = _count(loaded, num_active)
  found = loaded.compare(question, shown.of(question), k=k)
  names = shown_answers.labels(list(found), k)
  return {names[name]: answer for name, answer in found.items()}


def _count(loaded: Run, num_active: int | None) -> int:
  most = loaded.table.count
  if num_active is None:
    return most
  return prompt_ids.check_number(num_active, 1, most, '--num_active')


def _one(loaded: Run, question: str, shown: Shown) -> None:
  """Prints the answer to one question."""
  passages = shown.of(question)
  k = _count(loaded, _NUM_ACTIVE.value)
  if _COMPARE.value:
    answers = loaded.compare(question, passages, k=k)
    if not _JSON.value:
      writers.say(shown_answers.table(answers, k))
      return
    found = {name: shown_answers.as_json(one) for name, one in answers.items()}
    row: dict[str, Any] = {'question': question, 'answers': found}
  else:
    answer = loaded.answer(question, passages, k)
    if not _JSON.value:
      writers.say(answer.text)
      writers.say(shown_answers.details(answer, len(passages)))
      return
    row = {'question': question, **shown_answers.as_json(answer)}
  row['passages'] = shown_answers.passages_as_json(passages)
  writers.say(json.dumps(row, ensure_ascii=False))


def _shown() -> Shown:
  """The passages that the flags name."""
  given = prompt_ids.read_passages(_PASSAGE.value)
  if _PASSAGES.value is not None:
    given += asked_passages.read(_PASSAGES.value)
  if _INDEX.value is None:
    for flag in (_RETRIEVER, _ENCODER):
      if flag.value is not None:
        raise errors.UserError(f'--{flag.name}: expected --index with it')
    return Shown(given)
  if given:
    raise errors.UserError(
      '--index finds the passages; expected no --passage and no --passages '
      'with it'
    )
  number = prompt_ids.check_number(
    _NUM_PASSAGES.value, 1, 10_000, '--num_passages'
  )
  index = open_index.open_index(_INDEX.value, _RETRIEVER.value, _ENCODER.value)
  return Shown((), index, number)


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  if _WORKDIR.value is None:
    raise errors.UserError('--workdir is needed')
  if (_INPUT.value is None) != (_OUTPUT.value is None):
    raise errors.UserError('--input and --output are needed together')
  if _RECORDS.value and _INPUT.value is None:
    raise errors.UserError('--records: expected --input and --output with it')
  if _INPUT.value is not None and _QUESTION.value is not None:
    raise errors.UserError('expected --question or --input, not both')
  if _INPUT.value is not None and _COMPARE.value:
    raise errors.UserError(
      '--compare shows one question; compare a file with vtokens.evaluate'
    )
  if _QUESTION.value is not None:
    prompt_ids.check_question(_QUESTION.value, '--question')
  shown = _shown()
  loaded = run.load(
    _WORKDIR.value,
    base=_BASE.value,
    refusal_bias=_REFUSAL_BIAS.value,
    where='--workdir',
  )
  k = _NUM_ACTIVE.value
  if _INPUT.value is not None:
    _count(loaded, k)
    size = prompt_ids.check_number(_BATCH_SIZE.value, 1, 10_000, '--batch_size')
    before = answer_file.answer(
      loaded,
      _INPUT.value,
      _OUTPUT.value,
      shown,
      k=k,
      batch_size=size,
      records=_RECORDS.value,
    )
    if before:
      writers.say(f'{before:,} answers were there before')
    writers.say(f'written to {_OUTPUT.value}')
  elif _QUESTION.value is not None:
    _one(loaded, _QUESTION.value, shown)
  else:
    _count(loaded, k)
    if _COMPARE.value:
      raise errors.UserError(
        '--compare: expected --question with it; in a session type /compare'
      )
    session.Session(loaded, shown, k, _JSON.value).loop()


if __name__ == '__main__':
  flags.run(main)
