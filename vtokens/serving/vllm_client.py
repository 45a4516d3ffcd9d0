"""A table of virtual tokens on a vLLM server that serves the unchanged base.

Start the server with `--enable-prompt-embeds`
(docs.vllm.ai/en/latest/features/prompt_embeds). It needs nothing of vtokens.
The client needs PyTorch, in whose format embeddings are sent, and no JAX.

  client = vllm_client.Client('http://host:8000', 'org/base', plug.load('out'),
                              tokenizer, vllm_client.read_embedding('base-dir'))
  answer = client.complete(passages, question, k=50, max_tokens=16)

`complete` sends the embeddings of the whole prompt, so the model reads exactly
the ids of training. `chat` sends passages and question as text with the tokens
between them. There the server's tokenizer reads the text, and may give other
ids where two pieces meet. Use `complete` unless requests have to be small.
tests/serving/vllm_test.py compares both with our own model on a vLLM server.
"""

import base64
import io
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from vtokens.host import errors, json_files, paths
from vtokens.models.tokenizers import chat_template
from vtokens.serving import artifact, http_post, plug, prompt_ids
from vtokens.serving.artifact import Artifact

if TYPE_CHECKING:
  import torch
  from transformers import PreTrainedTokenizerFast

# Names of the embedding matrix in files of plain and of multimodal models.
EMBEDDINGS = (
  'model.embed_tokens.weight',
  'model.language_model.embed_tokens.weight',
  'language_model.model.embed_tokens.weight',
  'model.text_model.embed_tokens.weight',
  'transformer.wte.weight',
  'transformer.word_embeddings.weight',
  'gpt_neox.embed_in.weight',
  'backbone.embeddings.weight',
)
# Arguments of chat templates in training; see `Tokenizer.chat_wrap`. A server
# would give today's date, and let models think.
_TRAINED_WITH = {'enable_thinking': False, 'date_string': '26 Jul 2024'}


def encode_tensor(tensor: 'torch.Tensor') -> str:
  """Encodes a tensor for vLLM: `torch.save`, in base64.

  Args:
    tensor: embeddings of T tokens, of shape [T, D].

  Returns:
    The text for a request.
  """
  import torch

  buffer = io.BytesIO()
  # A copy: torch.save writes a tensor's whole storage.
  torch.save(tensor.detach().cpu().clone(), buffer)
  return base64.b64encode(buffer.getvalue()).decode()


def read_embedding(directory: str) -> 'torch.Tensor':
  """Reads the input embedding of a base.

  Args:
    directory: of the base, in Hugging Face format.

  Returns:
    A tensor of shape [V, D], in the dtype of the file.

  Raises:
    errors.UserError: the directory has no embedding, its index is broken, or
      the index names a file outside the directory.
  """
  path = pathlib.Path(paths.expand_home(os.fspath(directory)))
  index = path / 'model.safetensors.index.json'
  file = 'model.safetensors'
  try:
    if index.exists():
      files = json_files.read(index, {'weight_map': dict})['weight_map']
      file = files[_embedding_name(files)]
      # The file itself may be a link, as in the hub's cache.
      if (
        not isinstance(file, str)
        or pathlib.PurePath(file).name != file
        or '\0' in file
      ):
        raise ValueError(
          f'{index.name} names {file!r}, expected a plain file name inside the '
          'directory'
        )
    if not (path / file).is_file():
      raise ValueError(f'there is no file {file}')
    with safetensors.safe_open(path / file, framework='pt') as tensors:
      name = _embedding_name(tensors.keys())
      found: torch.Tensor = tensors.get_tensor(name)
  except (
    OSError,
    ValueError,
    errors.UserError,
    safetensors.SafetensorError,
  ) as e:
    raise errors.UserError(
      f'{directory}: expected a model in safetensors: '
      f'{errors.shorten(str(e) or repr(e))}'
    ) from None
  if found.ndim != 2 or not found.is_floating_point():
    raise errors.UserError(
      f'{path / file}: {name} is {found.dtype} {list(found.shape)}, '
      'expected a matrix of floats'
    )
  return found


def _embedding_name(names: Collection[str]) -> str:
  """The name of the embedding matrix among those of all tensors."""
  for name in EMBEDDINGS:
    if name in names:
      return name
  raise ValueError(f'it has no embedding matrix ({EMBEDDINGS[0]} or the like)')


class Client:
  """Asks a vLLM server.

  Args:
    url: of the server, without /v1. Redirects are not followed.
    model: its name on the server.
    table: with ids after those of the base, as `--to vtokens` writes them.
    tokenizer: of the base.
    embedding: of the base, of shape [V, D]; only `complete` needs it.
    key: API key, if the server wants one.
    timeout: seconds from the request to the last byte of the answer.

  Raises:
    errors.UserError: url, key or timeout are not valid, the table has another
      format, the embedding belongs to another base, or vLLM cannot take
      embeddings of the base (Gemma).
  """

  def __init__(
    self,
    url: str,
    model: str,
    table: Artifact,
    tokenizer: 'PreTrainedTokenizerFast',
    embedding: 'torch.Tensor | None' = None,
    *,
    key: str = '',
    timeout: float = 60.0,
  ):
    meta, base = table.meta, table.meta.base
    artifact.check_kind(meta, 'table', 'vLLM is sent embeddings of tokens')
    if base.scales_embeddings:
      raise errors.UserError(
        f'{base.id} multiplies the embeddings that it looks up by a number, '
        'and whether vLLM does so with embeddings that it is sent differs '
        'from version to version and model to model (Gemma, MiniCPM3); use '
        '--to hf with transformers'
      )
    prompt_ids.check_ids(meta)
    expected = (base.vocab_size, meta.shape[1])
    if embedding is not None and tuple(embedding.shape) != expected:
      raise errors.UserError(
        f'the embedding is {list(embedding.shape)}, but that of {base.id}, on '
        f'which the virtual tokens were trained, {list(expected)}'
      )
    self._url = http_post.check_url(url)
    self._model = model
    self._table = table
    self._tokenizer = tokenizer
    self._embedding = embedding
    self._key = http_post.check_key(key)
    self._timeout = http_post.check_timeout(timeout)

  def completion_request(
    self,
    passages: Sequence[str | Mapping[str, str]],
    question: str,
    k: int,
    **settings: Any,
  ) -> dict[str, Any]:
    """The body of POST /v1/completions, with the whole prompt as embeddings.

    Args:
      passages: see `plug.prompt_ids`.
      question: the question.
      k: number of virtual tokens.
      **settings: of the request, e.g. max_tokens, temperature, stop.

    Returns:
      The body, for JSON.

    Raises:
      errors.UserError: see `plug.prompt_ids`; or no embedding was given.
    """
    import torch

    if self._embedding is None:
      raise errors.UserError(
        'the embedding of the base is needed; see read_embedding'
      )
    meta = self._table.meta
    ids = torch.tensor(
      plug.prompt_ids(self._tokenizer, passages, question, k, meta)
    )
    virtual = ids >= len(self._embedding)
    rows = self._embedding[ids.masked_fill(virtual, 0)]
    if k:
      # In the base's dtype, as the model rounds them in training.
      rows[virtual] = self._rows(k).to(rows)
    return {
      'model': self._model,
      'prompt_embeds': encode_tensor(rows),
      **settings,
    }

  def chat_request(
    self,
    passages: Sequence[str | Mapping[str, str]],
    question: str,
    k: int,
    **settings: Any,
  ) -> dict[str, Any]:
    """The body of POST /v1/chat/completions: passages, embeddings, question.

    Args:
      passages: see `plug.prompt_ids`.
      question: the question.
      k: number of virtual tokens, at least 1.
      **settings: of the request, e.g. max_tokens, temperature, stop.

    Returns:
      The body, for JSON.

    Raises:
      errors.UserError: the tokens were not trained between passages and
        question inside the user's turn, the base's chat template takes no list
        of parts, or k is not between 1 and the number of trained tokens.
    """
    meta = self._table.meta
    if not meta.prompt.templates.chat or meta.prompt.position != 'middle':
      raise errors.UserError(
        'these virtual tokens were not trained inside a chat turn, between '
        'passages and question (config.templates.chat); use complete'
      )
    k = prompt_ids.check_number(k, 1, meta.num_trained, 'k')
    before, after = plug.prompt_texts(self._tokenizer, passages, question, meta)
    if not _takes_parts(self._tokenizer):
      raise errors.UserError(
        f'the chat template of {meta.base.id} takes the content of a message '
        'as one text, not as a list of parts: vLLM would join the parts with '
        'line breaks that training did not have; use complete'
      )
    content = [
      {'type': 'text', 'text': before},
      {'type': 'prompt_embeds', 'data': encode_tensor(self._rows(k))},
      {'type': 'text', 'text': after},
    ]
    return {
      'model': self._model,
      'messages': [
        {'role': 'user', 'content': [part for part in content if _full(part)]}
      ],
      'chat_template_kwargs': _TRAINED_WITH,
      **settings,
    }

  def _rows(self, k: int) -> 'torch.Tensor':
    import torch

    return torch.from_numpy(np.ascontiguousarray(self._table.table[:k]))

  def complete(
    self,
    passages: Sequence[str | Mapping[str, str]],
    question: str,
    k: int,
    **settings: Any,
  ) -> str:
    """Sends `completion_request`.

    Args:
      passages: see `plug.prompt_ids`.
      question: the question.
      k: number of virtual tokens.
      **settings: of the request.

    Returns:
      The answer's text.

    Raises:
      errors.UserError: see `completion_request`; or the server cannot be
        reached, is too slow, refuses, redirects, or does not answer as vLLM
        does.
    """
    body = self.completion_request(passages, question, k, **settings)
    return self._post('/v1/completions', body, lambda choice: choice['text'])

  def chat(
    self,
    passages: Sequence[str | Mapping[str, str]],
    question: str,
    k: int,
    **settings: Any,
  ) -> str:
    """Sends `chat_request`.

    Args:
      passages: see `plug.prompt_ids`.
      question: the question.
      k: number of virtual tokens.
      **settings: of the request.

    Returns:
      The answer's text.

    Raises:
      errors.UserError: see `chat_request`; or the server cannot be reached, is
        too slow, refuses, redirects, or does not answer as vLLM does.
    """
    body = self.chat_request(passages, question, k, **settings)
    return self._post(
      '/v1/chat/completions', body, lambda choice: choice['message']['content']
    )

  def _post(
    self,
    path: str,
    body: Mapping[str, Any],
    text: Callable[[Mapping[str, Any]], str],
  ) -> str:
    if body.get('stream'):
      raise errors.UserError('stream: an answer is read whole; leave it out')
    url = self._url + path
    found = http_post.post(url, body, self._key, self._timeout)
    try:
      answer = text(json.loads(found)['choices'][0])
      if not isinstance(answer, str):
        raise TypeError(f'the answer is {type(answer).__name__}, no text')
      answer.encode()
    except (ValueError, LookupError, TypeError, RecursionError) as e:
      raise errors.UserError(
        f'{url}: no answer as vLLM gives it ({errors.shorten(repr(e))}): '
        f'{errors.shorten(found[:2000].decode(errors="replace"))}'
      ) from None
    return answer


def _takes_parts(tokenizer: 'PreTrainedTokenizerFast') -> bool:
  """Whether a chat template joins the parts of a message without a break."""
  parts = [{'type': 'text', 'text': text} for text in ('left-', '-right')]
  try:
    text = chat_template.render(
      tokenizer.get_chat_template(),
      {
        **tokenizer.special_tokens_map,
        **_TRAINED_WITH,
        'messages': [{'role': 'user', 'content': parts}],
        'add_generation_prompt': True,
      },
    )
  # The template may add the list to a text, or look for a text in it.
  except chat_template.TemplateError:
    return False
  return 'left--right' in text


def _full(part: Mapping[str, str]) -> bool:
  """Whether a part is not empty: a server may refuse empty text."""
  return part['type'] != 'text' or bool(part['text'])
