"""Formats of datasets that evaluate retrieval-augmented generation.

Sources of the field lists: princeton-nlp/ALCE README and run.py; chen700564/RGB
README and evalue.py; explodinggradients/ragas docs (evaluation schema) of
versions 0.1 and 0.2; facebookresearch/CRAG docs/dataset.md.
"""

from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import RowFields
from vtokens.data.formats import drafts
from vtokens.data.formats.drafts import Draft, Passages
from vtokens.data.records import GIVEN, GOLD, Passage

_PAGES = 'web pages of CRAG left out: their snippets are the passages'


def alce(fields: RowFields) -> Draft:
  """ALCE: `docs` are given passages, `answer` is the annotators'."""
  given = [passage for passage, _ in drafts.listed(fields, 'docs')]
  return drafts.make(
    fields,
    'answer' if 'answer' in fields else 'answers',
    passages={GIVEN: [*given]},
    id_='sample_id' if 'sample_id' in fields else 'id',
  )


def rgb(fields: RowFields) -> Draft:
  """RGB: `positive` is gold; all passages are given, false ones last."""
  gold = [passage for passage, _ in drafts.listed(fields, 'positive')]
  given = list(gold)
  for key in ('negative', 'positive_wrong'):
    if key in fields:
      given += [passage for passage, _ in drafts.listed(fields, key)]
  return drafts.make(fields, 'answer', passages=drafts.with_gold(given, gold))


def ragas(fields: RowFields) -> Draft:
  """RAGAS: the truth is the answer; a system's answer is not read."""
  keys = ('ground_truths', 'ground_truth', 'reference')
  truths = [key for key in keys if key in fields]
  passages: Passages = {}
  for name, found in (
    (GIVEN, ('contexts', 'retrieved_contexts')),
    (GOLD, ('reference_contexts',)),
  ):
    for key in found:
      if key in fields:
        listed = [passage for passage, _ in drafts.listed(fields, key)]
        passages[name] = [*passages.get(name, []), *listed]
  answers = [text for key in truths for text in fields.texts(key)]
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text(fields.only('question', 'user_input')),
    answers=fields_lib.unique(answers),
    passages=passages,
  )


def crag(fields: RowFields) -> Draft:
  """CRAG: the snippets of the found pages are given passages."""
  given = []
  for page in fields.objects('search_results', 'pages'):
    title = page.text('page_name', '')
    snippet = page.body('page_snippet')
    passage = drafts.visible(
      Passage('', title, snippet),
      page,
    )
    if passage is not None:
      given.append(passage)
    if page.get('page_result'):
      page.notes.append(_PAGES)
  key = 'interaction_id'
  return drafts.make(
    fields,
    'answer',
    'alt_ans',
    passages={GIVEN: [*given]},
    id_=key if key in fields else 'id',
  )


def check_choices(fields: RowFields, draft: Draft) -> None:
  """Checks that the answer is not the letter of a choice.

  Raises:
    BadRecord: it is.
  """
  key = next((k for k in ('options', 'choices') if fields.get(k)), None)
  if key is None:
    return
  choices = fields.get(key)
  texts = choices if isinstance(choices, list) else []
  for answer in draft.answers:
    letter = answer.strip('() .')
    if len(letter) == 1 and letter.isalnum() and answer not in texts:
      raise BadRecord(
        Kind.MALFORMED,
        f'{key}: found choices, and {letter} as the answer, expected its text: '
        'a question is shown without choices here (config.tasks of '
        'vtokens.evaluate has multiple choice)',
      )
