"""Formats of retrieval-augmented question answering, with passages.

Sources of the field lists: facebookresearch/DPR dense_retriever.py
(save_results) and facebookresearch/FiD src/preprocess.py for `ctxs`, DPR
dpr/data/biencoder_data.py (JsonQADataset) for its training files;
facebookresearch/atlas preprocessing/prepare_qa.py and src/tasks/qa.py;
facebookresearch/KILT README; castorini/pyserini
pyserini/eval/convert_trec_run_to_dpr_retrieval_run.py; RUC-NLPIR/FlashRAG
README and flashrag/retriever/retriever.py.
"""

from vtokens.data import corpus, table_cells
from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, Kind
from vtokens.data.fields import RowFields
from vtokens.data.formats import drafts
from vtokens.data.formats.drafts import Draft, Passages, Ref
from vtokens.data.records import GIVEN, GOLD, Passage

# Retriever of the lists [[id, score], ...] under `retrieved`.
BM25 = 'bm25'
_MAX_SPAN = 1000  # paragraphs of KILT
_DPR_TRAINING = ('positive_ctxs', 'hard_negative_ctxs', 'negative_ctxs')


def own(fields: RowFields) -> Draft:
  """vtokens, SPRING, Atlas, and questions without passages."""
  answers = drafts.answers(fields)
  passages: Passages = {}
  if 'passages' in fields or 'ret_passages' in fields:
    key = fields.only('passages', 'ret_passages')
    value = table_cells.parsed(fields.get(key))
    if isinstance(value, dict):
      by_retriever = fields.object(key)
      for name in by_retriever.values:
        named = by_retriever.check_text(name, f'{key}: the name of a retriever')
        passages[named] = [p for p, _ in drafts.listed(by_retriever, name)]
    else:
      listed = drafts.listed(fields, key)
      gold = [p for p, part in listed if _is_gold(part)]
      if gold:
        passages[GOLD] = [*gold]
      # `GIVEN` has the gold passages too, in their places.
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


def _is_gold(passage: RowFields | None) -> bool:
  if passage is None:
    return False
  gold = passage.get('gold', False)
  if not isinstance(gold, bool):
    raise fields_lib.wrong_type(passage.name('gold'), gold, 'a boolean')
  return gold


def _retrieved(fields: RowFields) -> list[Passage | Ref]:
  refs: list[Passage | Ref] = []
  for name, pair in fields.items('retrieved', '[id, score]'):
    if not isinstance(pair, list) or len(pair) != 2:
      raise fields_lib.wrong_type(name, pair, 'an array of id and score')
    score = fields_lib.as_score(pair[1], f'{name}[1]')
    refs.append(Ref((fields.check_id(pair[0], f'{name}[0]'),), score, name))
  return refs


def flashrag(fields: RowFields) -> Draft:
  """FlashRAG's datasets, and intermediate_data.json, which adds `output`."""
  passages: Passages = {}
  output = fields.get('output')
  if isinstance(output, dict) and output.get('retrieval_result') is not None:
    passages[GIVEN] = cached(
      fields.object('output').objects('retrieval_result', 'passages')
    )
  return drafts.make(fields, 'golden_answers', passages=passages)


def cached(results: list[RowFields]) -> list[Passage | Ref]:
  """FlashRAG's retrieved passages: {id, contents, score}."""
  found: list[Passage | Ref | None] = []
  for result in results:
    if 'contents' in result or 'contents' in result.nulls:
      found.append(drafts.contents(result, 'contents', 'id'))
    elif 'text' in result or 'text' in result.nulls:
      found.append(drafts.passage(result))
    else:
      score = result.score('score')
      found.append(Ref((result.id('id'),), score, result.path))
  return [passage for passage in found if passage is not None]


def dpr(fields: RowFields) -> Draft:
  """DPR and FiD: `ctxs` are given passages; their scores may be strings."""
  ctxs = [drafts.passage(ctx) for ctx in fields.objects('ctxs', 'passages')]
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset='',
    question=fields.text(fields.only('question', 'query')),
    answers=fields_lib.unique(drafts.answers(fields)),
    passages={GIVEN: [ctx for ctx in ctxs if ctx is not None]},
  )


def dpr_training(fields: RowFields) -> Draft:
  """Training data of DPR's retriever: positives are gold, all are given."""
  found: dict[str, list[Passage]] = {}
  for key in _DPR_TRAINING:
    found[key] = []
    for ctx in fields.objects(key, 'passages') if key in fields else ():
      id_ = 'psg_id' if 'psg_id' in ctx else 'passage_id'
      passage = drafts.passage(ctx, id_=id_)
      if passage is not None:
        found[key].append(passage)
  given = [passage for passages in found.values() for passage in passages]
  return Draft(
    id=fields.id('id') if 'id' in fields else '',
    dataset=fields.text('dataset') if 'dataset' in fields else '',
    question=fields.text('question'),
    answers=fields_lib.unique(drafts.answers(fields)),
    passages=drafts.with_gold(given, found['positive_ctxs']),
  )


def pyserini(fields: RowFields) -> Draft:
  """A question of Pyserini's DPR run, whose contexts may lack `text`."""
  given: list[Passage | Ref | None] = []
  for context in fields.objects('contexts', 'passages'):
    if 'text' in context or 'text' in context.nulls:
      given.append(drafts.contents(context, 'text', 'docid'))
    else:
      score = context.score('score')
      given.append(Ref((context.id('docid'),), score, context.path))
  passages: Passages = {GIVEN: [p for p in given if p is not None]}
  return drafts.make(fields, 'answers', passages=passages)


def kilt(fields: RowFields) -> Draft:
  """KILT: the paragraphs that the provenances name are gold."""
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


def _span(source: RowFields) -> tuple[str, ...]:
  """Ids of the paragraphs that a provenance names; may be empty."""
  start = source.get('start_paragraph_id')
  if 'wikipedia_id' not in source or start is None:
    return ()
  page = source.id('wikipedia_id')
  end = source.get('end_paragraph_id', start)
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
