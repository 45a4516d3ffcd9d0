"""Exports as users of transformers run them, on the CPU or a GPU."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from vtokens.exports import gate, hf_checkpoint
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving import plug
from vtokens.serving.artifact import Meta

# Tokens that are drawn one after the other; more are drawn side by side.
_LONGEST = 16


def load_model(path: str) -> Any:
  """A model in float32, on the GPU if there is one.

  Args:
    path: a directory, or a GGUF file.
  """
  file = pathlib.Path(path)
  where = (
    {'pretrained_model_name_or_path': file.parent, 'gguf_file': file.name}
    if file.suffix == '.gguf'
    else {'pretrained_model_name_or_path': path}
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.float32, attn_implementation='eager'
  )
  device: Any = 'cuda' if torch.cuda.is_available() else 'cpu'
  return model.to(device).eval()


class TorchConsumer:
  """A transformers model and tokenizer; see `gate.Consumer`.

  Of the model's generation config nothing is used: a repetition penalty of the
  base, say, is no part of what is compared.

  Args:
    model: in float32; its generation config is replaced.
    tokenizer: of the export, or of the base.
    meta: of the export: its ids.
    end_ids: that end an answer.
    suppress: ids that are not to be said, where the head cannot be relied on.
  """

  def __init__(
    self,
    model: Any,
    tokenizer: Any,
    meta: Meta,
    end_ids: Sequence[int],
    suppress: Sequence[int] = (),
  ):
    model.generation_config = transformers.GenerationConfig(
      eos_token_id=list(end_ids),
      pad_token_id=end_ids[0],
      suppress_tokens=list(suppress) or None,
    )
    self._model = model
    self._tokenizer = tokenizer
    self._meta = meta

  def prompt_ids(
    self, passages: Sequence[dict[str, str]], question: str
  ) -> list[int]:
    """See `gate.Consumer`."""
    k = self._meta.num_trained
    return plug.prompt_ids(self._tokenizer, passages, question, k, self._meta)

  def virtual_ids(self) -> list[int]:
    """See `gate.Consumer`."""
    return list(self._meta.tokens.ids)

  def logits(self, ids: Sequence[int]) -> np.ndarray:
    """See `gate.Consumer`."""
    return logits(self._model, ids)

  def answer(self, ids: Sequence[int], most: int) -> list[int]:
    """See `gate.Consumer`."""
    return self._generate(ids, most, do_sample=False)

  def sample(self, ids: Sequence[int], number: int, seed: int) -> list[int]:
    """See `gate.Consumer`."""
    torch.manual_seed(seed)
    length = min(number, _LONGEST)
    return self._generate(
      ids,
      length,
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      min_new_tokens=length,
      num_return_sequences=-(-number // length),
    )

  def _generate(
    self, ids: Sequence[int], most: int, **settings: Any
  ) -> list[int]:
    inputs = torch.tensor([list(ids)], device=self._model.device)
    out = self._model.generate(
      inputs,
      attention_mask=torch.ones_like(inputs),
      max_new_tokens=most,
      **settings,
    )
    return out[:, len(ids) :].flatten().tolist()


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
  """Logits after each id, f32."""
  inputs = torch.tensor([list(ids)], device=model.device)
  return model(inputs).logits[0].float().cpu().numpy()


@torch.no_grad()
def on_texts(
  model: Any, encode: Callable[[str], list[int]], rows: int
) -> list[np.ndarray]:
  """Logits of `gate.TEXTS`, before any soft cap.

  By a head of the base's size: kernels of matrix products may sum in another
  order where a matrix has more rows, those at hand included.

  Args:
    model: of transformers.
    encode: from text to ids.
    rows: of the base's head, which are the first of this one.
  """
  head = model.get_output_embeddings()
  given: list[torch.Tensor] = []
  hook = head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
  try:
    for text in gate.TEXTS:
      logits(model, encode(text))
  finally:
    hook.remove()
  weight = head.weight[:rows]
  return [
    torch.nn.functional.linear(hidden[0], weight).float().cpu().numpy()
    for hidden in given
  ]


def head_is_harmless(model: Any, ids: Sequence[int], copied: int) -> gate.Check:
  """The virtual tokens' rows of the head are those of a token not said."""
  weight = model.get_output_embeddings().weight
  same = int((weight[list(ids)] == weight[copied]).all(dim=1).sum())
  return gate.Check(
    "the head's rows of virtual tokens that are a copy of that of a token "
    'which is not said',
    same == len(ids),
    f'{same}, of id {copied}',
    len(ids),
  )


def settings(
  path: pathlib.Path, ids: Sequence[int], end: int
) -> list[gate.Check]:
  """Of the generation config: what is never said, and what ends an answer."""
  found = transformers.GenerationConfig.from_pretrained(path).to_dict()
  never = len(set(found['suppress_tokens'] or []) & set(ids))
  ends = hf_checkpoint.end_ids(found)
  return [
    gate.Check(
      'virtual tokens in suppress_tokens of generation_config.json',
      never == len(ids),
      never,
      len(ids),
    ),
    gate.Check(
      'eos_token_id of generation_config.json has what ends an answer',
      end in ends,
      ends,
      end,
    ),
  ]


def load_tokenizer(path: str) -> Any:
  """The tokenizer of a directory, or of a GGUF file.

  Of a GGUF file ours, which gives llama.cpp's ids: transformers' (5.23) gives
  others, e.g. for line breaks in SmolLM2's.
  """
  if path.endswith('.gguf'):
    return gguf_tokenizer.read_tokenizer(path)
  return transformers.AutoTokenizer.from_pretrained(path)


def names_matched(tokenizer: Any, meta: Meta) -> gate.Check:
  """The names in a text, between passages and question, become the ids."""
  text = f'A passage.\n\n{"".join(meta.tokens.names)}Question: Is it?'
  virtual = set(meta.tokens.ids)
  found = [i for i in tokenizer(text)['input_ids'] if i in virtual]
  return gate.Check(
    'names of virtual tokens recognised in a text',
    found == list(meta.tokens.ids),
    len(found),
    len(meta.tokens.ids),
  )
