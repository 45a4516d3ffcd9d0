"""Tables of exports, and the prompts that a server of them is sent."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal

from vtokens.host import errors
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.server.questions import Question, Table
from vtokens.serving import artifact, plug, vllm_client

# What serves the base: vLLM with the unchanged base, llama.cpp with a `gguf`
# export, or any server with OpenAI's addresses with an `hf` export.
Kind = Literal['vllm', 'llama.cpp', 'openai']
# The format of `vtokens export` that each one takes.
FORMATS: Mapping[Kind, str] = {
  'vllm': 'vtokens',
  'llama.cpp': 'gguf',
  'openai': 'hf',
}
# Of a table that does not tell how its run was scored.
_MAX_NEW_TOKENS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class ServedTable:
  """A table of an export.

  Attributes:
    table: what requests need to know of it.
    meta: content of its vtokens.json.
    tokenizer: of the base or the export.
    client: makes embeddings for vLLM; None for servers that take ids.
  """

  table: Table
  meta: artifact.Meta
  tokenizer: Any
  client: vllm_client.Client | None

  def prompt(self, question: Question) -> dict[str, Any]:
    """The fields of a request that hold the prompt, and its length.

    Raises:
      errors.UserError: the question is too long.
    """
    passages = _passages(question)
    ids = plug.prompt_ids(
      self.tokenizer, passages, question.text, question.k, self.meta
    )
    if self.client is None:
      return {'prompt': ids, 'length': len(ids)}
    body = self.client.completion_request(passages, question.text, question.k)
    return {'prompt_embeds': body['prompt_embeds'], 'length': len(ids)}

  def instructed(self, question: Question) -> str:
    """Passages and question in the run's instruction, for the base."""
    shown, _ = plug.prompt_texts(
      self.tokenizer, _passages(question), question.text, self.meta
    )
    template = self.meta.prompt.templates.instruction
    return shown + template.format(question=question.text)


def _passages(question: Question) -> list[dict[str, str]]:
  return [{'title': p.title, 'text': p.text} for p in question.passages]


class Reader:
  """Reads exports for one server.

  Args:
    kind: what the server is.
    url: of the server.
    base: directory or hub id of the base; only vLLM needs it.
  """

  def __init__(self, kind: Kind, url: str, base: str):
    self._kind = kind
    self._url = url
    self._base = base
    self._of_base: tuple[Any, Any] | None = None

  def read(self, name: str, directory: str) -> ServedTable:
    """Reads a table.

    Args:
      name: in requests.
      directory: that `vtokens export` wrote.

    Raises:
      errors.UserError: it is no such export, or belongs to another base.
    """
    wanted = FORMATS[self._kind]
    try:
      found = plug.load(directory)
    except errors.UserError as e:
      raise errors.UserError(
        f'table {name}: {e}; this backend takes what vtokens export --to '
        f'{wanted} --out DIR writes'
      ) from None
    artifact.check_kind(found.meta, 'table', 'other servers read embeddings')
    tokenizer, client = self._tokenizer(directory), None
    if self._kind == 'vllm':
      tokenizer, embedding = self._base_files()
      client = vllm_client.Client(
        self._url, 'unused', found, tokenizer, embedding
      )
    # Checks that the tokenizer is the base's.
    plug.prompt_ids(tokenizer, [], 'A question?', 1, found.meta)
    scores = found.meta.training.get('config', {}).get('eval', {})
    return ServedTable(
      Table(
        name=name,
        directory=directory,
        num_trained=found.meta.num_trained,
        max_new_tokens=int(scores.get('max_new_tokens', _MAX_NEW_TOKENS)),
        newline=bool(scores.get('stop_at_newline', True)),
        created=int(time.time()),
      ),
      found.meta,
      tokenizer,
      client,
    )

  def _tokenizer(self, directory: str) -> Any:
    if self._kind == 'llama.cpp':
      return gguf_tokenizer.read_tokenizer(
        str(pathlib.Path(directory) / 'model.gguf')
      )
    if self._kind == 'openai':
      return _pretrained(directory)
    return None

  def _base_files(self) -> tuple[Any, Any]:
    """Tokenizer and embedding of the base."""
    if not self._base:
      raise errors.UserError(
        '--base: the directory or hub id of the base is needed, since vLLM is '
        'sent embeddings'
      )
    if self._of_base is None:
      directory = self._base
      if not pathlib.Path(directory).is_dir():
        import huggingface_hub

        try:
          directory = huggingface_hub.snapshot_download(directory)
        # The hub raises its own errors and those of its HTTP client.
        except Exception as e:
          raise errors.UserError(
            f'--base={self._base}: no directory, and as a hub id it cannot be '
            f'had: {errors.shorten(e)}'
          ) from None
      embedding = vllm_client.read_embedding(directory)
      self._of_base = _pretrained(directory), embedding
    return self._of_base


def _pretrained(directory: str) -> Any:
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(directory)
  except (OSError, ValueError) as e:
    raise errors.UserError(
      f'{directory}: no tokenizer can be read: {errors.shorten(e)}'
    ) from None
