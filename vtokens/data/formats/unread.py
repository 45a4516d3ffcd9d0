"""Refuses rows with unread keys that look like passages or answers.

A row is read as question and answer if it has these keys, whatever other keys
it has. If another key looks like passages or answers, the row has an unknown
format: training would miss its passages or learn wrong answers.
"""

import functools
import re
from typing import Any

from vtokens.data import table_cells
from vtokens.data.checks import BadRecord, Kind, printable
from vtokens.data.fields import RowFields


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


_PASSAGES = _words(
  """
  article articles background body chunk chunks content contents context
  contexts ctx ctxs doc docs document documents evidence evidences excerpt
  excerpts fact facts knowledge negative negatives page pages paragraph
  paragraphs passage passages positive positives psg psgs reference references
  retrieval retrieved search sentence sentences snippet snippets story support
  supporting text texts
  """
)
_ANSWERS = _words(
  """
  alias aliases ans answer answers gold golden groundtruth gt target targets
  truth truths
  """
)
# Last words of keys that hold a property of passages or answers.
_PROPERTIES = _words(
  """
  categories category checked class classes count counts cutoff date end ends
  engine entities entity format hash id index indices key kind lang language
  latency len length level method model name names offset offsets precision prop
  quality queries query rank ranks recall relevance relevancy score scores
  source sources span spans start starts subset time timestamp title titles type
  types uri url urls version views
  """
)
# First words of keys for answers that are not gold, or repeat gold ones.
_OTHERS = _words(
  """
  baseline candidate fake false generated has incorrect invalid is llm model n
  negated normalised normalized num number plausible pred predicted prediction
  query question raw student system wrong
  """
)
_NO_TEXT = re.compile(r'[-+.\deE]*|\[\s*\]|\{\s*\}|(?i:true|false)')
_WORD = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+')

# (keys of a format, its keys that may stay unread): they repeat what is read,
# or are annotations.
_KNOWN = (
  # SQuAD 2.0, 2WikiMultiHopQA, MS MARCO, PopQA, MuSiQue.
  ({'context'}, {'plausible_answers'}),
  (
    {'supporting_facts', 'context'},
    {'evidences', 'evidences_id', 'answer_id', 'answer_aliases'},
  ),
  ({'query_id', 'passages'}, {'wellFormedAnswers'}),
  ({'possible_answers'}, {'s_aliases', 'o_aliases', 'obj'}),
  # ALCE: answers to parts of the question, and queries for passages.
  ({'docs'}, {'answers', 'annotations', 'wikipages', 'qa_pairs', 'claims'}),
  ({'ground_truth'}, {'answer'}),
  ({'ground_truths'}, {'answer'}),
  ({'positive', 'answer'}, {'fakeanswer'}),
)


def check(fields: RowFields) -> None:
  """Checks that no unread key looks like passages or answers.

  Raises:
    BadRecord: some do; the message names them.
  """
  unused = fields.values.keys() - fields.used
  for has, known in _KNOWN:
    if has <= fields.values.keys():
      unused -= known
  keys = [
    key
    for key in fields.values
    if key in unused
    and _looks_like(
      key, isinstance(fields.values[key], list | table_cells.TextCell)
    )
    and _has_text(fields.values[key])
  ]
  if not keys:
    return
  names = ', '.join(printable(key) for key in keys[:5])
  if len(keys) > 5:
    names += f' and {len(keys) - 5} more'
  read = ', '.join(printable(key) for key in fields.values if key not in keys)
  raise BadRecord(
    Kind.UNREAD_KEY,
    f'{names}: found keys that look like passages or answers and are not read '
    f'together with {read}, expected a format that docs/data.md lists, or '
    'question, answers and passages: rename or remove them',
  )


@functools.lru_cache(maxsize=4096)
def _looks_like(key: str, many: bool) -> bool:
  words = [word.lower() for word in _WORD.findall(key)]
  # Digits at the end are numbers, as in answer_0.
  while words and words[-1].isdigit():
    words.pop()
  if not words:
    return False
  about = set(words)
  if words[-1] == 'ids':  # Passages named by their ids.
    return many and bool(about & _PASSAGES)
  if words[-1] in _PROPERTIES or words[0] in ('metadata', 'meta', 'has', 'is'):
    return False
  if about & _PASSAGES:
    return words[0] not in ('num', 'n', 'question', 'query')
  return bool(about & _ANSWERS) and words[0] not in _OTHERS


def _has_text(value: Any) -> bool:
  """Whether a value has text, at any depth."""
  if isinstance(value, str):
    text = value.strip()
    if isinstance(value, table_cells.TextCell):  # Numbers of a table are text.
      return not _NO_TEXT.fullmatch(text)
    return bool(text)
  if isinstance(value, dict):
    return any(map(_has_text, value.values()))
  if isinstance(value, list):
    return any(map(_has_text, value))
  # Numbers alone are no passages or answers.
  return False
