"""Streams corpora: files of passages.

A passage is a row (see `vtokens.data.files` for the shapes of files) with the
keys of one of the formats below. `id` may also be called `_id` or `docid`; it
is a string or a whole number.

    {id, text, title?}     jsonl, Parquet, CSV, or psgs_w100.tsv, whose header
                           is id, text, title and whose quoting is that of CSV
                           (facebookresearch/DPR dpr/data/retriever_data.py)
    id, tab, text          MS MARCO's collection.tsv, without a header
    {id, contents}         FlashRAG, Pyserini: the first line is the title, if
                           there are more lines (RUC-NLPIR/FlashRAG README)
    {wikipedia_id, wikipedia_title, text: [paragraph]}
                           KILT's knowledge source, a page a row
                           (facebookresearch/KILT README): a passage for each
                           paragraph but the first, which is the title, and the
                           headings ('Section::::...'); its id is
                           'wikipedia_id:index of the paragraph'

A document with only a title has the title as its text. One with neither is left
out and counted.
"""

import array
import bisect
import hashlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tqdm

from vtokens.data import checks, files
from vtokens.data.checks import BadRecord, BadRecords, Kind
from vtokens.data.fields import RowFields
from vtokens.data.records import Passage, RecordError
from vtokens.host import paths as paths_lib

_SHAPES = (
  files.Shape.LINES,
  files.Shape.ARRAY,
  files.Shape.TABLE,
  files.Shape.COLLECTION,
  files.Shape.PARQUET,
)
_KILT_HEADING = 'Section::::'
_BLANK = 'documents without title and text left out of the corpus'


def read_corpus(paths: Sequence[str], report: BadRecords) -> Iterator[Passage]:
  """Yields the passages of a corpus, in the order of the files.

  Memory: one row, and about 20 bytes for each passage to find duplicate ids.
  These are 64-bit hashes: among 21 million ids, the chance that two different
  ones count as equal is 1e-5.

  Args:
    paths: files, plain, .gz, .xz or .bz2; local, any that etils.epath opens,
      package:NAME/FILE or pypi:NAME==VERSION/FILE#sha256=HEX.
    report: policy for bad passages, and an account of them.

  Raises:
    RecordError: a file cannot be read to its end or has no passage, or a
      passage is bad and the policy is 'error'.
  """
  seen = SeenIds()
  for path in _resolve(paths):
    num_good = report.num_good
    for row in _rows(path):
      notes: list[str] = []
      try:
        passages = list(_passages(row, report.max_text_bytes, notes))
        for passage in passages:
          if seen.add(passage.id):
            raise BadRecord(
              Kind.DUPLICATE_ID,
              f'id: found {checks.printable(passage.id)}, which an earlier '
              'passage has too, expected an id of its own',
            )
      except BadRecord as e:
        report.add(row.place, e)
        continue
      report.num_good += len(passages)
      report.notes.update(notes)
      yield from passages
    if report.num_good == num_good:
      raise RecordError(f'{path}: found no passage, expected at least one')


def lookup(
  paths: Sequence[str], ids: Collection[str], report: BadRecords
) -> dict[str, Passage]:
  """Finds the passages with given ids in one pass over a corpus.

  Memory: these ids and passages. The texts of other passages are not checked.

  Args:
    paths: files, as for `read_corpus`.
    ids: ids of the wanted passages.
    report: policy for bad rows, and for a wanted id that occurs twice.

  Returns:
    Passages by id. Ids that the corpus lacks are absent. A blank document has
    the text ''.

  Raises:
    RecordError: as for `read_corpus`.
  """
  found: dict[str, Passage] = {}
  wanted = ids if isinstance(ids, set | frozenset | dict) else frozenset(ids)
  # A short pass needs no bar.
  with tqdm.tqdm(
    desc='corpus', unit=' passages', unit_scale=True, delay=2, leave=False
  ) as bar:
    for path in _resolve(paths):
      for row in _rows(path):
        bar.update()
        notes: list[str] = []
        try:
          for passage in _passages(
            row, report.max_text_bytes, notes, wanted, blank=True
          ):
            if passage.id in found:
              raise BadRecord(
                Kind.DUPLICATE_ID,
                f'id: found {checks.printable(passage.id)}, which an earlier '
                'passage has too, expected an id of its own',
              )
            found[passage.id] = passage
        except BadRecord as e:
          report.add(row.place, e)
          continue
        report.notes.update(notes)
  return found


def split_contents(contents: str) -> tuple[str, str]:
  """Splits `contents` of FlashRAG and Pyserini into title and text."""
  title, newline, text = contents.partition('\n')
  return (title, text) if newline else ('', contents)


def _resolve(paths: Sequence[str]) -> list[str]:
  if isinstance(paths, str):
    raise TypeError(f'paths is the string {paths!r}, expected a list of it')
  return [paths_lib.resolve(path) for path in paths]


def _rows(path: str) -> Iterator[files.Row]:
  shape = files.shape(path)
  if shape not in _SHAPES:
    raise RecordError(
      f'{path}: found {shape.value}, expected a corpus: rows with id and text, '
      'as JSON lines, a JSON array, a table or Parquet'
    )
  return files.rows(path, shape)


def _passages(
  row: files.Row,
  max_text_bytes: int,
  notes: list[str],
  wanted: Collection[str] | None = None,
  *,
  blank: bool = False,
) -> Iterator[Passage]:
  """Yields the passages of a row.

  Args:
    row: row of the file.
    max_text_bytes: length limit of a text.
    notes: list for notes on what was left out or replaced.
    wanted: ids of the wanted passages; None for all.
    blank: whether to yield a document without title and text.

  Raises:
    BadRecord: the row breaks a rule.
  """
  if isinstance(row.value, BadRecord):
    raise row.value
  fields = RowFields(row.value, '', max_text_bytes, notes)
  if 'wikipedia_id' in fields:
    yield from _page(fields, wanted)
    return
  passage_id = fields.id(fields.only('id', '_id', 'docid'))
  if wanted is not None and passage_id not in wanted:
    return
  if 'contents' in fields:
    title, text = split_contents(fields.text('contents', ''))
  else:
    # `text` is required: without it, the text may be under another key.
    title, text = fields.text('title', ''), fields.body('text')
  if not text.strip():  # Search and show the title instead.
    title, text = '', title
  if text.strip() or blank:
    yield Passage(id=passage_id, title=title, text=text)
  else:
    notes.append(_BLANK)


def _page(
  fields: RowFields, wanted: Collection[str] | None
) -> Iterator[Passage]:
  page_id = fields.id('wikipedia_id')
  title = fields.text('wikipedia_title', '')
  for i, text in enumerate(fields.array('text', 'paragraphs')):
    passage_id = kilt_id(page_id, i)
    if (
      i == 0
      or text is None
      or (wanted is not None and passage_id not in wanted)
    ):
      continue
    text = fields.check_text(text, f'text[{i}]', blank=True)
    if text.strip() and not text.startswith(_KILT_HEADING):
      yield Passage(id=passage_id, title=title, text=text.strip())


def kilt_id(wikipedia_id: str, paragraph: int) -> str:
  """Id of a paragraph of a page in KILT's knowledge source."""
  return f'{wikipedia_id}:{paragraph}'


class SeenIds:
  """A set of strings, stored as 64-bit hashes.

  An old entry takes 8 bytes, a recent one about 80. There are at most an eighth
  as many recent entries as old ones, or `max_recent`.
  """

  def __init__(self, max_recent: int = 1 << 18) -> None:
    self._max_recent = max_recent
    self._old = array.array('Q')  # sorted
    self._recent: set[int] = set()

  def add(self, text: str) -> bool:
    """Adds a string; returns whether it was there already."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    key = int.from_bytes(digest, 'little')
    i = bisect.bisect_left(self._old, key)
    if key in self._recent or (i < len(self._old) and self._old[i] == key):
      return True
    self._recent.add(key)
    # Sorting ever more rarely as the set grows keeps the work near linear.
    if len(self._recent) >= max(self._max_recent, len(self._old) // 8):
      recent = np.fromiter(self._recent, np.uint64, len(self._recent))
      merged = np.concatenate([np.frombuffer(self._old, np.uint64), recent])
      self._old = array.array('Q', np.sort(merged).tobytes())
      self._recent.clear()
    return False
