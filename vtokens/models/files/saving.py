"""Saves a decoder as transformers does."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.nnx as nnx
import numpy as np
import safetensors.numpy
from flax.typing import PathParts

from vtokens.models.decoder import Decoder
from vtokens.models.families import registry
from vtokens.models.files.directory_files import INDEX_FILE, SINGLE_FILE
from vtokens.models.files.stored_names import expected_shapes, weights_of
from vtokens.models.files.weight_map import Weight


def save_decoder(
  model: Decoder,
  directory: str | pathlib.Path,
  extra: Mapping[str, Any],
  *,
  max_shard_bytes: int = 5 << 30,
) -> None:
  """Writes weights and config.json as transformers does, in the weights' dtype.

  Args:
    model: the decoder, without quantised matrices.
    directory: output directory; made if missing.
    extra: fields of config.json that the decoder does not know: ids of bos, eos
      and padding. transformers' defaults for them seldom fit.
    max_shard_bytes: largest size of a file in bytes; a single tensor may exceed
      it.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  config = model.config
  _, params = nnx.split(model)
  arrays = dict(nnx.to_flat_state(params))
  parts: dict[str, list[tuple[Weight, int, PathParts]]] = {}
  for path, (weight, _) in weights_of(config).items():
    for i, name in enumerate(weight.names):
      parts.setdefault(name, []).append((weight, i, path))

  def tensor(name: str) -> np.ndarray:
    rows = [
      weight.write(arrays[path][...], i) for weight, i, path in parts[name]
    ]
    return parts[name][0][0].join(rows)

  itemsize = arrays[next(iter(arrays))][...].dtype.itemsize
  shapes = expected_shapes(config)
  files: list[list[str]] = [[]]
  size = 0
  for name in parts:
    grown = math.prod(shapes[name]) * itemsize
    if files[-1] and size + grown > max_shard_bytes:
      files.append([])
      size = 0
    files[-1].append(name)
    size += grown
  # Without it transformers does not know which framework wrote the tensors.
  metadata = {'format': 'pt'}
  file_of = {}
  for number, names in enumerate(files, 1):
    file = SINGLE_FILE
    if len(files) > 1:
      file = f'model-{number:05d}-of-{len(files):05d}.safetensors'
    file_of.update(dict.fromkeys(names, file))
    safetensors.numpy.save_file(
      {name: tensor(name) for name in names}, directory / file, metadata
    )
  if len(files) > 1:
    total = sum(math.prod(shape) for shape in shapes.values()) * itemsize
    _write_json(
      directory / INDEX_FILE,
      {'metadata': {'total_size': total}, 'weight_map': file_of},
    )
  dtype = str(arrays[next(iter(arrays))][...].dtype)
  _write_json(
    directory / 'config.json',
    {**registry.to_hf(config), **extra, 'torch_dtype': dtype},
  )


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
