"""Rows of retrieval-augmented question answering: they bring passages.

Sources of the field lists: facebookresearch/DPR dense_retriever.py
(save_results) and facebookresearch/FiD src/preprocess.py for `ctxs`;
facebookresearch/atlas preprocessing/prepare_qa.py and src/tasks/qa.py;
facebookresearch/KILT README; castorini/pyserini
pyserini/eval/convert_trec_run_to_dpr_retrieval_run.py; RUC-NLPIR/FlashRAG
README and flashrag/retriever/retriever.py.
"""

from vtokens.data import corpus
from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import Fields
from vtokens.data.formats import drafts
from vtokens.data.formats.drafts import Draft, Passages, Ref
from vtokens.data.records import GIVEN, GOLD, Passage

# What the lists [[id, score], ...] under `retrieved` come from.
BM25 = 'bm25'
_MAX_SPAN = 1000  # paragraphs of KILT


def own(fields: Fields) -> Draft:
  """This project's own, SPRING's, Atlas's, and questions without passages."""
  answers = drafts.answers(fields)
  passages: Passages = {}
  if 'passages' in fields or 'ret_passages' in fields:
    key = fields.only('passages', 'ret_passages')
    if isinstance(fields.values[key], dict):
      by_retriever = fields.object(key)
      for name in by_retriever.values:
        by_retriever.check_text(name, f'{key}: the name of a retriever')
        passages[name] = [passage for passage, _ in _listed(by_retriever, name)]
    else:
      listed = _listed(fields, key)
      gold = [p for p, is_gold in listed if is_gold]
      if gold:
        passages[GOLD] = [*gold]
      # The gold ones keep their place among others.
      if len(gold) < len(listed) or not gold:
        passages[GIVEN] = [p for p, _ in listed]
  if 'retrieved' in fields:
    if BM25 in passages:
      raise BadRecord(
        Kind.MALFORMED,
        f'retrieved: found passages of {BM25} there and under passages, '
        'expected them once',
      )
    passages[BM25] = _retrieved(fields)
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset=fields.text('dataset') if 'dataset' in fields else '',
    question=fields.text(fields.only('question', 'query')),
    answers=answers,
    passages=passages,
  )


def _listed(fields: Fields, key: str) -> list[tuple[Passage, bool]]:
  """Passages that are strings or objects, and whether each is gold."""
  listed = []
  for i, value in enumerate(fields.array(key, 'passages')):
    name = f'{fields.name(key)}[{i}]'
    if isinstance(value, str):
      listed.append((Passage('', '', fields.check_text(value, name)), False))
      continue
    if not isinstance(value, dict):
      raise fields_lib.wrong_type(name, value, 'a string or an object')
    passage = Fields(value, name, fields.max_text_bytes)
    gold = passage.values.get('gold', False)
    if not isinstance(gold, bool):
      raise fields_lib.wrong_type(passage.name('gold'), gold, 'a boolean')
    listed.append((drafts.passage(passage), gold))
  return listed


def _retrieved(fields: Fields) -> list[Passage | Ref]:
  refs: list[Passage | Ref] = []
  for i, pair in enumerate(fields.array('retrieved', '[id, score]')):
    name = f'retrieved[{i}]'
    if not isinstance(pair, list) or len(pair) != 2:
      raise fields_lib.wrong_type(name, pair, 'an array of id and score')
    score = fields_lib.as_score(pair[1], f'{name}[1]')
    refs.append(Ref((fields.check_id(pair[0], f'{name}[0]'),), score, name))
  return refs


def flashrag(fields: Fields) -> Draft:
  """A data set's line; what its intermediate_data.json adds is `output`."""
  passages: Passages = {}
  output = fields.values.get('output')
  if isinstance(output, dict) and 'retrieval_result' in output:
    passages[GIVEN] = cached(
      fields.object('output').objects('retrieval_result', 'passages')
    )
  return drafts.make(fields, 'golden_answers', passages=passages)


def cached(results: list[Fields]) -> list[Passage | Ref]:
  """What FlashRAG keeps of retrieved passages: {id, contents, score}."""
  found: list[Passage | Ref] = []
  for result in results:
    score = result.score('score')
    if 'contents' in result:
      title, text = corpus.split_contents(result.text('contents'))
      text = result.check_text(text, result.name('contents (after its title)'))
      found.append(Passage(result.id('id', ''), title, text, score))
    elif 'text' in result:
      found.append(drafts.passage(result))
    else:
      found.append(Ref((result.id('id'),), score, result.path))
  return found


def dpr(fields: Fields) -> Draft:
  """DPR's and FiD's: `ctxs`, whose scores may be strings."""
  ctxs = fields.objects('ctxs', 'passages')
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text('question'),
    answers=fields_lib.unique(drafts.answers(fields)),
    passages={GIVEN: [drafts.passage(ctx) for ctx in ctxs]},
  )


def pyserini(fields: Fields) -> Draft:
  """One question of Pyserini's DPR run; `text` is only there if asked for."""
  given: list[Passage | Ref] = []
  for context in fields.objects('contexts', 'passages'):
    score = context.score('score')
    if 'text' not in context:
      given.append(Ref((context.id('docid'),), score, context.path))
      continue
    title, text = corpus.split_contents(context.text('text'))
    text = context.check_text(text, context.name('text (after its title)'))
    given.append(Passage(context.id('docid', ''), title, text, score))
  return drafts.make(fields, 'answers', passages={GIVEN: given})


def kilt(fields: Fields) -> Draft:
  """KILT: the paragraphs that its provenances name are gold."""
  answers: list[str] = []
  gold: dict[tuple[str, ...], Ref] = {}
  for output in fields.objects('output', 'outputs'):
    if 'answer' in output:
      answers.append(output.text('answer'))
    if 'provenance' not in output:
      continue
    for source in output.objects('provenance', 'provenances'):
      ids = _span(source)
      if ids:
        gold.setdefault(ids, Ref(ids, None, source.path))
  if not answers:
    raise BadRecord(
      Kind.EMPTY, 'output: found no answer, expected at least one'
    )
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text('input'),
    answers=fields_lib.unique(answers),
    passages={GOLD: list(gold.values())} if gold else {},
  )


def _span(source: Fields) -> tuple[str, ...]:
  """Ids of the paragraphs that a provenance names, if it names any."""
  start = source.values.get('start_paragraph_id')
  if 'wikipedia_id' not in source or start is None:
    return ()
  page = source.id('wikipedia_id')
  end = source.values.get('end_paragraph_id', start)
  for key, value in (('start', start), ('end', end)):
    if not isinstance(value, int) or isinstance(value, bool):
      name = source.name(f'{key}_paragraph_id')
      raise fields_lib.wrong_type(name, value, 'a whole number')
  if not 0 <= start <= end < start + _MAX_SPAN:
    raise BadRecord(
      Kind.MALFORMED,
      f'{source.path}: found paragraphs {start} to {end}, expected at most '
      f'{_MAX_SPAN} from 0 on',
    )
  return tuple(corpus.kilt_id(page, i) for i in range(start, end + 1))
