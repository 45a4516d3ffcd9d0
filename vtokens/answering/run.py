"""A finished run in a running program: what `vtokens.load` returns."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import config
from vtokens.answering.engine import Engine, Table
from vtokens.answering.requests import AnyPassage, Completion, Request
from vtokens.data import sources
from vtokens.data.checks import BadRecords
from vtokens.data.records import GIVEN, Record
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.cells import Answer
from vtokens.host import errors, writers
from vtokens.serving import prompt_ids

_NAME = 'tokens'
# The ways to ask that `compare` shows by default, in order.
CONDITIONS = ('closed_book', 'prompt', 'chat_prompt', 'tokens')


class Run:
  """Virtual tokens and their base, ready to answer.

  `vtokens.load` makes it. All methods may be called from any thread.

  Further keyword arguments of `answer`, `answer_many`, `stream` and `compare`
  are fields of `Request`: `max_new_tokens`, `temperature`, `top_p`, `seed`,
  `stop`, `stop_at_newline`, `num_logprobs`, `refusal_bias`, `condition`.

  Args:
    engine: has the base and the virtual tokens.
    name: name of the virtual tokens there.

  Attributes:
    engine: the same, for further tables and prompts of other kinds.
    name: the same.
  """

  def __init__(self, engine: Engine, name: str = _NAME):
    self.engine = engine
    self.name = name

  @property
  def table(self) -> Table:
    """The virtual tokens: `values`, `count`, `kind`, `sha256`."""
    return self.engine.tables[self.name]

  def answer(
    self,
    question: str,
    passages: Sequence[AnyPassage] = (),
    k: int | None = None,
    **options: Any,
  ) -> Completion:
    """Answers a question.

    Args:
      question: the question.
      passages: texts, dicts with `text` and maybe `title`, or passages of an
        index, best first.
      k: number of virtual tokens; None for all.
      **options: see `Run`.

    Raises:
      errors.UserError: a value is wrong, or the question is too long.
    """
    [found] = self.engine.answer(
      [self._request(question, passages, k, options)]
    )
    return found

  def answer_many(
    self,
    questions: Iterable[str | Mapping[str, Any] | Request],
    batch_size: int = 32,
    *,
    progress: bool = False,
    **options: Any,
  ) -> Iterator[Completion]:
    """Answers questions, some at a time, in their order.

    Args:
      questions: texts; or dicts with `question` and maybe `passages`, `k` and
        other fields of `Request`; or requests, which stay as they are. They are
        read as needed.
      batch_size: questions that are answered together.
      progress: whether to show a bar.
      **options: for all questions that do not say otherwise; see `Run`.

    Raises:
      errors.UserError: a question is wrong; the message has its number, from 0.
        Those of earlier batches were answered.
    """
    prompt_ids.check_number(batch_size, 1, 1 << 20, 'batch_size')
    numbered = enumerate(questions)
    with contextlib.ExitStack() as stack:
      bar = None
      if progress:
        bar = stack.enter_context(
          writers.progress(desc='answering', unit='question', leave=False)
        )
      while part := list(itertools.islice(numbered, batch_size)):
        prepared = []
        for number, question in part:
          try:
            request = self._from_any(question, options)
            prepared.append(self.engine.prepare(request))
          except errors.UserError as e:
            raise errors.UserError(f'questions[{number}]: {e}') from None
        for answer in self.engine.answer(prepared, batch_size=batch_size):
          if bar is not None:
            bar.update()
          yield answer

  def stream(
    self,
    question: str,
    passages: Sequence[AnyPassage] = (),
    k: int | None = None,
    **options: Any,
  ) -> Iterator[str]:
    """Answers a question and yields pieces of the text as they come.

    Args: see `answer`.

    Raises:
      errors.UserError: see `answer`; raised at once, before the iteration.
    """
    request = self._request(question, passages, k, options)
    parts = self.engine.stream([request])
    return (part.text for part in parts if part.text)

  def compare(
    self,
    question: str,
    passages: Sequence[AnyPassage] = (),
    conditions: Sequence[str] = CONDITIONS,
    k: int | None = None,
    **options: Any,
  ) -> dict[str, Completion]:
    """Answers a question in several ways, with and without virtual tokens.

    Args:
      question: the question.
      passages: see `answer`.
      conditions: names in `evaluation.conditions.CONDITIONS`. `chat_prompt` is
        left out of the default ones if the base has no chat template.
      k: number of virtual tokens; None for all.
      **options: see `Run`.

    Returns:
      Condition -> answer.

    Raises:
      errors.UserError: see `answer`.
    """
    names = list(conditions)
    if conditions is CONDITIONS and not self.engine.has_chat_template:
      names.remove('chat_prompt')
    requests = [
      self._request(question, passages, k, {**options, 'condition': name})
      for name in names
    ]
    return dict(zip(names, self.engine.answer(requests), strict=True))

  def score(
    self,
    questions: str | Sequence[str] | Sequence[Mapping[str, Any]],
    k: int | None = None,
    *,
    num_passages: int = 5,
    retriever: str = '',
    batch_size: int = 32,
    progress: bool = False,
    **options: Any,
  ) -> dict[str, Any]:
    """Answers questions with known answers, and scores the answers.

    Args:
      questions: a source of records or several, as in config.data.test; or
        dicts with `question`, `answers` and maybe `passages`.
      k: number of virtual tokens; None for all.
      num_passages: top passages that are shown.
      retriever: whose passages, for sources that have several.
      batch_size: questions that are answered together.
      progress: whether to show a bar.
      **options: see `Run`.

    Returns:
      `em` and `f1` in percent, `n`, and more; see `run_scores.all_scores`.

    Raises:
      errors.UserError: a source or a question is bad, or there is none.
    """
    records = _records(questions)
    if not any(record.answerable for record in records):
      raise errors.UserError(
        'questions: expected at least one that has an answer'
      )
    rows = [
      {
        'question': record.question,
        'passages': record.ranked(retriever)[:num_passages],
        'id': record.id,
        'k': k,
      }
      for record in records
    ]
    found = [
      Answer(
        text=answer.text,
        num_tokens=answer.completion_tokens,
        stop=answer.stop,
        shown=answer.shown,
        passages_dropped=answer.passages_dropped,
        passages_cut=answer.passages_cut,
        confidence=answer.confidence,
      )
      for answer in self.answer_many(
        rows, batch_size, progress=progress, **options
      )
    ]
    assembler = self.table.tokens.assembler
    form = AnswerTexts.of(assembler.encoder.templates, assembler.in_chat(None))
    return run_scores.all_scores(records, found, form, retriever)

  def _from_any(
    self, question: str | Mapping[str, Any] | Request, options: dict[str, Any]
  ) -> Request:
    if isinstance(question, Request):
      return question
    if isinstance(question, Mapping):
      fields = {**options, **question}
      return self._request(
        fields.pop('question', None),
        fields.pop('passages', ()),
        fields.pop('k', None),
        fields,
      )
    return self._request(question, (), None, options)

  def _request(
    self,
    question: Any,
    passages: Sequence[AnyPassage],
    k: int | None,
    options: Mapping[str, Any],
  ) -> Request:
    try:
      return Request(
        **{
          'question': question,
          'passages': passages,
          'k': k,
          'table': self.name,
          **options,
        }
      )
    except TypeError as e:
      raise errors.UserError(f'{e}; see vtokens.answering.Request') from None


def _records(questions: Any) -> list[Record]:
  """Records of sources or of dicts."""
  if isinstance(questions, str | os.PathLike):
    questions = [os.fspath(questions)]
  questions = list(questions)
  if questions and all(isinstance(one, str) for one in questions):
    report = BadRecords('error', on_unanswerable='skip')
    return list(sources.read(questions, report=report))
  records = []
  for i, row in enumerate(questions):
    where = f'questions[{i}]'
    if not isinstance(row, Mapping):
      raise errors.UserError(
        f'{where}: expected a dict with "question" and "answers"'
      )
    answers = row.get('answers')
    if isinstance(answers, str) or not isinstance(answers, Sequence):
      raise errors.UserError(f'{where}["answers"]: expected a list of texts')
    records.append(
      Record(
        id=str(row.get('id', i)),
        dataset='',
        question=prompt_ids.check_question(
          row.get('question'), f'{where}["question"]'
        ),
        answers=tuple(
          prompt_ids.check_text(answer, f'{where}["answers"]')
          for answer in answers
        ),
        passages={
          GIVEN: tuple(prompt_ids.read_passages(row.get('passages', ())))
        },
      )
    )
  return records


def load(
  path: epath.PathLike,
  *,
  base: config.Base | str | None = None,
  batch_size: int = 32,
  refusal_bias: float = 0.0,
  where: str = 'path',
) -> Run:
  """Loads the virtual tokens of a run, and their base, to answer with them.

  Args:
    path: work directory of a finished run, or a `vtokens` export.
    base: where the base is, or its settings; None as in training.
    batch_size: most questions that run together.
    refusal_bias: of questions that do not say; see `Request`.
    where: the flag or argument that names the directory, for messages.

  Raises:
    errors.UserError: there is no finished run or export, the base is not the
      one that it was trained on, or there is a bias and the virtual tokens were
      not trained to refuse.
  """
  engine = Engine.open(
    path,
    _NAME,
    base=base,
    batch_size=batch_size,
    refusal_bias=refusal_bias,
    where=where,
  )
  return Run(engine)
