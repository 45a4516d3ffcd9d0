"""Text to ids and back; plain text can never forge a special token.

Retrieved passages and questions are untrusted: `encode` turns `</s>` or
`<|im_start|>` in them into ordinary tokens. Only chat templates, which belong
to the model, go through `encode_template`.
"""

import copy
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.host import errors, json_files
from vtokens.models.tokenizers import chat_template, turn_marks

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# Precedes a chat template and replaces the function of that name. The empty
# output keeps a line break at the template's beginning.
_FIXED_DATE = (
  "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | "
  "replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07') | "
  "replace('%Y', '2024') }}{% endmacro %}{{ '' }}"
)

# A continuation is encoded after the first of these texts that does not merge
# with it.
_PROBES = ('x', '0', '.', '\n', ')', 'Q')

# transformers logs it on import, before any verbosity can be set. A missing
# PyTorch is normal here. TRANSFORMERS_NO_ADVISORY_WARNINGS would silence other
# advice, too.
logging.getLogger('transformers').addFilter(
  lambda record: 'PyTorch was not found' not in record.getMessage()
)


class Tokenizer:
  """Encodes plain text (`encode`) and trusted text (`encode_template`).

  It can be shared between threads and pickled.

  Attributes:
    prefix_ids: ids that the tokenizer by itself puts before a text: bos for
      Llama, none for Qwen or SmolLM2. No method here adds them.
    eos_id: id that ends a text.
    turn_end_id: id that ends a turn of the assistant in the chat template; eos
      without a chat template.
    end_ids: all ids that end an answer: `eos_id`, `turn_end_id`, and the ids
      in generation_config.json.
    pad_id: id that pads batches; eos if the tokenizer has no padding token
      with a row.
    max_id: highest id of a token; a model's vocabulary may be larger.
    next_id: id after the last token, whether that has a row or not.
  """

  prefix_ids: tuple[int, ...]
  eos_id: int
  turn_end_id: int
  end_ids: frozenset[int]
  pad_id: int
  max_id: int
  next_id: int

  def __init__(
    self,
    tokenizer: 'PreTrainedTokenizerFast',
    more_end_ids: Sequence[int] = (),
    num_rows: int | None = None,
  ):
    """Wraps copies of a fast tokenizer.

    Args:
      tokenizer: a tokenizer of transformers.
      more_end_ids: further ids with which the model ends an answer.
      num_rows: rows of the model's embedding matrix; None for one row for each
        token. Tokens without a row, such as Gemma 3's `<image_soft_token>` in
        its text models, are ignored: no method returns or accepts their ids,
        because virtual tokens have these ids.

    Raises:
      errors.UserError: there is no eos token, the tokenizer makes a special
        token from plain text even when told not to, or a required token has no
        row.
    """
    self._tokenizer = tokenizer
    self._name = tokenizer.name_or_path or 'tokenizer'
    # A backend either recognises special tokens or not, and transformers sets
    # that on each call, so one thread could change it for another. Hence two
    # copies, set once.
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = False
    self._trusted = backend
    self._num_rows = num_rows
    if marks := self._unflagged_marks():
      self._trusted = turn_marks.flagged(backend, marks)
    self._plain = copy.deepcopy(self._trusted)
    self._plain.encode_special_tokens = True
    if tokenizer.eos_token_id is None:
      raise errors.UserError(f'{self._name}: the tokenizer has no eos token')
    self.eos_id = tokenizer.eos_token_id
    self.pad_id = (
      self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    )
    if not self._has_row(self.pad_id):
      self.pad_id = self.eos_id
    self.max_id = max(self.ids)
    self.next_id = max(self._trusted.get_vocab().values()) + 1
    # The mask marks tokens that do not come from the text.
    some = self._trusted.encode('x')
    marked = zip(some.ids, some.special_tokens_mask, strict=True)
    self.prefix_ids = tuple(
      i for i, _ in itertools.takewhile(lambda pair: pair[1], marked)
    )
    self._check_plain()
    self._check_rows()
    self.turn_end_id = self._find_turn_end()
    self._more_end_ids = tuple(more_end_ids)
    self.end_ids = frozenset(
      {self.eos_id, self.turn_end_id, *self._more_end_ids}
    )

  def _check_plain(self) -> None:
    """Raises if plain text makes special tokens other than unk."""
    unk = getattr(self._plain.model, 'unk_token', None)
    special = {
      i: token.content
      for i, token in self._plain.get_added_tokens_decoder().items()
      if token.special and token.content != unk
    }
    texts = [f'{text} x{text}x' for text in special.values()]
    for (i, text), ids in zip(
      special.items(), self.encode_batch(texts), strict=True
    ):
      if i in ids:
        raise errors.UserError(
          f'{self._name}: this tokenizer reads the special token {text!r} out '
          'of ordinary text, so passages could forge it; not supported'
        )

  def _has_row(self, i: int) -> bool:
    return self._num_rows is None or i < self._num_rows

  def _check_rows(self) -> None:
    """Raises if bos, eos or a token of plain text may have no row.

    Plain text makes no special token except unk.
    """
    if self._num_rows is None or self.next_id <= self._num_rows:
      return
    added = self._trusted.get_added_tokens_decoder()
    unk = getattr(self._plain.model, 'unk_token', None)
    readable = {
      i: token
      for token, i in self._trusted.get_vocab(with_added_tokens=False).items()
    }
    readable |= {
      i: token.content
      for i, token in added.items()
      if not token.special or token.content == unk
    }
    for what, found in (
      ('text can become', sorted(filter(self._lacks_row, readable))),
      ('a text begins with', list(filter(self._lacks_row, self.prefix_ids))),
      ('a text ends with', list(filter(self._lacks_row, [self.eos_id]))),
    ):
      if found:
        raise self._no_row(what, found)

  def _lacks_row(self, i: int) -> bool:
    return not self._has_row(i)

  def _no_row(self, what: str, ids: Sequence[int]) -> errors.UserError:
    token = self._trusted.id_to_token(ids[0])
    more = f' (and {len(ids) - 1} more)' if len(ids) > 1 else ''
    return errors.UserError(
      f'{self._name}: {what} the token {token!r} with the id {ids[0]}{more}, '
      f'but the embedding matrix has only {self._num_rows} rows: the tokenizer '
      'is of another model, or the model lacks rows for tokens that were added '
      '(resize_token_embeddings)'
    )

  def _unflagged_marks(self) -> frozenset[int]:
    """Turn marks of the chat template that are not flagged special."""
    candidates = [
      i
      for i, token in self._trusted.get_added_tokens_decoder().items()
      # Runs of spaces and line breaks belong to plain text.
      if not token.special and token.content.strip()
    ]
    if not candidates or not self.has_chat_template:
      return frozenset()
    return turn_marks.find(
      self._render,
      lambda text: self._trusted.encode(text, add_special_tokens=False).ids,
      candidates,
    )

  def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
    # A pickled backend loses its setting for special tokens.
    return type(self), (self._tokenizer, self._more_end_ids, self._num_rows)

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the tokenizer and chat template in Hugging Face format."""
    self._tokenizer.save_pretrained(directory)

  def encode(self, text: str) -> list[int]:
    """Ids of plain text: no bos, no eos, never a special token.

    Text that looks like a special token is split like any other text. The only
    exception is unk, for characters that a tokenizer without bytes lacks. Added
    tokens that are not special (`<think>` of Qwen3, runs of spaces of GPT-NeoX)
    stay whole.
    """
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, on all cores."""
    encodings = self._plain.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [encoding.ids for encoding in encodings]

  def encode_template(self, text: str) -> list[int]:
    """As `encode`, but recognises special tokens: for trusted text only.

    Raises:
      errors.UserError: the text has a token without a row in the model.
    """
    ids = self._trusted.encode(text, add_special_tokens=False).ids
    if found := list(filter(self._lacks_row, ids)):
      raise self._no_row('the chat template writes', found)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens, with unchanged spaces.

    Raises:
      ValueError: an id belongs to no token, e.g. to a virtual token.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if i < 0 or self._lacks_row(i) or self._trusted.id_to_token(i) is None:
        raise ValueError(
          f'id {i} belongs to no token (the highest is {self.max_id}); '
          'virtual tokens have no text'
        )
    return self._trusted.decode(ids, skip_special_tokens=True)

  @property
  def bos_id(self) -> int:
    """Id that can begin a text; eos if the tokenizer has no bos."""
    found = self._tokenizer.bos_token_id
    return self.eos_id if found is None or self._lacks_row(found) else found

  @property
  def has_chat_template(self) -> bool:
    """Whether there is a chat template, for `chat_wrap`."""
    return bool(self._tokenizer.chat_template)

  @property
  def ordinary_ids(self) -> list[int]:
    """As `ids`, without special tokens."""
    added = self._trusted.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    return [i for i in self.ids if i not in special]

  @property
  def ids(self) -> list[int]:
    """Ids of all tokens with a row, ascending."""
    return sorted(filter(self._has_row, self._trusted.get_vocab().values()))

  @property
  def special_texts(self) -> frozenset[str]:
    """Texts that programs read as special tokens."""
    added = self._trusted.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special)

  @functools.cached_property
  def chat_wrap(self) -> tuple[list[int], list[int]]:
    """Ids that the chat template puts before and after a single user message.

    `before + encode(message) + after` are the ids of the rendered conversation
    with the generation prompt. If the template writes bos, `before` contains
    it; do not add `prefix_ids`.

    The template gets the date 26 July 2024, the default of Llama 3.1, so that
    ids do not change from day to day. It is also asked for an answer without
    thinking, if it has that option.

    Raises:
      errors.UserError: there is no chat template, it fails, or it does not
        contain the user's message exactly once and unchanged.
    """
    if not self._tokenizer.chat_template:
      raise errors.UserError(
        f'{self._name}: the tokenizer has no chat template; use a plain prompt'
      )
    try:
      text = self._render(
        [{'role': 'user', 'content': turn_marks.PLACEHOLDER}], ask=True
      )
    # A template is a program by the model's author; it can raise anything.
    except Exception as e:
      raise errors.UserError(
        f'{self._name}: the chat template fails on a single user message: {e}'
      ) from e
    before, *rest = text.split(turn_marks.PLACEHOLDER)
    if len(rest) != 1:
      raise errors.UserError(
        f"{self._name}: the chat template shows the user's message "
        f'{len(rest)} times, expected once'
      )
    # SentencePiece adds a space when it encodes the message, so the template's
    # own space goes.
    if before.endswith(' ') and self._adds_space():
      before = before[:-1]
    return self.encode_template(before), _continued(
      self.encode_template, rest[0]
    )

  def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation that the model is to answer.

    The contents are plain text: what looks like a special token in them stays
    text. Date and thinking are as in `chat_wrap`.

    Args:
      messages: `role` and `content` of each, oldest first.

    Raises:
      errors.UserError: there is no chat template, or it does not take these
        messages, or does not show each once and in order.
    """
    if not self.has_chat_template:
      raise errors.UserError(
        f'{self._name}: the tokenizer has no chat template; use a plain prompt'
      )
    # Letters after the number, so that no placeholder begins another.
    marks = [f'{turn_marks.PLACEHOLDER}{i}END' for i in range(len(messages))]
    try:
      text = self._render(
        [
          {'role': message['role'], 'content': mark}
          for message, mark in zip(messages, marks, strict=True)
        ],
        ask=True,
      )
    # A template is a program by the model's author; it can raise anything.
    except Exception as e:
      raise errors.UserError(
        f'messages: the chat template of {self._name} does not take them: {e}'
      ) from e
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
      before, *rest = text.split(mark)
      if len(rest) != 1:
        raise errors.UserError(
          f'messages: the chat template of {self._name} shows the content of '
          f'a message of role {message["role"]!r} {len(rest)} times, expected '
          'once and in order'
        )
      if before.endswith(' ') and self._adds_space():
        before = before[:-1]
      ids += self._template_part(before, first=not ids)
      ids += self.encode(message['content'])
      [text] = rest
    return ids + self._template_part(text, first=not ids)

  def _template_part(self, text: str, *, first: bool) -> list[int]:
    """Ids of a part of a chat template."""
    if first:
      return self.encode_template(text)
    return _continued(self.encode_template, text) if text else []

  def _render(
    self, messages: list[dict[str, str]], ask: bool, think: bool = False
  ) -> str:
    """Renders a conversation; see `chat_wrap` for date and thinking."""
    return chat_template.render(
      _FIXED_DATE + self._tokenizer.get_chat_template(),
      {
        **self._tokenizer.special_tokens_map,
        'messages': messages,
        'tools': None,
        'documents': None,
        'add_generation_prompt': ask,
        'enable_thinking': think,
      },
    )

  def _find_turn_end(self) -> int:
    if not self._tokenizer.chat_template:
      return self.eos_id
    try:
      text = self._render(
        [
          {'role': 'user', 'content': 'x'},
          {'role': 'assistant', 'content': turn_marks.PLACEHOLDER},
        ],
        ask=False,
      )
    # `chat_wrap` reports the failure when the template is used.
    except Exception:
      return self.eos_id
    added = self._trusted.get_added_tokens_decoder()
    for i in self.encode_template(text.rpartition(turn_marks.PLACEHOLDER)[2]):
      if i in added and added[i].special and i not in self.prefix_ids:
        return i
    return self.eos_id

  def _adds_space(self) -> bool:
    tokens = self._trusted.encode('x', add_special_tokens=False).tokens
    return bool(tokens) and tokens[0].startswith(('▁', 'Ġ'))

  def encode_after(self, text: str) -> list[int]:
    """`encode` for text that continues other text.

    SentencePiece puts a space before each text. A continuation must not get it.
    """
    return _continued(self.encode, text)

  def encode_batch_after(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode_after` of each text, on all cores."""
    before = self.encode(_PROBES[0])
    whole = self.encode_batch([_PROBES[0] + text for text in texts])
    return [
      ids[len(before) :]
      if ids[: len(before)] == before
      else self.encode_after(text)
      for text, ids in zip(texts, whole, strict=True)
    ]

  @functools.cached_property
  def sha256(self) -> str:
    """Hex digest of everything that decides ids: equal digests, equal ids."""
    content = {
      'backend': json.loads(self._trusted.to_str()),
      'chat_template': self._tokenizer.chat_template,
      'special': [self.prefix_ids, self.eos_id, self.pad_id],
      'ends': sorted(self.end_ids),
    }
    return hashlib.sha256(
      json.dumps(content, sort_keys=True).encode()
    ).hexdigest()


def load_tokenizer(
  path: str | os.PathLike[str], num_rows: int | None = None
) -> Tokenizer:
  """Loads the tokenizer of a model.

  Args:
    path: a directory in Hugging Face format or a `.gguf` file; for a name on
      the hub see `frozen_base.resolve`.
    num_rows: see `Tokenizer`.

  Raises:
    errors.UserError: there is no tokenizer, it has no fast version, or it is of
      an unsupported kind.
  """
  path = os.fspath(path)
  if path.endswith('.gguf'):
    from vtokens.models.tokenizers import gguf_tokenizer

    return Tokenizer(gguf_tokenizer.read_tokenizer(path), num_rows=num_rows)
  from transformers import AutoTokenizer, PreTrainedTokenizerFast

  try:
    tokenizer = AutoTokenizer.from_pretrained(
      path,
      use_fast=True,
      trust_remote_code=False,
      local_files_only=os.path.isdir(path),
    )
  # OSError, ValueError, KeyError, ImportError, or a bare Exception of the
  # tokenizers library.
  except Exception as e:
    raise errors.UserError(
      f'{path}: no tokenizer can be loaded; expected a directory with '
      f'tokenizer.json, a .gguf file or a name on the Hugging Face hub '
      f'({str(e).partition(chr(10))[0]})'
    ) from e
  if not isinstance(tokenizer, PreTrainedTokenizerFast):
    raise errors.UserError(
      f'{path}: {type(tokenizer).__name__} has no fast version (tokenizer.json)'
    )
  return Tokenizer(tokenizer, _end_ids(pathlib.Path(path)), num_rows)


def _end_ids(directory: pathlib.Path) -> list[int]:
  """The eos ids in generation_config.json; none without the file."""
  path = directory / 'generation_config.json'
  if not path.is_file():
    return []
  found = json_files.read(path).get('eos_token_id')
  found = [] if found is None else found
  found = [found] if isinstance(found, int) else found
  if not isinstance(found, list) or not all(type(i) is int for i in found):
    raise errors.UserError(
      f'{path}: eos_token_id is {errors.shorten(repr(found))}, expected an id '
      'or a list of ids'
    )
  return found


def _continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
  """Ids of a text that continues another text."""
  for probe in _PROBES:
    before, whole = encode(probe), encode(probe + text)
    if whole[: len(before)] == before:
      return whole[len(before) :]
  return encode(text)
