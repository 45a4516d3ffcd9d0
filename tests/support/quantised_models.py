"""Tiny models whose files are quantised, by the libraries that define it."""

import functools
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.torch
import tiny_models
import torch

from vtokens.models.decoder import Decoder
from vtokens.models.files import hf_directory, weights

# The stored tensors of a weight, by the ends of their names.
Parts = Mapping[str, torch.Tensor]


def save(
  directory: pathlib.Path,
  convert: Callable[[torch.Tensor], Parts],
  config: Mapping[str, Any],
  quantised: tuple[str, ...] = ('_proj.weight',),
  **overrides: Any,
) -> dict[str, Parts]:
  """Saves a model whose layers' matrices are quantised.

  Args:
    directory: where to.
    convert: function from a weight to its stored tensors.
    config: `quantization_config`.
    quantised: ends of the names of the weights that are quantised.
    overrides: see `tiny_models.save`.

  Returns:
    Name of each quantised weight -> its stored tensors.
  """
  sizes = {'num_hidden_layers': 2, 'intermediate_size': 128, **overrides}
  files = _files(json.dumps(sizes))
  for name, data in files.items():
    (directory / name).write_bytes(data)
  return convert_files(directory, convert, config, quantised)


def convert_files(
  directory: pathlib.Path,
  convert: Callable[[torch.Tensor], Parts],
  config: Mapping[str, Any],
  quantised: tuple[str, ...],
) -> dict[str, Parts]:
  """Quantises weights of a saved model; see `save`."""
  file = directory / 'model.safetensors'
  tensors: dict[str, torch.Tensor] = {}
  packed = {}
  for name, tensor in safetensors.torch.load(file.read_bytes()).items():
    if not name.endswith(quantised):
      tensors[name] = tensor
      continue
    parts = packed[name] = convert(tensor)
    module = name.removesuffix('weight')
    tensors |= {module + end: t.clone() for end, t in parts.items()}
  safetensors.torch.save_file(tensors, file, {'format': 'pt'})
  configure(directory, config)
  return packed


@functools.cache
def _files(sizes: str) -> dict[str, bytes]:
  """The files of the model without quantisation."""
  with tempfile.TemporaryDirectory() as made:
    tiny_models.save(pathlib.Path(made), **json.loads(sizes))
    return {f.name: f.read_bytes() for f in pathlib.Path(made).iterdir()}


def configure(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes `quantization_config` into config.json."""
  path = directory / 'config.json'
  values = json.loads(path.read_text())
  path.write_text(json.dumps({**values, 'quantization_config': config}))


def fp8(weight: torch.Tensor, block: tuple[int, int]) -> Parts:
  """A weight in FP8 with a scale for each block."""
  height, width = block
  rows, columns = weight.shape
  padded = torch.nn.functional.pad(
    weight, (0, -columns % width, 0, -rows % height)
  )
  blocks = padded.reshape(
    padded.shape[0] // height, height, padded.shape[1] // width, width
  )
  scales = blocks.abs().amax(dim=(1, 3)) / 448
  codes = (blocks / scales[:, None, :, None]).reshape(padded.shape)
  return {
    'weight': codes[:rows, :columns].to(torch.float8_e4m3fn),
    'scale': scales,
  }


def check(source: hf_directory.SafetensorsSource, path: pathlib.Path) -> None:
  """Compares the tensors with what the config needs."""
  weights.check_shapes(source, hf_directory.read_config(path))


def logits(model: Decoder, ids: np.ndarray) -> np.ndarray:
  """Logits after each id, array of shape [B, T, V]."""
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = model(model.embed(jnp.asarray(ids)), positions)
  found: np.ndarray = np.asarray(model.logits(hidden))
  return found
