"""The short name of `vtokens.serving.plug`, for serving programs."""

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
  'load',
  'prompt_ids',
  'prompt_text',
  'prompt_texts',
]
