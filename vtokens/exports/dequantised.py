"""A base with quantised weights as a transformers model in float32.

transformers itself would need the library of each format, and mostly a GPU.
"""

from typing import Any

import numpy as np
import torch
import transformers

from vtokens.models.families import registry, wrappers
from vtokens.models.files import hf_directory
from vtokens.models.files.quantised import formats


def load_model(
  directory: str, source: hf_directory.SafetensorsSource, **settings: Any
) -> Any:
  """The model, with the values that vtokens reads.

  Args:
    directory: the directory.
    source: its weights. Of a multimodal model it has the text part.
    settings: of `from_pretrained`.
  """
  path = source.path / 'config.json'
  architecture = hf_directory.read_config(directory)
  fields, _ = formats.split(hf_directory.read_fields(path), path)
  if hf_directory.read_wrapper(directory):
    fields = registry.to_hf(architecture)
  config = transformers.AutoConfig.for_model(**wrappers.with_known_type(fields))
  weights = {
    name: torch.from_numpy(_whole(source, name)) for name in source.shapes()
  }
  name = registry.family_of(architecture).architecture
  model = getattr(transformers, name)
  return model.from_pretrained(
    None, config=config, state_dict=weights, **settings
  )


def _whole(source: hf_directory.SafetensorsSource, name: str) -> np.ndarray:
  """A tensor, float32."""
  shape = source.shapes()[name]
  if len(shape) < 3:
    return source.read(name).astype(np.float32)
  made = np.empty(shape, np.float32)
  if shape[1] == 1:
    # The kernels of a convolution: many matrices of one row.
    made[:, 0] = source.read(name)
    return made
  for i, matrix in enumerate(made):
    matrix[...] = source.read(name, slice(i * shape[1], (i + 1) * shape[1]))
  return made
