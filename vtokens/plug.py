"""The short name of `vtokens.serving.plug`, for serving programs."""

from vtokens.serving.model_cache import generate, generate_inputs
from vtokens.serving.plug import (
  attach,
  detach,
  load,
  prompt_ids,
  prompt_text,
  prompt_texts,
)

__all__ = [
  'attach',
  'detach',
  'generate',
  'generate_inputs',
  'load',
  'prompt_ids',
  'prompt_text',
  'prompt_texts',
]
