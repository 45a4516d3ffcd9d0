r"""Reads question-answering data of any format as records.

    JSONL, a JSON array, Parquet, TSV, tfds ──row_formats.convert──┐
    JSON documents ──documents.rows────────────────────────────────┤
    runs, qrels, caches ──retrieved────────────────────────────────┤
    corpora ──corpus.lookup──────────────────────► reader ──► Record

The project's own format is a JSON object in each line, with the keys

    id        optional; default '<file stem>:<line number>'
    dataset   optional; default: see `vtokens.data.dataset_names`
    question  a string; `query` means the same
    answers   a string or an array of strings; `target` means the same; if a
              row has both, the target comes first
    passages  an array, best first, of strings or of objects
              {id?, title?, text, score?, gold?}, or an object of such arrays
              by name of the retriever; `ret_passages` means the same
    retrieved [[id, score], ...], best first, by BM25, of passages of a corpus
    answerable  false for a question without an answer; `answers` may then be
              absent or empty, and does not count

Other keys are ignored, unless they look like passages or answers: `unread`
refuses a row with such keys. The file stem is the name without '.gz', '.xz' or
'.bz2', and then without its last suffix.

In all formats, a key whose value is null and a table's empty cell are absent.
`vtokens.data.cleaning` replaces control characters; other characters stay.
Blank passages are left out. All this is counted. Only the end of a file may
have blank lines.
"""

from vtokens.data.checks import BadRecords
from vtokens.data.formats import row_formats
from vtokens.data.formats.reader import read_all, read_records

# Token caches of another version are made again.
VERSION = 2

__all__ = ['BadRecords', 'read_all', 'read_records', 'version']


def version() -> int | list[int | str]:
  """`VERSION`, and the names of formats from outside if there are any."""
  others = row_formats.registered()
  return [VERSION, *others] if others else VERSION
