"""Weights of a Hugging Face directory: which tensor is which parameter."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from vtokens import errors, partitioning
from vtokens.models import config as model_config
from vtokens.models import decoder

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_FLOATS = ('F16', 'BF16', 'F32')
# Tensors of at most so many values go into the fingerprint whole: all norms.
_SMALL = 1 << 16

# Parameter path -> tensor name, `{}` being the layer. A projection is stored
# as [out, in] with heads and head width in one axis; ours is [in, ...].
_NAMES = {
  'embedding': 'model.embed_tokens.weight',
  'head': 'lm_head.weight',
  'norm.scale': 'model.norm.weight',
  'layers.attention_norm.scale': 'model.layers.{}.input_layernorm.weight',
  'layers.attention.q': 'model.layers.{}.self_attn.q_proj.weight',
  'layers.attention.k': 'model.layers.{}.self_attn.k_proj.weight',
  'layers.attention.v': 'model.layers.{}.self_attn.v_proj.weight',
  'layers.attention.o': 'model.layers.{}.self_attn.o_proj.weight',
  'layers.mlp_norm.scale': 'model.layers.{}.post_attention_layernorm.weight',
  'layers.mlp.gate': 'model.layers.{}.mlp.gate_proj.weight',
  'layers.mlp.up': 'model.layers.{}.mlp.up_proj.weight',
  'layers.mlp.down': 'model.layers.{}.mlp.down_proj.weight',
}
_UNTRANSPOSED = ('embedding', 'scale')

# Rotary frequencies that older exports carry; ours follow from the config.
_IGNORED = re.compile(r'.*\.rotary_emb\.inv_freq')


class TensorSource(Protocol):
  """Named tensors of one model, read one at a time."""

  where: str

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by its Hugging Face name."""

  def read(self, name: str) -> np.ndarray:
    """One tensor: f16, bf16 or f32."""

  def sample(self, name: str) -> bytes:
    """A small fixed part of the stored bytes, for the fingerprint."""


def spread(data: np.ndarray, pieces: int = 16, width: int = 256) -> bytes:
  """Evenly spaced pieces of a byte array: its content, cheaply."""
  starts = np.linspace(0, max(0, data.size - width), pieces, dtype=np.int64)
  return b''.join(data[start : start + width].tobytes() for start in starts)


class SafetensorsSource:
  """The safetensors files of a directory, mapped into memory.

  Raises:
    errors.UserError: there are none, only pickled ones, or a file that the
      index names is missing, lies elsewhere, or cannot be read.
  """

  def __init__(self, directory: str | pathlib.Path):
    self.where = str(directory)
    self._files = {}
    self._file_of = {}
    self._stack = contextlib.ExitStack()
    for path in _weight_files(pathlib.Path(directory)):
      try:
        file = self._stack.enter_context(
          safetensors.safe_open(path, framework='numpy')
        )
        for name in file.keys():  # noqa: SIM118 (not a mapping)
          self._file_of[name] = path
      except (OSError, safetensors.SafetensorError) as e:
        raise errors.UserError(
          f'{path}: not a readable safetensors file ({e}); download or copy '
          'it again'
        ) from e
      self._files[path] = file

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """See `TensorSource`."""
    shapes = {}
    for name, path in self._file_of.items():
      part = self._files[path].get_slice(name)
      if part.get_dtype() not in _FLOATS:
        raise errors.UserError(
          f'{path}: tensor {name} is {part.get_dtype()}, expected one of '
          f'{", ".join(_FLOATS)} (quantised safetensors are not supported)'
        )
      shapes[name] = tuple(part.get_shape())
    return shapes

  def read(self, name: str) -> np.ndarray:
    """See `TensorSource`."""
    return self._files[self._file_of[name]].get_tensor(name)

  def sample(self, name: str) -> bytes:
    """See `TensorSource`."""
    rows = self._files[self._file_of[name]].get_slice(name)
    shape = rows.get_shape()
    if np.prod(shape) <= _SMALL:
      return self.read(name).tobytes()
    picks = sorted({int(i) for i in np.linspace(0, shape[0] - 1, 4)})
    return b''.join(
      spread(np.ascontiguousarray(rows[i : i + 1]).view(np.uint8).reshape(-1))
      for i in picks
    )


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  index = directory / _INDEX
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise errors.UserError(
        f'{index}: not a readable index of weight files ({e!r}); download or '
        'copy it again'
      ) from None
    for name in names:
      if pathlib.PurePath(name).name != name or name in ('.', '..'):
        raise errors.UserError(
          f'{index}: weight_map names {name!r}, expected a plain file name '
          'inside the directory'
        )
    paths = [directory / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise errors.UserError(
        f'{directory}: {len(missing)} of {len(paths)} weight files are '
        f'missing: {", ".join(missing)}; finish the download'
      )
    return paths
  if (directory / _SINGLE).is_file():
    return [directory / _SINGLE]
  pickled = [*directory.glob('*.bin'), *directory.glob('*.pt')]
  if pickled:
    raise errors.UserError(
      f'{directory}: only pickled weights ({pickled[0].name}), which can run '
      'code when read; convert them to safetensors with '
      'save_pretrained(..., safe_serialization=True)'
    )
  raise errors.UserError(f'{directory}: found neither {_SINGLE} nor {_INDEX}')


def read_config(directory: str | pathlib.Path) -> model_config.DecoderConfig:
  """The `DecoderConfig` of a Hugging Face directory.

  Raises:
    errors.UserError: config.json is missing, not JSON, or not supported.
  """
  path = pathlib.Path(directory) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError:
    raise errors.UserError(
      f'{path}: not found; expected a Hugging Face model directory'
    ) from None
  except ValueError as e:
    raise errors.UserError(f'{path}: not JSON ({e})') from None
  if not isinstance(raw, dict):
    raise errors.UserError(
      f'{path}: holds a JSON {type(raw).__name__}, expected an object'
    )
  return model_config.from_hf(raw, str(path))


@dataclasses.dataclass(frozen=True)
class _Weight:
  """Where one parameter comes from.

  Attributes:
    names: the tensor of each layer, or the one tensor.
    stacked: whether the parameter has a leading layer axis.
    stored: shape of each tensor in the file.
    convert: from the stored tensor to the parameter (of one layer).
  """

  names: tuple[str, ...]
  stacked: bool
  stored: tuple[int, ...]
  convert: Callable[[np.ndarray], np.ndarray]


def _weight(
  path: str, shape: tuple[int, ...], config: model_config.DecoderConfig
) -> _Weight:
  stacked = path.startswith('layers.')
  if stacked:
    shape = shape[1:]
  count = config.num_layers if stacked else 1
  names = tuple(_NAMES[path].format(i) for i in range(count))
  if path.endswith(_UNTRANSPOSED):
    return _Weight(names, stacked, shape, lambda w: w)
  inputs = 2 if path == 'layers.attention.o' else 1
  stored = (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))
  return _Weight(names, stacked, stored, lambda w: w.T.reshape(shape))


def load_decoder(
  source: TensorSource,
  config: model_config.DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh,
) -> decoder.Decoder:
  """Builds the decoder and fills it from a source, shard by shard.

  Each parameter is assembled on the host for one device shard at a time, so
  that no second copy of the model ever exists.

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
  model = decoder.abstract_decoder(config, dtype)
  graph, params = nnx.split(model)
  flat = nnx.to_flat_state(params)
  weights = {
    path: _weight('.'.join(map(str, path)), variable.shape, config)
    for path, variable in flat
  }
  _check_shapes(source, list(weights.values()), config)

  def load(weight: _Weight, variable: nnx.Param) -> nnx.Param:
    axes = variable.get_metadata('axes')
    if weight.stacked:
      axes = ('layers', *axes)
    partitioning.check_divisible(mesh, axes, variable.shape, weight.names[0])
    sharding = partitioning.named_sharding(mesh, axes)

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
      return weight.convert(source.read(name))[index].astype(dtype)

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
      if index is None:  # For a sharding that places nothing here.
        index = ()
      if not weight.stacked:
        return read(weight.names[0], index)
      names = weight.names[index[0]]
      first = read(names[0], index[1:])
      out = np.empty((len(names), *first.shape), dtype)
      out[0] = first
      for i, name in enumerate(names[1:], 1):
        out[i] = read(name, index[1:])
      return out

    array = jax.make_array_from_callback(variable.shape, sharding, shard)
    return cast(nnx.Param, variable.replace(array))

  loaded = [(path, load(weights[path], variable)) for path, variable in flat]
  return nnx.merge(graph, nnx.from_flat_state(loaded))


def _check_shapes(
  source: TensorSource,
  weights: list[_Weight],
  config: model_config.DecoderConfig,
) -> None:
  expected = {name: w.stored for w in weights for name in w.names}
  found = source.shapes()
  problems = [f'missing: {name}' for name in sorted(set(expected) - set(found))]
  ignored = {n for n in found if _IGNORED.fullmatch(n)}
  if config.tie_embeddings:
    # Some exports write the tied head a second time.
    ignored.add(_NAMES['head'])
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


def fingerprint(
  source: TensorSource, config: model_config.DecoderConfig
) -> str:
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


def iter_arrays(model: decoder.Decoder) -> Iterator[tuple[str, jax.Array]]:
  """Name and array of every parameter, in a fixed order."""
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    yield '.'.join(map(str, path)), variable[...]
