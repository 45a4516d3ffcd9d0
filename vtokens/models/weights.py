"""Which stored tensor is which parameter; loading shard by shard, and saving.

tensor in a file --read a block of rows--> cast, transposed --> shard of some
layers on its device --> written into the stacked parameter in place.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tqdm
from jaxtyping import Array

from vtokens import errors, partitioning
from vtokens.models import families
from vtokens.models.config import DecoderConfig
from vtokens.models.decoder import Decoder, abstract_decoder

INDEX_FILE = 'model.safetensors.index.json'
SINGLE_FILE = 'model.safetensors'

# Bytes read at a time: what the host holds besides the shard that it fills.
_BLOCK = 64 << 20

# Stored as one axis. Matrices but the embedding are [out, in] in files and
# [in, ..., out, ...] here.
_VECTORS = ('scale', '_bias')


EVERY = slice(None)


class TensorSource(Protocol):
  """Named tensors of one model, under their Hugging Face names."""

  where: str

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor."""

  def nbytes(self, name: str) -> int:
    """How many bytes a tensor takes as stored."""

  def read(
    self, name: str, rows: slice = EVERY, columns: slice = EVERY
  ) -> np.ndarray:
    """Part of a tensor: f16, bf16 or f32. One of rank 1 has only rows."""

  def sample(self, name: str) -> bytes:
    """A small fixed part of the stored bytes, for the fingerprint."""


@dataclasses.dataclass(frozen=True)
class _Weight:
  """Where one parameter lies, or one layer of a stacked parameter.

  Attributes:
    names: the tensor, for each layer.
    stacked: whether the parameter has a leading axis of layers.
    shape: of one layer's parameter.
    stored: its shape in the file: its rows alone, where the tensor holds
      other parameters as well.
    inputs: how many of its leading axes are the stored tensor's second; 0 for
      one that is not transposed.
    first_row: of the tensor.
  """

  names: tuple[str, ...]
  stacked: bool
  shape: tuple[int, ...]
  stored: tuple[int, ...]
  inputs: int
  first_row: int

  def read(
    self,
    source: TensorSource,
    layer: int,
    index: tuple[slice, ...],
    dtype: np.dtype,
    progress: Callable[[int], Any],
  ) -> np.ndarray:
    """The part of one layer's parameter that lies at an index.

    Args:
      source: of the tensors.
      layer: which one; 0 for a parameter that is not stacked.
      index: one slice of each axis of `shape`. Axes are sharded only where
        the part stays a block of rows and columns of the stored tensor.
      dtype: of the result.
      progress: called with the number of stored bytes just read.
    """
    name = self.names[layer]
    shape = tuple(
      len(range(*part.indices(size)))
      for part, size in zip(index, self.shape, strict=True)
    )
    # Axes of the parameter that are columns of the tensor, and rows of it.
    split = self.inputs or 1
    first, second = index[:split], index[split:]
    sizes = self.shape[:split], self.shape[split:]
    if self.inputs:
      columns, rows = _span(first, sizes[0]), _span(second, sizes[1])
    elif len(self.stored) == 2:
      rows, columns = _span(first, sizes[0]), _span(second, sizes[1])
    else:
      rows, columns = _span(index, self.shape), slice(0, 1)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    out = np.empty((width, height) if self.inputs else (height, width), dtype)
    total = math.prod(source.shapes()[name])
    step = max(1, _BLOCK // (4 * width))
    for start in range(0, height, step):
      stop = min(start + step, height)
      offset = self.first_row + rows.start
      block = source.read(
        name, slice(offset + start, offset + stop), columns
      ).reshape(stop - start, width)
      if self.inputs:
        out[:, start:stop] = block.T
      else:
        out[start:stop] = block
      progress(round(source.nbytes(name) * block.size / total))
    return out.reshape(shape)

  def write(self, parameter: np.ndarray) -> np.ndarray:
    """The stored rows of one layer's parameter; the inverse of `read`."""
    if self.inputs:
      rows, columns = self.stored
      return np.ascontiguousarray(parameter.reshape(columns, rows).T)
    return parameter.reshape(self.stored)


def _span(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
  """One slice of axes that a stored tensor has as one."""
  inner = math.prod(shape[1:])
  if any(
    part.indices(size)[:2] != (0, size)
    for part, size in zip(index[1:], shape[1:], strict=True)
  ):
    raise ValueError(f'{index} of {shape} is no block of the stored tensor')
  start, stop, _ = index[0].indices(shape[0])
  return slice(start * inner, stop * inner)


def _weights(config: DecoderConfig) -> dict[tuple, tuple[_Weight, nnx.Param]]:
  """Every parameter by its path: where it lies, and its shape and axes."""
  _, params = nnx.split(abstract_decoder(config, jnp.dtype(jnp.float32)))
  flat = {
    '.'.join(map(str, path)): (path, variable)
    for path, variable in nnx.to_flat_state(params)
  }
  names = families.FAMILIES[config.model_type].names
  rows: dict[str, int] = {}
  weights = {}
  # In the order of the table, which is that of rows in shared tensors.
  for dotted, template in names.items():
    if dotted not in flat:
      continue
    path, variable = flat.pop(dotted)
    stacked = dotted.startswith('layers.')
    shape = tuple(variable.shape[1:] if stacked else variable.shape)
    inputs = 2 if dotted == 'layers.attention.o' else 1
    if dotted == 'embedding':
      inputs, stored = 0, shape
    elif dotted.endswith(_VECTORS):
      inputs, stored = 0, (math.prod(shape),)
    else:
      stored = math.prod(shape[inputs:]), math.prod(shape[:inputs])
    weight = _Weight(
      names=tuple(
        template.format(i) for i in range(config.num_layers if stacked else 1)
      ),
      stacked=stacked,
      shape=shape,
      stored=stored,
      inputs=inputs,
      first_row=rows.get(template, 0),
    )
    rows[template] = weight.first_row + stored[0]
    weights[path] = (weight, variable)
  if flat:
    raise AssertionError(f'{config.model_type}: no names for {sorted(flat)}')
  return weights


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Name and shape of every tensor that a checkpoint must hold."""
  shapes: dict[str, tuple[int, ...]] = {}
  for weight, _ in _weights(config).values():
    # The last part of a shared tensor comes last and knows where it ends.
    shape = (weight.first_row + weight.stored[0], *weight.stored[1:])
    shapes.update(dict.fromkeys(weight.names, shape))
  return shapes


@functools.partial(jax.jit, donate_argnums=0)
def _put_layers(stacked: Array, layers: Array, start: Array) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(stacked, layers, start, 0)


def load_decoder(
  source: TensorSource,
  config: DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh,
) -> Decoder:
  """Builds the decoder and fills it from a source.

  The host holds a few layers of one parameter at a time, and each process
  reads only what its own devices hold.

  Args:
    source: the tensors.
    config: the architecture.
    dtype: of the weights on the device.
    mesh: over which `partitioning.LOGICAL_AXIS_RULES` lays the weights.

  Returns:
    The decoder.

  Raises:
    errors.UserError: tensors are missing, surplus or misshapen (all listed).
  """
  _check_shapes(source, config)
  plan = []
  total = 0
  for path, (weight, variable) in _weights(config).items():
    axes = variable.get_metadata('axes')
    partitioning.check_divisible(mesh, axes, weight.shape, weight.names[0])
    sharding = partitioning.named_sharding(mesh, axes)
    places = sharding.addressable_devices_indices_map(weight.shape)
    if weight.stacked:
      sharding = partitioning.named_sharding(mesh, ('layers', *axes))
    devices: dict[tuple, list[jax.Device]] = {}
    for device, index in places.items():
      spans = tuple(
        part.indices(size)[:2]
        for part, size in zip(index or (), weight.shape, strict=True)
      )
      devices.setdefault(spans, []).append(device)
    plan.append((path, weight, variable, sharding, devices))
    for spans in devices:
      part = math.prod(b - a for a, b in spans) / math.prod(
        source.shapes()[weight.names[0]]
      )
      total += sum(round(source.nbytes(n) * part) for n in weight.names)

  if config.tie_embeddings:
    _check_tied_head(source, config)
  graph, _ = nnx.split(abstract_decoder(config, dtype))
  loaded = []
  with tqdm.tqdm(
    total=total,
    desc='loading the base',
    unit='B',
    unit_scale=True,
    leave=False,
    dynamic_ncols=True,
  ) as bar:

    def parts(weight, sharding, devices, first, last) -> Array:
      """Layers of a parameter, or a whole one that is not stacked."""
      shards = []
      for spans, places in devices.items():
        index = tuple(slice(*span) for span in spans)
        read = functools.partial(
          weight.read,
          source,
          index=index,
          dtype=np.dtype(dtype),
          progress=bar.update,
        )
        if weight.stacked:
          part = np.stack([read(i) for i in range(first, last)])
        else:
          part = read(0)
        shards += [jax.device_put(part, device) for device in places]
      shape = (last - first, *weight.shape) if weight.stacked else weight.shape
      return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    for path, weight, variable, sharding, devices in plan:
      count = len(weight.names)
      size = math.prod(weight.shape) * np.dtype(dtype).itemsize
      # Small parameters whole; of large ones so many layers at a time.
      step = min(count, max(1, _BLOCK // size))
      array = parts(weight, sharding, devices, 0, step)
      if step < count:
        zeros = functools.partial(jnp.zeros, (count, *weight.shape), dtype)
        array = _put_layers(jax.jit(zeros, out_shardings=sharding)(), array, 0)
      for first in range(step, count, step):
        last = min(first + step, count)
        array = _put_layers(
          array, parts(weight, sharding, devices, first, last), first
        )
        # Otherwise the host runs ahead and holds every layer at once.
        jax.block_until_ready(array)
      loaded.append((path, cast(nnx.Param, variable.replace(array))))
  return nnx.merge(graph, nnx.from_flat_state(loaded))


def _check_shapes(source: TensorSource, config: DecoderConfig) -> None:
  expected = expected_shapes(config)
  found = source.shapes()
  problems = [f'missing: {name}' for name in sorted(set(expected) - set(found))]
  # Rotary frequencies that older exports carry; ours follow from the config.
  ignored = {name for name in found if name.endswith('.rotary_emb.inv_freq')}
  if config.tie_embeddings:
    # Some exports write the tied head a second time.
    ignored.add(families.FAMILIES[config.model_type].names['head'])
  problems += [
    f'surplus: {name}' for name in sorted(set(found) - set(expected) - ignored)
  ]
  problems += [
    f'{name}: shape {list(found[name])}, expected {list(shape)}'
    for name, shape in sorted(expected.items())
    if name in found and found[name] != shape
  ]
  if problems:
    raise errors.UserError(
      f'{source.where}: the weights do not fit the config:\n  '
      + '\n  '.join(problems)
    )


def _check_tied_head(source: TensorSource, config: DecoderConfig) -> None:
  """Raises if a tied head is stored as well and is another matrix."""
  names = families.FAMILIES[config.model_type].names
  embedding, head = names['embedding'], names['head']
  if head not in source.shapes():
    return
  step = max(1, _BLOCK // (4 * config.embed_dim))
  for start in range(0, config.vocab_size, step):
    rows = slice(start, min(start + step, config.vocab_size))
    if not np.array_equal(
      source.read(head, rows), source.read(embedding, rows)
    ):
      raise errors.UserError(
        f'{source.where}: tie_word_embeddings is true, but {head} and '
        f'{embedding} differ; if the head was trained by itself, set it to '
        'false in config.json'
      )


def save_decoder(
  model: Decoder,
  directory: str | pathlib.Path,
  extra: Mapping[str, Any],
  *,
  max_shard_bytes: int = 5 << 30,
) -> None:
  """Writes weights and config.json as transformers does, in their dtype.

  Args:
    model: the decoder.
    directory: where to; made if missing.
    extra: fields of config.json that are no matter of the decoder: the ids of
      bos, eos and padding, for which transformers has defaults that seldom
      fit.
    max_shard_bytes: files are begun anew before they grow beyond it.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  config = model.config
  _, params = nnx.split(model)
  arrays = dict(nnx.to_flat_state(params))
  parts: dict[str, list[tuple[_Weight, int, tuple]]] = {}
  for path, (weight, _) in _weights(config).items():
    for i, name in enumerate(weight.names):
      parts.setdefault(name, []).append((weight, i, path))

  def tensor(name: str) -> np.ndarray:
    rows = []
    for weight, i, path in parts[name]:
      value = arrays[path][...]
      value = jax.device_get(value[i] if weight.stacked else value)
      rows.append(weight.write(np.asarray(value)))
    return np.concatenate(rows) if len(rows) > 1 else rows[0]

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
  # Without it transformers does not know whose tensors these are.
  metadata = {'format': 'pt'}
  weight_map = {}
  for number, names in enumerate(files, 1):
    file = SINGLE_FILE
    if len(files) > 1:
      file = f'model-{number:05d}-of-{len(files):05d}.safetensors'
    weight_map.update(dict.fromkeys(names, file))
    safetensors.numpy.save_file(
      {name: tensor(name) for name in names}, directory / file, metadata
    )
  if len(files) > 1:
    total = sum(math.prod(shape) for shape in shapes.values()) * itemsize
    _write_json(
      directory / INDEX_FILE,
      {'metadata': {'total_size': total}, 'weight_map': weight_map},
    )
  dtype = str(arrays[next(iter(arrays))][...].dtype)
  _write_json(
    directory / 'config.json',
    {**families.to_hf(config), **extra, 'torch_dtype': dtype},
  )


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def spread(data: np.ndarray, pieces: int = 16, width: int = 256) -> bytes:
  """Evenly spaced pieces of a byte array: its content, cheaply."""
  starts = np.linspace(0, max(0, data.size - width), pieces, dtype=np.int64)
  return b''.join(data[start : start + width].tobytes() for start in starts)


def fingerprint(source: TensorSource, config: DecoderConfig) -> str:
  """Identifies a base: its config, and name, shape and samples of each tensor.

  Independent of how the tensors are spread over files and of the dtype they
  are loaded to. Samples, not all bytes: a fine-tune changes every tensor,
  and a 70B model would take minutes to hash.

  Returns:
    64 hexadecimal digits.
  """
  digest = hashlib.sha256(repr(config).encode())
  for name, shape in sorted(source.shapes().items()):
    digest.update(f'{name}{shape}'.encode())
    digest.update(source.sample(name))
  return digest.hexdigest()


def iter_arrays(model: Decoder) -> Iterator[tuple[str, jax.Array]]:
  """Name and array of every parameter, in a fixed order."""
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    yield '.'.join(map(str, path)), variable[...]
