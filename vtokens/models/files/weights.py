"""Loads weights shard by shard, and checks that they fit the config.

A block of rows is read from the file, cast and transposed. The shard of some
layers is put on its device, quantised there over all shards, and written into
the stacked parameter in place.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import PathParts
from jaxtyping import Array

from vtokens.devices import partitioning
from vtokens.host import errors, writers
from vtokens.models import quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.files.stored_names import expected_shapes, weights_of
from vtokens.models.files.weight_map import BLOCK_BYTES, TensorSource, Weight

# Start and stop along each axis.
_Spans = tuple[tuple[int, int], ...]
# An error has a line for each tensor, or one line for more tensors than this.
_LISTED = 8


@functools.partial(jax.jit, donate_argnums=0)
def _put_layers(stacked: Array, layers: Array, start: Array) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(stacked, layers, start, 0)


def load_decoder(
  source: TensorSource,
  config: DecoderConfig,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh,
  method: str = 'none',
) -> Decoder:
  """Builds the decoder and fills it from a source.

  The host holds a few layers of one parameter at a time, and each process reads
  only the parts of its own devices. A stack of matrices that is quantised never
  exists whole in float, neither on the host nor on the devices.

  Args:
    source: the tensors.
    config: the architecture.
    dtype: dtype of the weights on the device.
    mesh: mesh over which `partitioning.LOGICAL_AXIS_RULES` shards the weights.
    method: quantisation of the layers' matrices; see `config.Base.quantize`.
      It starts from the stored values and does not depend on `dtype`.

  Returns:
    The decoder.

  Raises:
    errors.UserError: tensors are missing, surplus or misshapen.
  """
  check_shapes(source, config)
  graph, params = nnx.split(abstract_decoder(config, dtype, mesh, method))
  variables: dict[PathParts, Any] = dict(nnx.to_flat_state(params))
  plan = []
  total = 0
  shapes = source.shapes()
  for path, (weight, variable) in weights_of(config, shapes).items():
    axes = variable.get_metadata('axes')
    partitioning.check_divisible(mesh, axes, weight.shape, weight.names[0])
    sharding = partitioning.named_sharding(mesh, axes)
    places = sharding.addressable_devices_indices_map(weight.shape)
    if weight.stacked:
      sharding = partitioning.named_sharding(mesh, ('layers', *axes))
    scales = variables.get((*path, 'scales'))
    if scales is not None:
      partitioning.check_divisible(
        mesh,
        scales.get_metadata('axes'),
        scales.shape[1:],
        f'{weight.names[0]}, quantised to {method}: the array of scales',
      )
    devices: dict[_Spans, list[jax.Device]] = {}
    for device, index in places.items():
      spans = tuple(
        part.indices(size)[:2]
        for part, size in zip(index or (), weight.shape, strict=True)
      )
      devices.setdefault(spans, []).append(device)
    plan.append((path, weight, sharding, devices))
    for spans in devices:
      # Experts of one layer may be in several tensors.
      tensors = len(weight.names) // weight.layers
      part = math.prod(b - a for a, b in spans) / (
        tensors * math.prod(shapes[weight.names[0]])
      )
      total += sum(round(source.nbytes(n) * part) for n in weight.names)

  if config.tie_embeddings:
    _check_tied_head(source, config)
  loaded: list[tuple[PathParts, nnx.Param[Array]]] = []
  with writers.progress(
    total=total,
    desc='loading the base',
    unit='B',
    unit_scale=True,
    leave=False,
  ) as bar:

    def parts(
      weight: Weight,
      kind: np.dtype,
      sharding: jax.sharding.NamedSharding,
      devices: Mapping[_Spans, Sequence[jax.Device]],
      first: int,
      last: int,
    ) -> Array:
      """Some layers of a stacked parameter, or a whole unstacked one."""
      shards = []
      for spans, places in devices.items():
        index = tuple(slice(*span) for span in spans)
        sizes = [b - a for a, b in spans]
        # Filled in place: stacking a list of layers would hold them twice.
        part = np.empty((last - first, *sizes), kind)
        for number in range(first, last):
          layer = part[number - first, ...]  # A view, of a number too.
          weight.read(source, number, index, layer, bar.update)
        if not weight.stacked:
          (part,) = part
        shards += [jax.device_put(part, device) for device in places]
      shape = (last - first, *weight.shape) if weight.stacked else weight.shape
      return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    for path, weight, sharding, devices in plan:
      count = weight.layers
      arrays: tuple[Array, ...]
      paths: list[PathParts]
      convert: Callable[[Array], tuple[Array, ...]]
      if path in variables:
        kind, paths = np.dtype(variables[path].dtype), [path]
        convert = lambda block: (block,)  # noqa: E731 (one of two functions)
      else:
        # float32 holds every stored dtype exactly, so scales do not depend on
        # `dtype`.
        kind = np.dtype(np.float32)
        paths = [
          (*path, name)
          for name in ('values', 'scales')
          if (*path, name) in variables
        ]
        # On the devices, so that a sharded matrix gets the scales of the whole
        # matrix.
        convert = jax.jit(
          quantize.stacked(
            weight.inputs, method, quantize.matrix_outer(variables[paths[0]])
          ),
          out_shardings=tuple(
            _stacked_sharding(mesh, variables[p]) for p in paths
          ),
        )
      size = math.prod(weight.shape) * kind.itemsize
      # Layers per step: all of a small parameter, a few of a large one.
      step = min(count, max(1, BLOCK_BYTES // size))
      if step == count:
        arrays = convert(parts(weight, kind, sharding, devices, 0, count))
      else:
        arrays = tuple(_zeros(mesh, variables[p]) for p in paths)
        for first in range(0, count, step):
          last = min(first + step, count)
          block = convert(parts(weight, kind, sharding, devices, first, last))
          arrays = tuple(
            _put_layers(array, layers, first)
            for array, layers in zip(arrays, block, strict=True)
          )
          # Otherwise the host would run ahead and hold every layer at once.
          jax.block_until_ready(arrays)
      loaded += [
        (p, variables[p].replace(array))
        for p, array in zip(paths, arrays, strict=True)
      ]
  return nnx.merge(graph, nnx.from_flat_state(loaded))


def _stacked_sharding(
  mesh: jax.sharding.Mesh, variable: nnx.Param[Array]
) -> jax.sharding.NamedSharding:
  """The sharding of a stacked parameter."""
  axes = variable.get_metadata('axes')
  return partitioning.named_sharding(mesh, ('layers', *axes))


def _zeros(mesh: jax.sharding.Mesh, variable: nnx.Param[Array]) -> Array:
  """A parameter of zeros, for layers to be written into."""
  zeros = functools.partial(jnp.zeros, variable.shape, variable.dtype)
  sharding = _stacked_sharding(mesh, variable)
  array: Array = jax.jit(zeros, out_shardings=sharding)()
  return array


def check_shapes(source: TensorSource, config: DecoderConfig) -> None:
  """Compares the tensors of a source with the tensors that a config needs.

  Raises:
    errors.UserError: tensors are missing, surplus or misshapen.
  """
  found = source.shapes()
  expected = expected_shapes(config, found)
  # Older exports store rotary frequencies. Here they follow from the config.
  ignored = {name for name in found if name.endswith('.rotary_emb.inv_freq')}
  if config.tie_embeddings:
    # Some exports store the tied head a second time.
    ignored.add(registry.family_of(config).names['head'])
  missing = sorted(set(expected) - set(found))
  surplus = sorted(
    name
    for name in set(found) - set(expected) - ignored
    if not _adds_nothing(name, source, expected)
  )
  misshapen = [
    f'{name}: shape {list(found[name])}, expected {list(shape)}'
    for name, shape in sorted(expected.items())
    if name in found and found[name] != shape
  ]
  if missing or surplus or misshapen:
    raise errors.UserError(
      f'{source.where}: the weights do not fit the config:'
      + _listed('missing', missing)
      + _listed('surplus', surplus)
      + errors.lines(misshapen)
      + _renamed(missing, surplus)
    )


def _adds_nothing(
  name: str, source: TensorSource, expected: Mapping[str, tuple[int, ...]]
) -> bool:
  """Whether a tensor is a bias of zeros, of a matrix that has no bias.

  AutoGPTQ gave every quantised matrix a bias; servers leave it out.

  Args:
    name: name of a tensor that the model does not have.
    source: the tensors.
    expected: shapes of the tensors that the model has.
  """
  module = name.removesuffix('.bias')
  shape = expected.get(f'{module}.weight', ())
  return (
    module != name
    and source.shapes()[name] == shape[:1]
    and not source.read(name).any()
  )


def _listed(kind: str, names: Sequence[str]) -> str:
  """A line for each tensor, or one line for more than `_LISTED`."""
  if len(names) <= _LISTED:
    return ''.join(f'\n  {kind}: {errors.shorten(name)}' for name in names)
  prefix = errors.common_prefix(names)
  common = f', all beginning with {errors.shorten(prefix)}' if prefix else ''
  return f'\n  {kind}: {len(names):,} tensors{common}: {errors.several(names)}'


def _renamed(missing: Sequence[str], surplus: Sequence[str]) -> str:
  """Advice if the tensors only have different names."""
  if not missing or not surplus:
    return ''
  prefix = errors.common_prefix(surplus)
  if prefix and {n.removeprefix(prefix) for n in surplus} >= set(missing):
    return (
      f'\nThe missing tensors are there with {errors.shorten(prefix)} before '
      'their names; rename them in the files'
    )
  prefix = errors.common_prefix([n for n in missing if n.count('.') > 1])
  if prefix and {prefix + n for n in surplus} <= set(missing):
    return (
      f'\nThe surplus tensors are missing ones without {prefix} before their '
      'names: the model was saved without its head; save it as a causal '
      'language model (AutoModelForCausalLM)'
    )
  return ''


def _check_tied_head(source: TensorSource, config: DecoderConfig) -> None:
  """Raises if a stored tied head differs from the embedding."""
  names = registry.family_of(config).names
  embedding, head = names['embedding'], names['head']
  if head not in source.shapes():
    return
  step = max(1, BLOCK_BYTES // (4 * config.embed_dim))
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


def iter_arrays(model: Decoder) -> Iterator[tuple[str, jax.Array]]:
  """Name and array of every parameter, in a fixed order."""
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    yield '.'.join(map(str, path)), variable[...]
