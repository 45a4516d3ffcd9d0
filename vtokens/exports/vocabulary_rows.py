"""Ids for the virtual tokens in the vocabulary of an export."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.host import errors, json_files
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Tokens

# Names of tokens reserved for later use.
_RESERVED = re.compile(
  r'<\|?(reserved|unused|dummy|placeholder|extra_)|\[unused', re.IGNORECASE
)


def read_vocabulary(directory: str) -> dict[str, int]:
  """The id of every token in the tokenizer.json of a directory.

  Raises:
    errors.UserError: the file is missing or broken.
  """
  file = pathlib.Path(directory) / 'tokenizer.json'
  if not file.exists():
    raise errors.UserError(
      f'{file}: not found; an export adds the virtual tokens to it. '
      'AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it'
    )
  values: Mapping[str, Any] = json_files.read(file)
  found = values['model']['vocab']
  if isinstance(found, list):  # Unigram: pairs of token and score.
    found = {token: i for i, (token, _) in enumerate(found)}
  added = {t['content']: t['id'] for t in values.get('added_tokens', [])}
  return {**found, **added}


def first_id(opened: OpenBase) -> int:
  """Id of virtual token 0 in other programs.

  In this program it is the number of rows of the embedding matrix. To others
  that can be the id of a token: a tokenizer may have tokens without a row.
  """
  return max(opened.config.vocab_size, opened.tokenizer.next_id)


def after_all(vocabulary: Mapping[str, int], tokens: Tokens) -> Tokens:
  """The virtual tokens with the ids after the last token.

  Raises:
    errors.UserError: a token has one of their names, or there are ids without
      a token, which tokenizers would give to new tokens.
  """
  first = max(vocabulary.values()) + 1
  if taken := sorted(set(tokens.names) & set(vocabulary)):
    raise errors.UserError(
      f'config.names: the tokenizer has a token {taken[0]!r} already; choose '
      "names that are no tokens, e.g. '<|vtoken_{i}|>'"
    )
  missing = first - len(set(vocabulary.values()))
  if missing:
    raise errors.UserError(
      f'the tokenizer has {missing} ids below {first} that belong to no token; '
      'none can be added to it'
    )
  return _placed(tokens, range(first, first + len(tokens.names)), tokens.names)


def inside(
  vocabulary: Mapping[str, int], tokens: Tokens, opened: OpenBase
) -> Tokens:
  """The virtual tokens with ids inside the base's embedding matrix.

  They take rows that pad the matrix, or else the rows and names of reserved
  tokens.

  Raises:
    errors.UserError: there are too few such rows.
  """
  first, rows = max(vocabulary.values()) + 1, opened.config.vocab_size
  count = len(tokens.names)
  if rows - first >= count:
    return _placed(tokens, range(first, first + count), tokens.names)
  reserved = sorted(
    (i, name)
    for name, i in vocabulary.items()
    if i < rows and _RESERVED.match(name)
  )
  if len(reserved) < count:
    raise errors.UserError(
      f'{opened.settings.path}: this format needs {count} rows of the '
      f'embedding matrix that no text uses; {rows - first} pad it, '
      f'{len(reserved)} are those of reserved tokens; use --to hf, which adds '
      'rows'
    )
  ids, names = zip(*reserved[:count], strict=True)
  return _placed(tokens, ids, names)


def _placed(tokens: Tokens, ids: Sequence[int], names: Sequence[str]) -> Tokens:
  to = dict(zip(tokens.ids, ids, strict=True))
  return Tokens(
    ids=tuple(ids),
    names=tuple(names),
    probe=tuple(to.get(i, i) for i in tokens.probe),
  )
