r"""Reads question-answering data, whatever its format, as records.

    JSONL, a JSON array, Parquet, TSV, tfds ──rows.expand, rows.convert──┐
    JSON documents ──documents.rows──────────────────────────────────────┤
    runs, qrels, caches ──retrieved──────────────────────────────────────┤
    corpora ──corpus.lookup────────────────────────────► resolve ──► Record

Our own format: a JSON object a line, with the keys

    id        optional; default '<file stem>:<line number>'
    dataset   optional; default as `vtokens.data.dataset_names` says
    question  a string; `query` means the same
    answers   a string or an array of strings; `target` means the same, and
              where there are both, that comes first
    passages  an array, best first, of strings or of objects
              {id?, title?, text, score?, gold?}, or an object of such arrays
              by name of the retriever; `ret_passages` means the same
    retrieved [[id, score], ...], best first, by BM25, of passages of a corpus

and any others, which are ignored unless they look like passages or answers:
`unread` refuses a row with such keys. The file stem is the name without '.gz',
'.xz' or '.bz2' and then without its last suffix.

In all formats, a key whose value is null, or a table's empty cell, is absent;
texts are kept as they are but for control characters, see
`vtokens.data.cleaning`; a blank passage is left out. All this is counted.
Blank lines are allowed at the end of a file only.
"""

from vtokens.data.checks import BadRecords
from vtokens.data.formats.reader import read_all, read_records

# Of what is made of files; a token cache of another one is made again.
VERSION = 2

__all__ = ['VERSION', 'BadRecords', 'read_all', 'read_records']
