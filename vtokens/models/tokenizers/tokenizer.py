"""Text to ids and back, with plain text that can never forge a special token.

Retrieved passages and questions are untrusted: `encode` turns `</s>` or
`<|im_start|>` in them into ordinary tokens. Only chat templates, which are the
model's own, go through `encode_template`.
"""

import copy
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vtokens.host import errors, json_files
from vtokens.models.tokenizers import chat_template, turn_marks

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# Goes before a chat template, in place of a function of that name. The empty
# output keeps a line break that begins the template.
_FIXED_DATE = (
  "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | "
  "replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07') | "
  "replace('%Y', '2024') }}{% endmacro %}{{ '' }}"
)

# A text goes on after the first of these with which its start does not merge.
_PROBES = ('x', '0', '.', '\n', ')', 'Q')

# Logged on import, before any verbosity can be set. It is the normal state
# here; TRANSFORMERS_NO_ADVISORY_WARNINGS would silence real advice as well.
logging.getLogger('transformers').addFilter(
  lambda record: 'PyTorch was not found' not in record.getMessage()
)


class Tokenizer:
  """Ids for text: plain by `encode`, trusted by `encode_template`.

  Safe to share between threads, and can be pickled.

  Attributes:
    prefix_ids: what the tokenizer puts before a text by itself: bos for Llama,
      nothing for Qwen or SmolLM2. No method here adds it.
    eos_id: ends a text.
    turn_end_id: ends a turn of the assistant in the chat template; eos if
      there is none.
    end_ids: all tokens that end an answer: these, and what
      generation_config.json lists.
    pad_id: fills up batches; eos if the tokenizer has no padding token, or one
      without a row.
    max_id: the highest id of any token; a model's vocabulary may be larger.
    next_id: the id after the last token, be it one without a row.
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
      num_rows: rows of the model's embedding matrix; None for one for each
        token. Tokens beyond (`<image_soft_token>` of Gemma 3, which the models
        for text have no row for) are none here: no method gives or takes their
        ids, which are those of virtual tokens.

    Raises:
      errors.UserError: there is no eos token, the tokenizer reads a special
        token out of ordinary text even when told not to, or a token without
        a row is needed.
    """
    self._tokenizer = tokenizer
    self._name = tokenizer.name_or_path or 'tokenizer'
    # Whether special tokens are recognised is a property of the whole backend,
    # and transformers sets it anew on each call, so a thread could change it
    # under another. Hence two copies, set once.
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
    # Marked are the tokens that the text itself did not ask for.
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
    """Raises if special tokens get through; unk stands for unknown text."""
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
    """Raises if bos, eos or plain text may be a token without a row.

    A special token never comes out of plain text, but for unk.
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
      # Runs of spaces and line breaks are how a model reads text.
      if not token.special and token.content.strip()
    ]
    if not candidates or not self.has_chat_template:
      return frozenset()
    return turn_marks.find(
      self._render,
      lambda text: self._trusted.encode(text, add_special_tokens=False).ids,
      candidates,
    )

  def __reduce__(self):
    # Pickling a backend forgets whether it recognises special tokens.
    return type(self), (self._tokenizer, self._more_end_ids, self._num_rows)

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes it in Hugging Face format, chat template included."""
    self._tokenizer.save_pretrained(directory)

  def encode(self, text: str) -> list[int]:
    """Ids of plain text: no bos, no eos, never a special token.

    What looks like a special token is cut up like any other text. (Only unk can
    come out, for characters that a tokenizer without bytes lacks.) Added tokens
    that are not special (`<think>` of Qwen3, runs of spaces of GPT-NeoX) are
    part of how a model reads text and stay whole.
    """
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, on all cores."""
    encodings = self._plain.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [encoding.ids for encoding in encodings]

  def encode_template(self, text: str) -> list[int]:
    """As `encode`, but special tokens are recognised: for trusted text only.

    Raises:
      errors.UserError: the text has a token for which the model has no row.
    """
    ids = self._trusted.encode(text, add_special_tokens=False).ids
    if found := list(filter(self._lacks_row, ids)):
      raise self._no_row('the chat template writes', found)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens, spaces as they are.

    Raises:
      ValueError: an id belongs to no token, as those of virtual tokens.
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
    """The token that can begin a text; eos if the tokenizer has no bos."""
    found = self._tokenizer.bos_token_id
    return self.eos_id if found is None or self._lacks_row(found) else found

  @property
  def has_chat_template(self) -> bool:
    """Whether `chat_wrap` can be read."""
    return bool(self._tokenizer.chat_template)

  @property
  def ordinary_ids(self) -> list[int]:
    """Likewise, without special tokens."""
    added = self._trusted.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    return [i for i in self.ids if i not in special]

  @property
  def ids(self) -> list[int]:
    """Every id that belongs to a token with a row, ascending."""
    return sorted(filter(self._has_row, self._trusted.get_vocab().values()))

  @property
  def special_texts(self) -> frozenset[str]:
    """The texts in which programs read special tokens."""
    added = self._trusted.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special)

  @functools.cached_property
  def chat_wrap(self) -> tuple[list[int], list[int]]:
    """What the chat template puts before and after a single user message.

    Complete as they are: where the template writes bos, it is in the first
    part, and `prefix_ids` must not be added. `before + encode(message) + after`
    are the ids of the rendered conversation, generation prompt included. A
    template that asks for the date is told 26 July 2024, which Llama 3.1's
    falls back to: ids must not change from day to day. One that can do without
    thinking is told so, since an answer is to follow at once.

    Raises:
      errors.UserError: there is no chat template, or it fails, or it does not
        show the user's message exactly once as it is.
    """
    if not self._tokenizer.chat_template:
      raise errors.UserError(
        f'{self._name}: the tokenizer has no chat template; use a plain prompt'
      )
    try:
      text = self._render(
        [{'role': 'user', 'content': turn_marks.PLACEHOLDER}], ask=True
      )
    # A template is a program of the model's author; it can raise anything.
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
    # SentencePiece puts a space before each text it is given. Before the
    # message it is the template's own; after it there is none to add.
    if before.endswith(' ') and self._adds_space():
      before = before[:-1]
    return self.encode_template(before), _continued(
      self.encode_template, rest[0]
    )

  def _render(
    self, messages: list[dict[str, str]], ask: bool, think: bool = False
  ) -> str:
    """The text of a conversation; see `chat_wrap` for date and thinking."""
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
    # As in chat_wrap, which tells of it when the template is used.
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
    """`encode` of text that follows other text.

    SentencePiece puts a space before each text it is given, which one that
    goes on where another ended must not get a second time.
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
    """Hex digest of all that defines the ids: equal digests, equal ids."""
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
      the hub see `base.resolve`.
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
  # Depending on what is wrong: OSError, ValueError, KeyError, ImportError, or
  # the bare Exception of the tokenizers library.
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
  """What generation_config.json, where there is one, calls eos."""
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
  """Ids that text adds to those of a text before it."""
  for probe in _PROBES:
    before, whole = encode(probe), encode(probe + text)
    if whole[: len(before)] == before:
      return whole[len(before) :]
  return encode(text)
