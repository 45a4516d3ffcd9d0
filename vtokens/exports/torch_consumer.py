"""Runs exports in transformers, on the CPU or a GPU."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from vtokens.exports import dequantised, gate, hf_checkpoint
from vtokens.models.families import wrappers
from vtokens.models.files import hf_directory
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving import model_cache, plug
from vtokens.serving.artifact import Artifact, Meta

# Tokens sampled one after the other; further ones are sampled in parallel.
_LONGEST = 16


def load_model(path: str) -> Any:
  """A model in float32, on the GPU if there is one.

  Quantised weights have the values that vtokens reads.

  Args:
    path: a directory, or a GGUF file.
  """
  file = pathlib.Path(path)
  where: dict[str, Any] = (
    {'pretrained_model_name_or_path': file.parent, 'gguf_file': file.name}
    if file.suffix == '.gguf'
    else {'pretrained_model_name_or_path': path}
  )
  auto: Any = transformers.AutoModelForCausalLM
  if file.is_dir() and hf_directory.read_wrapper(file):
    auto = transformers.AutoModelForImageTextToText
  settings: Any = {'dtype': torch.float32, 'attn_implementation': 'eager'}
  source = hf_directory.SafetensorsSource(path) if file.is_dir() else None
  if source is not None and source.format is not None:
    model = dequantised.load_model(path, source, **settings)
  else:
    if file.is_dir():
      fields = hf_directory.read_fields(file / 'config.json')
      known = wrappers.with_known_type(fields)
      if known != fields:
        where['config'] = transformers.AutoConfig.for_model(**known)
    model = auto.from_pretrained(**where, **settings)
  for module in model.modules():
    if type(module).__name__ == 'NemotronHMamba2Mixer':
      # transformers bounds step sizes in one pass over a text, not in single
      # steps. vLLM and vtokens never do.
      module.time_step_limit = (0.0, math.inf)
  device: Any = 'cuda' if torch.cuda.is_available() else 'cpu'
  return model.to(device).eval()


class TorchConsumer:
  """A transformers model and tokenizer; see `gate.Consumer`.

  The generation config of the model is not used: settings of the base such as a
  repetition penalty are not compared.

  Args:
    model: a model in float32; its generation config is replaced.
    tokenizer: tokenizer of the export, or of the base.
    meta: metadata of the export.
    end_ids: ids that end an answer.
    suppress: ids never generated, if the head alone does not exclude them.
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
    out = self._call(ids, max_new_tokens=most, **settings)
    new: list[int] = out[:, len(ids) :].flatten().tolist()
    return new

  def _call(self, ids: Sequence[int], **settings: Any) -> torch.Tensor:
    inputs = torch.tensor([list(ids)], device=self._model.device)
    out: torch.Tensor = self._model.generate(
      inputs, attention_mask=torch.ones_like(inputs), **settings
    )
    return out


class CacheConsumer(TorchConsumer):
  """A transformers model with keys and values; see `gate.Consumer`.

  Args:
    model: see `TorchConsumer`.
    tokenizer: tokenizer of the base.
    table: the keys and values, as they were read.
    end_ids: ids that end an answer.
  """

  def __init__(
    self, model: Any, tokenizer: Any, table: Artifact, end_ids: Sequence[int]
  ):
    super().__init__(model, tokenizer, table.meta, end_ids)
    self._table = table

  @torch.no_grad()
  def logits(self, ids: Sequence[int]) -> np.ndarray:
    """See `gate.Consumer`; NaN up to the last virtual token."""
    inputs = model_cache.generate_inputs(self._model, ids, self._table)
    whole = inputs.pop('input_ids')
    [cache] = [one for name, one in inputs.items() if name != 'attention_mask']
    start = cache.get_seq_length()
    found = self._model(whole[:, start:], **inputs).logits[0].float().cpu()
    missing = np.full((start, found.shape[1]), np.nan, np.float32)
    return np.concatenate([missing, found.numpy()])

  def _call(self, ids: Sequence[int], **settings: Any) -> torch.Tensor:
    out: torch.Tensor = model_cache.generate(
      self._model, ids, self._table, **settings
    )
    return out


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
  """Logits after each id, array of shape [T, V], float32."""
  inputs = torch.tensor([list(ids)], device=model.device)
  found: np.ndarray = model(inputs).logits[0].float().cpu().numpy()
  return found


@torch.no_grad()
def on_texts(
  model: Any, encode: Callable[[str], list[int]], rows: int
) -> list[np.ndarray]:
  """Logits of `gate.TEXTS`, before any soft cap.

  Only the rows of the base's head are multiplied: with more rows a kernel may
  sum in another order, in the old rows, too.

  Args:
    model: a transformers model.
    encode: function from text to ids.
    rows: number of rows of the base's head, the first rows of this head.
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
  """The head's rows of virtual tokens equal the row of an unlikely token."""
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
  """The generation config suppresses virtual tokens and knows the end."""
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
  """The tokenizer of a directory, or our tokenizer of a GGUF file.

  Ours gives the ids of llama.cpp. transformers (5.23) gives other ids for a
  GGUF file, e.g. for line breaks in SmolLM2's.
  """
  if path.endswith('.gguf'):
    return gguf_tokenizer.read_tokenizer(path)
  return transformers.AutoTokenizer.from_pretrained(path)


def names_matched(tokenizer: Any, meta: Meta) -> gate.Check:
  """Names in a text, between passages and question, become the ids."""
  text = f'A passage.\n\n{"".join(meta.tokens.names)}Question: Is it?'
  virtual = set(meta.tokens.ids)
  found = [i for i in tokenizer(text)['input_ids'] if i in virtual]
  return gate.Check(
    'names of virtual tokens recognised in a text',
    found == list(meta.tokens.ids),
    len(found),
    len(meta.tokens.ids),
  )
