"""Converts a base in GGUF to a directory in Hugging Face format."""

import dataclasses
import pathlib

from vtokens.devices import partitioning
from vtokens.models.files import saving
from vtokens.models.frozen_base import OpenBase


def to_directory(opened: OpenBase, directory: pathlib.Path) -> None:
  """Writes weights (dequantised to float32), config and tokenizer.

  Args:
    opened: the base.
    directory: the directory; made if missing.
  """
  settings = dataclasses.replace(
    opened.settings, dtype='float32', quantize='none'
  )
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = dataclasses.replace(opened, settings=settings).load(mesh)
  tokenizer = opened.tokenizer
  saving.save_decoder(
    base.decoder(),
    directory,
    {
      'bos_token_id': tokenizer.prefix_ids[0] if tokenizer.prefix_ids else None,
      'eos_token_id': tokenizer.eos_id,
      'pad_token_id': tokenizer.pad_id,
    },
  )
  tokenizer.save(directory)
