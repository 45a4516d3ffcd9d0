"""Virtual tokens in a serving program. Needs no JAX.

table = plug.load('exported')
ids = plug.prompt_ids(tokenizer, passages, question, k=50, meta=table.meta)
plug.attach(model, table)           # a transformers model
out = model.generate(torch.tensor([ids]), max_new_tokens=16)
plug.detach(model)                  # the model is as before

Keys and values (virtual_tokens.kind='kv') need no attach; see `model_cache`:

out = plug.generate(model, ids, table, max_new_tokens=16)
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from vtokens.data.assemble import Assembler
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.serving import artifact
from vtokens.serving import prompt_ids as prompts
from vtokens.serving.artifact import Artifact, Meta

if TYPE_CHECKING:
  from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Name in transformers of the embedding with inputs of each layer.
_SECOND = 'embed_tokens_per_layer'
# The assembler of each tokenizer that was examined.
_PREPARED: 'weakref.WeakKeyDictionary[Any, tuple[Meta, Assembler]]' = (
  weakref.WeakKeyDictionary()
)


def load(directory: epath.PathLike) -> Artifact:
  """Reads the virtual tokens from an export of any format.

  Every format has `vtokens.json` and the virtual tokens beside its own files.
  The ids depend on the format.

  Args:
    directory: a directory that `vtokens.export` wrote.

  Returns:
    The virtual tokens, and what is needed to use them.

  Raises:
    errors.UserError: a file is missing or broken.
  """
  return artifact.read(directory)


def prompt_ids(
  tokenizer: 'PreTrainedTokenizerFast',
  passages: Sequence[str | Mapping[str, str]],
  question: str,
  k: int,
  meta: Meta,
) -> list[int]:
  """The ids of a prompt, as in training: bos, passages, tokens, question.

  Passages and question are text, whatever they contain: what looks like a
  special token or a virtual one (`[ref1]`) becomes ordinary tokens.

  Args:
    tokenizer: of the base, or of an export whose vocabulary has the virtual
      tokens. The first call checks that it gives the base's ids.
    passages: texts, or dicts with `text` and optionally `title`, best first.
      If they are too long together, the last ones are cut or left out.
    question: the question.
    k: number of virtual tokens; 0 gives the prompt without them.
    meta: of the table.

  Returns:
    Ids, of which virtual tokens are the first k of `meta.tokens.ids`.

  Raises:
    errors.UserError: k is not between 0 and the number of trained tokens, a
      passage or the question is not a text, the question is too long, or the
      tokenizer is not the base's.
  """
  assembler = _prepared(tokenizer, meta)
  virtual = meta.tokens.ids[: _checked(k, meta)]
  return prompts.ids(assembler, passages, question, virtual)


def prompt_texts(
  tokenizer: 'PreTrainedTokenizerFast',
  passages: Sequence[str | Mapping[str, str]],
  question: str,
  meta: Meta,
) -> tuple[str, str]:
  """The text before and after the virtual tokens, for servers that take text.

  Prefer `prompt_ids`: a tokenizer may give other ids where two pieces of text
  meet, and no passage is cut.

  Args:
    tokenizer: of the base.
    passages: see `prompt_ids`.
    question: the question.
    meta: of a table whose tokens stand between passages and question.

  Returns:
    The text before the virtual tokens, and the text after them.

  Raises:
    errors.UserError: a passage or the question is not a text, or the tokenizer
      is not the base's.
  """
  return prompts.texts(_prepared(tokenizer, meta), passages, question)


def prompt_text(
  tokenizer: 'PreTrainedTokenizerFast',
  passages: Sequence[str | Mapping[str, str]],
  question: str,
  k: int,
  meta: Meta,
) -> str:
  """A prompt as text, with names like `[ref1]` for the virtual tokens.

  For servers that take only text and read special tokens anywhere in it. A name
  or a special token in passages or question is broken by a space. The text has
  no bos, which such servers add. For a table of chats it is the user's message.
  Prefer `prompt_ids`; see `prompt_texts`.

  Args:
    tokenizer: of the export that is served.
    passages: see `prompt_ids`.
    question: the question.
    k: number of virtual tokens.
    meta: of the table.

  Returns:
    The prompt.

  Raises:
    errors.UserError: see `prompt_ids`; or the tokens were not trained between
      passages and question.
  """
  _check_types(tokenizer, meta)
  artifact.check_kind(
    meta, 'table', 'names in a text stand for rows of a table'
  )
  k = _checked(k, meta)
  if meta.prompt.position != 'middle':
    raise errors.UserError(
      f'these virtual tokens stand {meta.prompt.position} in a prompt, where '
      'tokenizers read the text next to their names otherwise than in '
      'training; use prompt_ids'
    )
  assembler = _prepared(tokenizer, meta)
  special = assembler.encoder.tokenizer.special_texts
  read = special.union(meta.tokens.names)
  before, after = (
    prompts.broken(text, read)
    for text in prompt_texts(tokenizer, passages, question, meta)
  )
  return before + ''.join(meta.tokens.names[:k]) + after


def _checked(k: int, meta: Meta) -> int:
  return prompts.check_number(
    k, 0, meta.num_trained, 'k', ', the virtual tokens that were trained'
  )


def _check_types(tokenizer: Any, meta: Any) -> None:
  if not isinstance(meta, Meta):
    raise errors.UserError(
      f'meta: expected that of a table, as plug.load(...).meta, got '
      f'{type(meta).__name__}'
    )
  if not hasattr(tokenizer, 'backend_tokenizer'):
    raise errors.UserError(
      'tokenizer: expected a fast tokenizer of transformers, got '
      f'{type(tokenizer).__name__}'
    )


def _prepared(tokenizer: 'PreTrainedTokenizerFast', meta: Meta) -> Assembler:
  _check_types(tokenizer, meta)
  known = _PREPARED.get(tokenizer)
  if known is None or known[0] is not meta:
    rows = _num_rows(tokenizer, meta)
    assembler = prompts.assembler(
      Tokenizer(tokenizer, num_rows=rows), meta.prompt
    )
    prompts.check(assembler, meta)
    _PREPARED[tokenizer] = known = meta, assembler
  return known[1]


def _num_rows(tokenizer: 'PreTrainedTokenizerFast', meta: Meta) -> int:
  """The number of rows of the embedding matrix that belongs to a tokenizer.

  If the tokenizer has the virtual tokens, its model has rows for them.
  """
  vocabulary = tokenizer.get_vocab()
  found = map(vocabulary.get, meta.tokens.names)
  rows = meta.base.vocab_size
  if tuple(found) == tuple(meta.tokens.ids):
    return max(rows, max(meta.tokens.ids) + 1)
  return rows


def attach(model: 'PreTrainedModel', table: Artifact) -> None:
  """Lets a transformers model read the ids of the table's virtual tokens.

  Weights keep their values and names: the model is saved as the base, without
  the table. It has no logits for virtual tokens, so it cannot answer with one.

  Args:
    model: the base, in PyTorch.
    table: with ids after those of the model and its tokenizer, as
      `--to vtokens` writes them.

  Raises:
    errors.UserError: the table belongs to another model, or a table is already
      attached.
  """
  artifact.check_kind(table.meta, 'table', 'plug.attach takes a table')
  module: Any = model.get_input_embeddings()
  if _is_attached(module):
    raise errors.UserError('a table is attached to this model; detach it first')
  rows, width = module.weight.shape
  if (rows, width) != (table.meta.base.vocab_size, table.meta.shape[1]):
    raise errors.UserError(
      f'the model embeds {rows} tokens in {width} dimensions, but the virtual '
      f'tokens were trained on {table.meta.base.id}, which has '
      f'{table.meta.base.vocab_size} and {table.meta.shape[1]}'
    )
  prompts.check_ids(table.meta)
  _attach(module, table)
  second = _second_embedding(model)
  if second is not None:
    _attach_second(second, table.meta.tokens.ids[0])


def detach(model: 'PreTrainedModel') -> None:
  """Undoes `attach`.

  Args:
    model: to which a table is attached.

  Raises:
    errors.UserError: no table is attached.
  """
  module: Any = model.get_input_embeddings()
  if not _is_attached(module):
    raise errors.UserError('no table is attached to this model')
  del module.virtual_tokens
  module.__class__ = module.__class__.before
  second = _second_embedding(model)
  if second is not None:
    second.__class__ = second.__class__.before


def _is_attached(module: Any) -> bool:
  return hasattr(module, 'virtual_tokens')


def _second_embedding(model: 'PreTrainedModel') -> Any:
  """The embedding with inputs of each layer (Gemma 3n and 4), if any."""
  named = model.named_modules()
  ends = ('.' + _SECOND, _SECOND)
  return next((m for name, m in named if name.endswith(ends)), None)


def _attach_second(module: Any, first: int) -> None:
  """Gives virtual tokens the row of the padding, as in training.

  Servers give this row to any embedding that comes without an id.

  Args:
    module: see `_second_embedding`.
    first: id of the first virtual token.
  """
  import torch

  kind: Any = type(module)

  class WithVirtualTokens(kind):
    """The base's embedding, and row 0 for the ids after it."""

    before = kind

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
      found: torch.Tensor = super().__call__(
        input.masked_fill(input >= first, 0)
      )
      return found

  WithVirtualTokens.__name__ = WithVirtualTokens.__qualname__ = kind.__name__
  module.__class__ = WithVirtualTokens


def _attach(module: Any, table: Artifact) -> None:
  """Makes an embedding look up virtual tokens, too.

  The module stays the same object with the same weight, so names of weights and
  ties to the head stay. A subclass, not a hook: a `forward` that accelerate has
  replaced is still called.
  """
  import torch

  kind: Any = type(module)
  size, first = len(module.weight), table.meta.tokens.ids[0]

  class WithVirtualTokens(kind):
    """The base's embedding, and the table's rows for the ids after it."""

    before = kind

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
      if len(self.weight) != size:
        raise errors.UserError(
          f'the embedding had {size} rows when virtual tokens were attached, '
          f'and has {len(self.weight)} now, so that their ids are those of '
          'other tokens; detach them before resize_token_embeddings'
        )
      virtual = input >= first
      ordinary = super().__call__(input.masked_fill(virtual, 0))
      at = (input - first).clamp(min=0).to(self.virtual_tokens.device)
      rows = self.virtual_tokens[at].to(ordinary)
      return torch.where(virtual[..., None].to(ordinary.device), rows, ordinary)

  # Gemma's embedding multiplies by sqrt(D) what it has looked up.
  scale = getattr(module, 'embed_scale', None)
  rows = torch.from_numpy(table.table.copy()).to(module.weight.dtype)
  # accelerate keeps weights that it brings when they are needed without values.
  if not module.weight.is_meta:
    rows = rows.to(module.weight.device)
  # It moves with the model, and is not saved with it.
  module.register_buffer(
    'virtual_tokens',
    rows if scale is None else rows * torch.as_tensor(scale).to(rows),
    persistent=False,
  )
  WithVirtualTokens.__name__ = WithVirtualTokens.__qualname__ = kind.__name__
  module.__class__ = WithVirtualTokens
