"""Where in a vocabulary the virtual tokens of an export go."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vtokens.exports.json_file import read_json
from vtokens.host import errors
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Tokens

# Tokens that a vocabulary keeps for later use.
_RESERVED = re.compile(
  r'<\|?(reserved|unused|dummy|placeholder|extra_)|\[unused', re.IGNORECASE
)


def read_vocabulary(directory: str) -> dict[str, int]:
  """Every token of a directory's tokenizer.json, with its id.

  Raises:
    errors.UserError: there is none.
  """
  file = pathlib.Path(directory) / 'tokenizer.json'
  if not file.exists():
    raise errors.UserError(
      f'{file}: not found, and it is there that an export adds the virtual '
      'tokens. AutoTokenizer.from_pretrained(...).save_pretrained(...) writes '
      'it'
    )
  values: Mapping[str, Any] = read_json(file)
  found = values['model']['vocab']
  if isinstance(found, list):  # Unigram: pairs of token and score.
    found = {token: i for i, (token, _) in enumerate(found)}
  added = {t['content']: t['id'] for t in values.get('added_tokens', [])}
  return {**found, **added}


def first_id(opened: OpenBase) -> int:
  """Id of virtual token 0 outside of this program.

  Inside it is the number of rows of the base's embedding matrix. A tokenizer
  may have tokens without a row, whose ids these would be to other programs.
  """
  return max(opened.config.vocab_size, opened.tokenizer.next_id)


def after_all(vocabulary: Mapping[str, int], tokens: Tokens) -> Tokens:
  """The tokens with the ids after the last one.

  Raises:
    errors.UserError: a token has one of their names, or there are ids without
      a token, which tokenizers would give to new ones.
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
  """The tokens with ids that the base's embedding matrix has room for.

  Rows that pad the matrix, or else those of reserved tokens, whose names they
  then have.

  Raises:
    errors.UserError: there are too few.
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
