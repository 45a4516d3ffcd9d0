"""The tokenizer that a GGUF file describes, built without PyTorch.

A GGUF file holds no `tokenizer.json`. It names the kind of tokenizer and the
pre-tokenizer (`gguf_patterns`), and lists tokens, merges or scores. llama.cpp
defines the names, so this tokenizer makes the same ids as llama.cpp.
"""

import mmap
import os
import struct
from typing import Any

import transformers
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from vtokens.host import errors
from vtokens.models.files import gguf_header
from vtokens.models.tokenizers.gguf_patterns import BY_NAME

# llama.h: llama_token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# GGUF value types; types of fixed size have a struct code.
_STRING, _ARRAY = 8, 9
_NAMES = {
  str: 'text',
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  list: 'a list',
}
_SCALARS = dict(zip((*range(8), 10, 11, 12), 'BbHhIif?Qqd', strict=True))


def read_tokenizer(
  path: str | os.PathLike[str],
) -> transformers.PreTrainedTokenizerFast:
  """Builds the tokenizer of a GGUF file.

  Control tokens become special tokens, user-defined ones plain added tokens.

  Args:
    path: a GGUF file; of a model in several files, the first.

  Raises:
    errors.UserError: the file is missing or damaged, lacks a field, or names a
      tokenizer or pre-tokenizer that is not supported.
  """
  metadata = _Metadata(os.fspath(path))
  tokens = metadata.values_of('tokenizer.ggml.tokens', str)
  types = metadata.values_of('tokenizer.ggml.token_type', int)
  if not len(set(tokens)) == len(tokens) == len(types):
    raise metadata.error(
      f'{len(tokens)} tokens, {len(set(tokens))} of them distinct, and '
      f'{len(types)} token types; expected three equal numbers'
    )
  match metadata.get('tokenizer.ggml.model', ..., str):
    case 'gpt2':
      special = _special_tokens(metadata, tokens, {})
      backend, add_bos = _byte_level(metadata, tokens)
    case 'llama':
      special = _special_tokens(
        metadata, tokens, {'unknown': 0, 'bos': 1, 'eos': 2}
      )
      backend = _sentencepiece(metadata, tokens, types, special['unk_token'])
      add_bos = True
    case 'gemma4':
      special = _special_tokens(metadata, tokens, {'unknown': 3})
      backend = _merged_sentencepiece(metadata, tokens, special['unk_token'])
      add_bos = True
    case other:
      raise metadata.error(
        f'tokenizer.ggml.model is {other!r}, not supported; supported: '
        "'gpt2' (byte-level BPE), 'llama' (SentencePiece BPE), 'gemma4' (BPE "
        'with byte fallback)'
      )
  backend.add_tokens(
    [
      AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
      for token, kind in zip(tokens, types, strict=True)
      if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
  )
  bos = special.get('bos_token')
  if bos and metadata.get('tokenizer.ggml.add_bos_token', add_bos, bool):
    backend.post_processor = processors.TemplateProcessing(
      single=[bos, '$A'], special_tokens=[(bos, tokens.index(bos))]
    )
  else:
    # Without one, transformers would make its own.
    backend.post_processor = processors.TemplateProcessing(single='$A')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    name_or_path=metadata.path,
    chat_template=metadata.get('tokenizer.chat_template', None, str),
    clean_up_tokenization_spaces=False,
    **special,
  )


def _special_tokens(
  metadata: '_Metadata', tokens: list[str], defaults: dict[str, int]
) -> dict[str, str]:
  """Tokens with a role, keyed by transformers' name of the role."""
  special = {}
  for name, role in (
    ('bos_token', 'bos'),
    ('eos_token', 'eos'),
    ('unk_token', 'unknown'),
    ('pad_token', 'padding'),
  ):
    key = f'tokenizer.ggml.{role}_token_id'
    index = metadata.get(key, defaults.get(role), int)
    if index is None:
      continue
    if not 0 <= index < len(tokens):
      raise metadata.error(f'{key} is {index}, of {len(tokens)} tokens')
    special[name] = tokens[index]
  return special


def _byte_level(
  metadata: '_Metadata', tokens: list[str]
) -> tuple[Tokenizer, bool]:
  """Byte-level BPE, and whether bos goes first if the file does not say."""
  name = metadata.get('tokenizer.ggml.pre', ..., str)
  if name not in BY_NAME:
    raise metadata.error(
      f'tokenizer.ggml.pre is {name!r}, not supported; supported: '
      + ', '.join(sorted(BY_NAME))
    )
  pre = BY_NAME[name]
  merges = metadata.values_of('tokenizer.ggml.merges', str)
  pairs = (merge.partition(' ') for merge in merges)
  backend = metadata.bpe(
    tokens,
    [(left, right) for left, _, right in pairs],
    ignore_merges=pre.ignore_merges,
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(split), 'isolated') for split in pre.splits]
    + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  backend.decoder = decoders.ByteLevel()
  return backend, pre.add_bos


def _sentencepiece(
  metadata: '_Metadata', tokens: list[str], types: list[int], unk: str
) -> Tokenizer:
  """SentencePiece BPE, built like the `tokenizer.json` of Llama 2."""
  scores = metadata.values_of('tokenizer.ggml.scores', float)
  if len(scores) != len(tokens):
    raise metadata.error(f'{len(tokens)} tokens but {len(scores)} scores')
  merges = _merges(tokens, types, scores)
  prefix = metadata.get('tokenizer.ggml.add_space_prefix', True, bool)
  return _with_fallback(metadata, tokens, merges, unk, prefix=prefix)


def _merged_sentencepiece(
  metadata: '_Metadata', tokens: list[str], unk: str
) -> Tokenizer:
  """BPE of characters, with listed merges and bytes for other characters."""
  listed = metadata.values_of('tokenizer.ggml.merges', str)
  parts = (merge.partition(' ') for merge in listed)
  merges = [(left, right) for left, _, right in parts]
  # llama.cpp never joins a line break with other characters.
  backend = _with_fallback(metadata, tokens, merges, unk, prefix=False)
  backend.pre_tokenizer = pre_tokenizers.Split(Regex(r'\n+'), 'isolated')
  return backend


def _with_fallback(
  metadata: '_Metadata',
  tokens: list[str],
  merges: list[tuple[str, str]],
  unk: str,
  *,
  prefix: bool,
) -> Tokenizer:
  """BPE of characters with bytes for those that are no tokens.

  Args:
    metadata: metadata of the file.
    tokens: the tokens.
    merges: pairs to be joined, best first.
    unk: the token for unknown characters.
    prefix: whether a space goes before a text.
  """
  backend = metadata.bpe(
    tokens, merges, unk_token=unk, fuse_unk=True, byte_fallback=True
  )
  spaces: list[normalizers.Normalizer] = [normalizers.Replace(' ', '▁')]
  steps: list[decoders.Decoder] = [
    decoders.Replace('▁', ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if prefix:
    spaces.insert(0, normalizers.Prepend('▁'))
    steps.append(decoders.Strip(' ', 1, 0))
  backend.normalizer = normalizers.Sequence(spaces)
  backend.decoder = decoders.Sequence(steps)
  return backend


def _merges(
  tokens: list[str], types: list[int], scores: list[float]
) -> list[tuple[str, str]]:
  """The merges that SentencePiece would make, in order.

  SentencePiece joins the neighbours whose union has the highest score. So each
  way to split a token in two is a merge, ranked by the token's score. Only
  normal tokens take part: plain text must not become control tokens.
  """
  rank = {
    token: -score
    for token, kind, score in zip(tokens, types, scores, strict=True)
    if kind == _NORMAL
  }
  found = [
    (rank[token], -cut, token)
    for token in rank
    for cut in range(1, len(token))
    if token[:cut] in rank and token[cut:] in rank
  ]
  # At equal scores SentencePiece takes the leftmost pair. In a run of one
  # character that is the pair with the longest left part.
  found.sort(key=lambda merge: merge[:2])
  return [(token[:-cut], token[-cut:]) for _, cut, token in found]


class _Metadata:
  """The key-value section of a GGUF file.

  `gguf.GGUFReader` makes numpy views of every element, which takes seconds for
  a vocabulary. Layout: github.com/ggml-org/ggml, docs/gguf.md.
  """

  def __init__(self, path: str):
    self.path = path
    gguf_header.check(path)
    try:
      with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
      ):
        self._values = _parse(data)
    except FileNotFoundError:
      raise errors.UserError(f'{path}: not found') from None
    # KeyError: a value type that does not exist.
    except (OSError, ValueError, KeyError, struct.error) as e:
      raise self.error(f'not a readable GGUF file ({e!r})') from None

  def error(self, message: str) -> errors.UserError:
    return errors.UserError(f'{self.path}: {message}')

  def get(self, key: str, default: Any, kind: type) -> Any:
    """A value of a type. With the default `...` a missing value raises."""
    value = self._values.get(key, default)
    if value is ...:
      raise self.error(f'metadata {key} is missing')
    if value is not default and type(value) is not kind:
      raise self._unexpected(key, value, _NAMES[kind])
    return value

  def values_of(self, key: str, kind: type) -> list[Any]:
    """A required list of values of a type."""
    values: list[Any] = self.get(key, ..., list)
    odd = next((value for value in values if type(value) is not kind), None)
    if odd is not None:
      raise self._unexpected(key, odd, f'{_NAMES[kind]} in its list')
    return values

  def _unexpected(self, key: str, value: Any, what: str) -> errors.UserError:
    found = errors.shorten(repr(value))
    return self.error(f'metadata {key} is {found}, expected {what}')

  def bpe(
    self, tokens: list[str], merges: list[tuple[str, str]], **options: Any
  ) -> Tokenizer:
    """A bare BPE tokenizer; errors name the file."""
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
      return Tokenizer(models.BPE(vocab, merges, **options))
    # The tokenizers library raises bare exceptions.
    except Exception as e:
      raise self.error(f'not a usable tokenizer ({e})') from e


def _parse(data: mmap.mmap) -> dict[str, Any]:
  magic, version, _, count = struct.unpack_from('<4sIQQ', data)
  if magic != b'GGUF' or version not in (2, 3):
    raise ValueError(f'magic {magic!r}, version {version}; expected 2 or 3')
  at = struct.calcsize('<4sIQQ')
  values = {}
  for _ in range(count):
    key, at = _value(data, at, _STRING)
    (kind,) = struct.unpack_from('<I', data, at)
    values[key], at = _value(data, at + 4, kind)
  return values


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
  """The value of type `kind` at byte `at`, and the byte after it."""
  if kind == _STRING:
    (size,) = struct.unpack_from('<Q', data, at)
    end = at + 8 + size
    if end > len(data):
      raise ValueError(f'text of {size} bytes at byte {at} passes the end')
    return data[at + 8 : end].decode(), end
  if kind == _ARRAY:
    inner, size = struct.unpack_from('<IQ', data, at)
    at += 12
    if inner in _SCALARS:
      code = f'<{size}{_SCALARS[inner]}'
      return list(struct.unpack_from(code, data, at)), at + struct.calcsize(
        code
      )
    values = []
    for _ in range(size):
      value, at = _value(data, at, inner)
      values.append(value)
    return values, at
  code = '<' + _SCALARS[kind]
  return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
