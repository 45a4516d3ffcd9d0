"""Reads files of passages retrieved for the questions of other files.

* FlashRAG's retrieval_cache.json: {question: [{id, contents, score}]}
  (RUC-NLPIR/FlashRAG flashrag/retriever/retriever.py), loaded into memory.
* TREC runs, lines of `qid Q0 docid rank score tag`: passages of the retriever
  `tag` in the order of their ranks.
* TREC qrels, lines of `qid 0 docid relevance`, or BEIR's with the header
  `query-id corpus-id score` and tabs: passages with a relevance above 0 are
  gold.

The ids of runs and qrels take about 25 bytes of memory for each passage.
"""

import dataclasses
import re
from typing import Any

from vtokens.data import checks, cleaning, files
from vtokens.data import fields as fields_lib
from vtokens.data.checks import BadRecord, BadRecords, Kind
from vtokens.data.fields import RowFields
from vtokens.data.formats import drafts, rag
from vtokens.data.records import GIVEN, GOLD, Passage, RecordError

_RUN_LINE = re.compile(r'(\S+)\s+\S+\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\Z')
_QRELS_LINE = re.compile(r'(\S+)\s+\S+\s+(\S+)\s+(-?\d+)\Z')
_BEIR_LINE = re.compile(r'([^\t]+)\t([^\t]+)\t(-?\d+(?:\.\d+)?)\Z')


@dataclasses.dataclass
class Retrieved:
  """The content of one file.

  Attributes:
    path: the file.
    by_question: results by question, for a cache.
    by_id: retriever -> id of a record -> lines of 'rank score docid'.
    num_used: number of records for which `passages` found any.
  """

  path: str
  by_question: dict[str, Any] = dataclasses.field(default_factory=dict)
  by_id: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
  num_used: int = 0

  def passages(
    self, record_id: str, draft: drafts.Draft, max_text_bytes: int
  ) -> tuple[drafts.Passages, tuple[str, ...]]:
    """Finds the passages for a record; none if it is not in the file.

    Args:
      record_id: id of the record.
      draft: the record.
      max_text_bytes: length limit of a text.

    Returns:
      The passages, and notes on what was left out or replaced.

    Raises:
      BadRecord: an entry breaks a rule.
    """
    found: drafts.Passages = {}
    notes: list[str] = []
    results = self.by_question.get(draft.question)
    if results is not None:
      fields = RowFields({'': results}, '', max_text_bytes)
      try:
        found[GIVEN] = rag.cached(fields.objects('', 'passages'))
        notes += fields.notes
      except BadRecord as e:
        raise BadRecord(e.kind, f'its entry in {self.path}: {e}') from None
    for retriever, by_id in self.by_id.items():
      if record_id in by_id:
        found[retriever] = self._refs(by_id[record_id])
    self.num_used += bool(found)
    return found, tuple(notes)

  def _refs(self, lines: str) -> list[Passage | drafts.Ref]:
    # Not `splitlines`: an id of BEIR can have other line breaks of Unicode.
    ranked = [
      line.split(' ', 2) for line in lines.removesuffix('\n').split('\n')
    ]
    ranked.sort(key=lambda fields: int(fields[0]))
    return [
      drafts.Ref((docid,), float(score) if score else None, self.path)
      for _, score, docid in ranked
    ]


def read_cache(path: str) -> Retrieved:
  """A retrieval cache of FlashRAG, or what looks like one.

  Raises:
    RecordError: the file cannot be read, or is no JSON object.
  """
  value = files.load_json(path)
  if not isinstance(value, dict):
    raise RecordError(f'{path}: expected an object: results by question')
  by_question = {cleaning.clean(key): found for key, found in value.items()}
  return Retrieved(path, by_question=by_question)


def read_trec(path: str, shape: files.Shape, report: BadRecords) -> Retrieved:
  """A TREC run or qrels.

  Raises:
    RecordError: the file cannot be read, or a line is bad and that is an
      error.
  """
  is_run = shape is files.Shape.TREC_RUN
  retrieved = Retrieved(path)
  parse = _run_line if is_run else _qrels_line
  for number, line in files.text_lines(path):
    if tuple(line.split('\t')) == files.BEIR_QRELS:
      parse = _beir_line
      continue
    try:
      retriever, qid, entry = parse(line)
      if retriever not in retrieved.by_id:
        fields = RowFields({}, '', report.max_text_bytes)
        retriever = fields.check_text(retriever, 'tag')
        report.notes.update(fields.notes)
    except BadRecord as e:
      report.add(f'{path}:{number}', e)
      continue
    by_id = retrieved.by_id.setdefault(retriever, {})
    if entry:
      # One string takes a seventh of the memory of tuples.
      by_id[qid] = by_id.get(qid, '') + entry
  return retrieved


def _run_line(line: str) -> tuple[str, str, str]:
  match = _RUN_LINE.match(line)
  if not match:
    raise BadRecord(
      Kind.MALFORMED,
      f'line: found {checks.printable(line)}, expected the six columns of a '
      'TREC run: qid Q0 docid rank score tag',
    )
  qid, docid, rank, score, tag = match.groups()
  if not re.fullmatch(r'-?\d{1,9}', rank):
    raise fields_lib.wrong_type('rank', rank, 'a whole number')
  fields_lib.as_score(score, 'score')
  return tag, qid, f'{rank} {score} {docid}\n'


def _qrels_line(line: str) -> tuple[str, str, str]:
  match = _QRELS_LINE.match(line)
  if not match:
    raise BadRecord(
      Kind.MALFORMED,
      f'line: found {checks.printable(line)}, expected the four columns of '
      'TREC qrels: qid 0 docid relevance',
    )
  qid, docid, relevance = match.groups()
  return GOLD, qid, f'0  {docid}\n' if int(relevance) > 0 else ''


def _beir_line(line: str) -> tuple[str, str, str]:
  match = _BEIR_LINE.match(line)
  if not match:
    raise BadRecord(
      Kind.MALFORMED,
      f'line: found {checks.printable(line)}, expected the three columns of '
      "BEIR's qrels, with tabs: query-id corpus-id score",
    )
  qid, docid, score = match.groups()
  return GOLD, qid, f'0  {docid}\n' if float(score) > 0 else ''
