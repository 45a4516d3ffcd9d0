"""`--to peft`: the table as adapters that PEFT loads onto the unchanged base.

Two adapters hold the same rows, at ids that the base's embedding matrix has:

- `trainable_tokens`: the rows themselves (PEFT calls them a delta). With a tied
  head they are rows of the head too, so that a virtual token can be generated
  unless `suppress_tokens` forbids it.
- `embedding_lora`: a LoRA of the embedding of rank n. Its A picks the tokens
  (one-hot), its B is the change of their rows: exact, and the head stays as it
  is.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from vtokens.exports import (
  card_recipes,
  gate,
  shared_checks,
  vocabulary_rows,
)
from vtokens.exports.export_format import (
  ExportJob,
  Format,
  Placement,
  Usage,
  refuse_wrapped,
)
from vtokens.exports.gate import Check
from vtokens.exports.trained_table import Source
from vtokens.host import errors
from vtokens.models.families import registry
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Artifact, Meta, Tokens

# Beginning of names in files of Nemotron-H -> of its modules in transformers.
_FILES, _MODULES = 'backbone.', 'model.'
ADAPTERS = ('trainable_tokens', 'embedding_lora')
_WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_RECIPE = """
import peft, torch, transformers
from vtokens import plug

{load}
model = peft.PeftModel.from_pretrained(model, 'embedding_lora')
{ids}
# The adapter trainable_tokens has the rows in a tied head, too.
{generate}
"""


class PEFTFormat(Format):
  """Two adapters, read by PEFT."""

  name = 'peft'
  library = 'peft'
  consumers = ('torch', 'transformers', 'peft')

  def place(self, source: Source, base_path: str) -> Placement:
    """Ids inside the base's embedding matrix that no text uses."""
    if base_path.endswith('.gguf'):
      raise errors.UserError(
        f'--to peft: {base_path} is a GGUF file, for which PEFT has no model; '
        'use --to hf, or train on the Hugging Face directory of the same model'
      )
    refuse_wrapped(self.name, base_path)
    if source.base.config.per_layer_dim:
      raise errors.UserError(
        f'--to peft: {base_path} has a second embedding matrix, in which the '
        'ids of the adapters have rows of their own; virtual tokens were '
        'trained with the row of the padding. Use --to hf or --to vtokens'
      )
    vocabulary = vocabulary_rows.read_vocabulary(base_path)
    tokens = source.table.meta.tokens
    return Placement(vocabulary_rows.inside(vocabulary, tokens, source.base))

  def write(self, job: ExportJob) -> None:
    """Each adapter in its own directory."""
    write(job.directory, job.exported, job.placement.tokens, job.source.base)

  def check(self, job: ExportJob) -> list[Check]:
    """Each adapter in PEFT, beside the base in transformers."""
    import peft

    from vtokens.exports import torch_consumer

    opened, ids = job.source.base, job.placement.tokens.ids
    tokenizer = torch_consumer.load_tokenizer(job.base_path)
    size = opened.config.vocab_size
    base = torch_consumer.load_model(job.base_path)
    before = torch_consumer.on_texts(base, opened.tokenizer.encode, size)
    del base
    checks: list[Check] = []
    for adapter in ADAPTERS:
      model = peft.PeftModel.from_pretrained(
        torch_consumer.load_model(job.base_path), job.directory / adapter
      )
      consumer = torch_consumer.TorchConsumer(
        model,
        tokenizer,
        job.exported.meta,
        sorted(opened.tokenizer.end_ids),
        # With a tied head PEFT puts the rows into the head, too.
        suppress=ids if in_head(adapter, opened) else (),
      )
      found = [
        *shared_checks.compare(consumer, job),
        gate.same_old_logits(
          torch_consumer.on_texts(model, opened.tokenizer.encode, size),
          before,
          shared_checks.old_ids(opened, ids),
        ),
      ]
      # Free the memory before the next model is loaded.
      del model, consumer
      checks += [
        dataclasses.replace(check, name=f'{adapter}: {check.name}')
        for check in found
      ]
    return checks

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """Transformers with PEFT."""
    return Usage(card_recipes.fill(_RECIPE, meta, peft=True))


def in_head(adapter: str, opened: OpenBase) -> bool:
  """Whether an adapter puts the rows into the head, so that they can win."""
  return adapter == 'trainable_tokens' and opened.config.tie_embeddings


def write(
  out: pathlib.Path, table: Artifact, tokens: Tokens, opened: OpenBase
) -> None:
  """Writes both adapters, each in its own directory.

  Args:
    out: directory of the export.
    table: the table.
    tokens: ids and names in the export.
    opened: the base.
  """
  import peft

  count = len(table.table)
  base = table.meta.base
  ids = list(tokens.ids)
  stored = registry.family_of(opened.config).names
  embedding = stored['embedding'].removesuffix('.weight')
  if embedding.startswith(_FILES):
    embedding = _MODULES + embedding.removeprefix(_FILES)
  target = embedding.rpartition('.')[2]
  trainable = peft.TrainableTokensConfig(
    token_indices=ids,
    target_modules=[target],
    task_type='CAUSAL_LM',
    base_model_name_or_path=base.id,
    revision=base.revision or None,
    inference_mode=True,
  )
  names = [f'{embedding}.trainable_tokens_delta']
  if in_head(ADAPTERS[0], opened):
    names.append('lm_head.trainable_tokens_delta')
  _write(out / ADAPTERS[0], trainable, dict.fromkeys(names, table.table))
  lora = peft.LoraConfig(
    r=count,
    lora_alpha=count,  # PEFT multiplies by alpha / r: by 1.
    lora_dropout=0.0,
    target_modules=[target],
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
        opened.source.read(stored['embedding'], slice(i, i + 1))[0], 'f4'
      )
      for i in ids
    ]
  )
  _write(
    out / ADAPTERS[1],
    lora,
    {
      f'{embedding}.lora_embedding_A': picks,
      f'{embedding}.lora_embedding_B': (table.table - before).T,
    },
  )


def _write(
  directory: pathlib.Path, config: Any, tensors: dict[str, np.ndarray]
) -> None:
  directory.mkdir()
  config.save_pretrained(directory)
  data = {
    _PREFIX + name: np.ascontiguousarray(value)
    for name, value in tensors.items()
  }
  safetensors.numpy.save_file(data, directory / _WEIGHTS, {'format': 'pt'})
