"""An export in GGUF that programs of several kinds read."""

import pathlib

import export_gguf_test
import export_test
import family_models
import gguf_models
import torch
import transformers

from vtokens import export


def make(root: pathlib.Path) -> None:
  """Writes a base, a run of it and its export, `gguf`.

  In float32: where weights are quantised llama.cpp rounds activations, and
  answers differ from ours now and then.
  """
  family_models.save(root / 'hf', 'llama3', ascii_only=True)
  family_models.say_line_breaks(root / 'hf', 20.0)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    root / 'hf', dtype=torch.float32
  )
  gguf_models.write(
    root / 'base.gguf',
    'llama',
    model,
    tokenizer=gguf_models.tokenizer('llama3', model.config.vocab_size),
  )
  export_test.write_run(root / 'run', root / 'base.gguf')
  settings = export_gguf_test._settings(root, questions=4, logits=1, sampled=64)
  export.export(settings, 'gguf', str(root / 'gguf'))
