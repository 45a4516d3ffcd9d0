"""The table as adapters that PEFT loads onto the unchanged base.

Two forms of the same rows, at ids that the base's embedding matrix has:

- `trainable_tokens`: the rows as they are (PEFT calls them a delta). With a
  tied head they are rows of the head too, so that a virtual token can be said
  unless `suppress_tokens` forbids it.
- `embedding_lora`: a LoRA of the embedding of rank n, whose A picks the tokens
  (one-hot) and whose B is what their rows change by: exact, and the head is
  left alone.
"""

import pathlib

import numpy as np
import peft
import safetensors.numpy

from vtokens.exports import hf_checkpoint, vocabulary_rows
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Artifact, Tokens

FORMS = ('trainable_tokens', 'embedding_lora')
_WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'


def place(table: Artifact, opened: OpenBase, directory: str) -> Tokens:
  """Ids inside the base's embedding matrix.

  Raises:
    errors.UserError: there are too few that no text uses.
  """
  return vocabulary_rows.inside(
    vocabulary_rows.read_vocabulary(directory), table.meta.tokens, opened
  )


def in_head(form: str, opened: OpenBase) -> bool:
  """Whether an adapter has the rows in the head as well, to be suppressed."""
  return form == 'trainable_tokens' and opened.config.tie_embeddings


def write(
  out: pathlib.Path, table: Artifact, tokens: Tokens, opened: OpenBase
) -> None:
  """Writes both forms, each in its directory.

  Args:
    out: where to.
    table: what is exported.
    tokens: see `place`.
    opened: the base.
  """
  count = len(table.table)
  base = table.meta.base
  ids = list(tokens.ids)
  trainable = peft.TrainableTokensConfig(
    token_indices=ids,
    target_modules=['embed_tokens'],
    task_type='CAUSAL_LM',
    base_model_name_or_path=base.id,
    revision=base.revision or None,
    inference_mode=True,
  )
  names = [
    f'{hf_checkpoint.EMBEDDING.removesuffix(".weight")}.trainable_tokens_delta'
  ]
  if in_head(FORMS[0], opened):
    names.append('lm_head.trainable_tokens_delta')
  _write(out / FORMS[0], trainable, dict.fromkeys(names, table.table))
  lora = peft.LoraConfig(
    r=count,
    lora_alpha=count,  # Times alpha / r: as it is.
    lora_dropout=0.0,
    target_modules=['embed_tokens'],
    task_type='CAUSAL_LM',
    base_model_name_or_path=base.id,
    revision=base.revision or None,
    inference_mode=True,
  )
  picks = np.zeros((count, opened.config.vocab_size), np.float32)
  picks[np.arange(count), ids] = 1.0
  before = np.stack(
    [
      np.asarray(
        opened.source.read(hf_checkpoint.EMBEDDING, slice(i, i + 1))[0], 'f4'
      )
      for i in ids
    ]
  )
  module = hf_checkpoint.EMBEDDING.removesuffix('.weight')
  _write(
    out / FORMS[1],
    lora,
    {
      f'{module}.lora_embedding_A': picks,
      f'{module}.lora_embedding_B': (table.table - before).T,
    },
  )


def _write(directory: pathlib.Path, config, tensors: dict) -> None:
  directory.mkdir()
  config.save_pretrained(directory)
  data = {
    _PREFIX + name: np.ascontiguousarray(value)
    for name, value in tensors.items()
  }
  safetensors.numpy.save_file(data, directory / _WEIGHTS, {'format': 'pt'})
