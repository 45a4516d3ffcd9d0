"""Formats of datasets as their authors, Hugging Face or TFDS publish them.

Sources of the field lists: the builders of tensorflow_datasets 4.9.10 for
SQuAD, CoQA, NQ-open and TriviaQA; hotpotqa/hotpot README and
Alab-NII/2wikimultihop README; microsoft/MSMARCO-Question-Answering
Baseline/scripts/dataset.py and the data card of microsoft/ms_marco;
AlexTMallen/adaptive-retrieval run_model.py and the data card of
akariasai/PopQA; google-research-datasets/natural-questions nq_open README;
StonyBrookNLP/musique README.
"""

from collections.abc import Iterator
from typing import Any

from vtokens.data import fields as fields_lib
from vtokens.data import table_cells
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import RowFields
from vtokens.data.formats import drafts
from vtokens.data.formats.drafts import Draft
from vtokens.data.records import GOLD, Passage

_NO_ANSWER = 'No Answer Present.'  # MS MARCO
_EVIDENCE = 'records of TriviaQA whose evidence, whole documents, was left out'
_UNKNOWN_ANSWER = '<unk>'  # tfds:trivia_qa, in its test split

# Prefixes of the utterances of a conversation.
USER, AGENT = 'User: ', 'Agent: '


def expand(value: Any, turns: str) -> Iterator[tuple[str, Any]]:
  """Yields (suffix of id, row) for each round of a conversation.

  Other rows are yielded as they are. After a round without a question or an
  answer a `BadRecord` stands for each row, since the conversation is not known.

  Args:
    value: the row.
    turns: 'first' yields the first round. 'all' yields all rounds; a question
      is then the conversation so far, with a line for each utterance.
  """
  if not isinstance(value, dict) or value.get('story') is None:
    yield '', value
    return
  yield from _rounds(value, turns)


def _rounds(value: dict[str, Any], turns: str) -> Iterator[tuple[str, Any]]:
  questions, answers = value.get('questions'), value.get('answers')
  if not isinstance(questions, list) or not questions:
    raise fields_lib.wrong_type('questions', questions, 'an array of questions')
  # Columns in TFDS, objects in the original.
  if isinstance(answers, dict):
    answers = answers.get('input_text')
  if not isinstance(answers, list):
    raise fields_lib.wrong_type('answers', answers, 'an array of answers')
  if len(answers) < len(questions):
    raise BadRecord(
      Kind.MALFORMED,
      f'answers: found {len(answers)} for {len(questions)} questions, expected '
      'as many',
    )
  more = value.get('additional_answers', {})
  others = list(more.values()) if isinstance(more, dict) else []
  said = ''
  broken = 0
  row: dict[str, Any]
  for i in range(len(questions) if turns == 'all' else 1):
    if broken:
      yield (
        f'-{i + 1}',
        BadRecord(
          Kind.MALFORMED,
          f'round {broken}: found no text for its question or answer, expected '
          'both, since later rounds show them',
        ),
      )
      continue
    question, answer = _said(questions[i]), _said(answers[i])
    if turns == 'all' and isinstance(question, str):
      question = said + USER + question
    more_answers = [
      _said(other[i])
      for other in others
      if isinstance(other, list) and i < len(other)
    ]
    row = {
      'story': value['story'],
      'question': question,
      'answers': [answer, *more_answers],
    }
    if value.get('id') is not None:
      row['id'] = f'{value["id"]}-{i + 1}'
    yield f'-{i + 1}', row
    if not (isinstance(question, str) and isinstance(answer, str)):
      broken = i + 1
    said = f'{question}\n{AGENT}{answer}\n'


def _said(turn: Any) -> Any:
  return turn.get('input_text') if isinstance(turn, dict) else turn


def squad(fields: RowFields) -> Draft:
  """SQuAD and MRQA: the question's paragraph is gold, also without answers."""
  answers = table_cells.parsed(fields.value('answers'))
  if isinstance(answers, dict):  # Columns, whose lengths may differ.
    column = fields.object('answers')
    texts = column.texts('text') if column.get('text') else ()
  elif isinstance(answers, str) or (
    isinstance(answers, list) and any(isinstance(a, str) for a in answers)
  ):
    texts = fields.texts('answers')  # MRQA
  else:
    texts = tuple(a.text('text') for a in fields.objects('answers', 'answers'))
  if not texts:
    drafts.mark_unanswerable(fields, 'answers')
  gold = drafts.visible(
    Passage('', fields.text('title', ''), fields.body('context')), fields
  )
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text('question'),
    answers=fields_lib.unique(texts),
    passages={GOLD: [gold]} if gold else {},
  )


def coqa(fields: RowFields) -> Draft:
  """CoQA: a round that `expand` made; the story is gold."""
  gold = drafts.visible(Passage('', '', fields.body('story')), fields)
  return drafts.make(fields, 'answers', passages={GOLD: [gold]} if gold else {})


def hotpot(fields: RowFields) -> Draft:
  """HotpotQA and 2WikiMultiHopQA: all paragraphs given, some also gold."""
  for key in ('supporting_facts', 'context'):
    # In Parquet files of 2WikiMultiHopQA these columns hold JSON as text.
    if isinstance(text := fields.value(key), str):
      fields.values[key] = table_cells.TextCell(text)
  facts = fields.value('supporting_facts')
  titles = _first_column(fields, 'supporting_facts', facts)
  supporting = set(titles)
  given = []
  for name, title, sentences in _paragraphs(fields):
    title = fields.check_text(title, f'{name}[0]')
    if not isinstance(sentences, list):
      raise fields_lib.wrong_type(
        f'{name}[1]', sentences, 'an array of sentences'
      )
    text = ''
    for j, sentence in enumerate(sentences):
      if sentence is None:
        continue
      sentence = fields.check_text(sentence, f'{name}[1][{j}]', blank=True)
      # Sentences start with a space in HotpotQA, but not in other datasets.
      glue = text and not text[-1].isspace() and not sentence[:1].isspace()
      text += f' {sentence}' if glue else sentence
    passage = drafts.visible(Passage('', title, text.strip()), fields)
    if passage is not None:
      given.append(passage)
  gold = [p for p in given if p.title in supporting]
  id_key = '_id' if '_id' in fields else 'id'
  return Draft(
    id=fields.id(id_key) if id_key in fields else '',
    dataset='',
    question=fields.text('question'),
    answers=(fields.text('answer'),),
    passages=drafts.with_gold(given, gold),
  )


def _paragraphs(fields: RowFields) -> list[tuple[str, Any, Any]]:
  """(name, title, sentences) of [[title, sentences]] or {title, sentences}.

  Parquet files have the latter, an object of columns.
  """
  context = table_cells.parsed(fields.value('context'))
  if isinstance(context, dict):
    rows = fields.objects('context', 'paragraphs')
    return [(r.path, r.value('title'), r.value('sentences')) for r in rows]
  pairs = fields.items('context', '[title, sentences]')
  for name, pair in pairs:
    if not isinstance(pair, list) or len(pair) != 2:
      raise fields_lib.wrong_type(name, pair, '[title, sentences]')
  return [(name, pair[0], pair[1]) for name, pair in pairs]


def _first_column(fields: RowFields, key: str, value: Any) -> list[str]:
  if isinstance(table_cells.parsed(value), dict):
    return [row.text('title') for row in fields.objects(key, 'facts')]
  titles = []
  for name, pair in fields.items(key, '[title, sentence]'):
    if not isinstance(pair, list) or len(pair) != 2:
      raise fields_lib.wrong_type(name, pair, '[title, sentence]')
    titles.append(fields.check_text(pair[0], f'{name}[0]'))
  return titles


def musique(fields: RowFields) -> Draft:
  """MuSiQue: all paragraphs given, the supporting ones also gold."""
  given = drafts.listed(fields, 'paragraphs', text='paragraph_text', id_='')
  gold = [p for p, part in given if part and part.get('is_supporting') is True]
  return drafts.make(
    fields,
    'answer',
    'answer_aliases',
    passages=drafts.with_gold([p for p, _ in given], gold),
  )


def ms_marco(fields: RowFields) -> Draft:
  """MS MARCO QA: all passages given, the selected ones also gold."""
  answers = fields.value('answers')
  if answers in ([], [_NO_ANSWER]):
    drafts.mark_unanswerable(fields, 'answers')
  given, gold = [], []
  for row in fields.objects('passages', 'passages'):
    passage = drafts.visible(Passage('', '', row.body('passage_text')), row)
    if passage is None:
      continue
    given.append(passage)
    if row.get('is_selected') == 1:
      gold.append(passage)
  return Draft(
    id=fields.id('query_id') if 'query_id' in fields else '',
    dataset='',
    question=fields.text('query'),
    answers=fields_lib.unique(
      a
      for a in (fields.texts('answers') if fields.answerable else ())
      if a != _NO_ANSWER
    ),
    passages=drafts.with_gold(given, gold),
  )


def popqa(fields: RowFields) -> Draft:
  """PopQA: `possible_answers` is a JSON array as text."""
  text = fields.value('possible_answers')
  if isinstance(text, str):
    answers = table_cells.parsed(table_cells.TextCell(text))
    if not isinstance(answers, list):
      raise fields_lib.wrong_type(
        'possible_answers', text, 'a JSON array of strings'
      )
    fields.values['possible_answers'] = answers
  return drafts.make(fields, 'possible_answers')


def nq_open(fields: RowFields) -> Draft:
  """NQ-open and others: question and `answer`, a string or an array."""
  # MIRAGE has only this id.
  id_ = 'query_id' if 'query' in fields and 'id' not in fields else 'id'
  return drafts.make(fields, 'answer', id_=id_)


def trivia_qa(fields: RowFields) -> Draft:
  """TriviaQA without evidence: the value and its aliases are answers."""
  for key in ('entity_pages', 'search_results'):
    documents = fields.get(key)
    if isinstance(documents, dict):
      documents = any(documents.values())
    if documents:
      fields.notes.append(_EVIDENCE)
  answer = fields.object('answer')
  value = answer.text('value')
  if value == _UNKNOWN_ANSWER:
    raise drafts.unanswerable('answer.value')
  aliases = answer.texts('aliases') if answer.get('aliases') else ()
  return Draft(
    id=fields.id('question_id') if 'question_id' in fields else '',
    dataset='',
    question=fields.text('question'),
    answers=fields_lib.unique((value, *aliases)),
    passages={},
  )
