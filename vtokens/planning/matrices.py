"""The matrices that a token is multiplied with, layer by layer.

They are read from the decoder's weights, so any token mixer and any MLP counts.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from vtokens.models import layer_runs, quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder_config import DecoderConfig, Without

_STREAM = 'embed'  # Logical axis of the residual stream.
# Matrices of token mixers that only make their output.
_FOR_OUTPUTS = frozenset(('q', 'q_down', 'kv', 'gate', 'in_z', 'out_gate'))


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A matrix, or the matrices of the experts of a layer.

  Attributes:
    part: part of the block that it belongs to, e.g. attention or mlp.
    name: its name within that part.
    inputs: numbers that it is multiplied with.
    outputs: numbers that the product has.
    count: matrices of this shape: the experts.
    active: matrices that one token is multiplied with.
    experts: whether it belongs to an expert.
    reads_stream: whether it is multiplied with the residual stream.
    writes_stream: whether its product is added to the residual stream.
  """

  part: str
  name: str
  inputs: int
  outputs: int
  count: int
  active: float
  experts: bool
  reads_stream: bool
  writes_stream: bool

  @property
  def caches(self) -> bool:
    """Whether the cache of its layer depends on it."""
    if self.part != 'attention' or self.writes_stream:
      return False
    return self.name.split('.')[-1] not in _FOR_OUTPUTS

  @property
  def after_layers(self) -> bool:
    """Whether it joins the residual streams behind the last layer."""
    return self.part == 'streams' and self.name.startswith('last.')

  @property
  def weights(self) -> int:
    """Weights of all its matrices."""
    return self.count * self.inputs * self.outputs

  @property
  def active_weights(self) -> float:
    """Weights that one token is multiplied with."""
    return self.active * self.inputs * self.outputs


@dataclasses.dataclass(frozen=True)
class Layer:
  """The matrices of one layer.

  Attributes:
    matrices: the matrices.
    parts: number of the mixer and the MLP: 2, or 1 for a layer with one alone.
  """

  matrices: tuple[Matrix, ...]
  parts: int

  @property
  def around(self) -> float:
    """Numbers of a token that its products read and write."""
    return sum(m.active * (m.inputs + m.outputs) for m in self.matrices)

  def inner(self, part: str | None = None) -> float:
    """Numbers of a token between its matrices, off the residual stream.

    Args:
      part: count this part of the block alone.
    """
    return sum(
      m.active
      * (m.inputs * (not m.reads_stream) + m.outputs * (not m.writes_stream))
      for m in self.matrices
      if part in (None, m.part)
    )

  @property
  def copies(self) -> float:
    """Copies of a token that its experts read."""
    return max((m.active for m in self.matrices if m.experts), default=0.0)


@functools.cache
def of_layers(config: DecoderConfig) -> tuple[Layer, ...]:
  """The matrices of each layer."""
  found: list[list[Matrix]] = [[] for _ in range(config.num_layers)]
  stacks = layer_runs.stacks(config)
  for path, param in _products(config):
    if path[0] == 'layers':
      # A decoder with one stack has no number of it in its paths.
      number, rest = (path[1], path[2:]) if len(stacks) > 1 else (0, path[1:])
      matrix = _matrix(rest, param, stacked=True)
      for layer in stacks[int(number)]:
        found[layer].append(matrix)
  alone = [
    isinstance(kind.mixer, Without) or isinstance(kind.mlp, Without)
    for kind in config.layer_kinds
  ]
  return tuple(
    Layer(tuple(matrices), 1 if one else 2)
    for matrices, one in zip(found, alone, strict=True)
  )


@functools.cache
def of_ends(config: DecoderConfig) -> tuple[Matrix, ...]:
  """The matrices before the first layer and after the last, without the head.

  They make inputs of the layers (`per_layer`) and several residual streams.
  """
  return tuple(
    _matrix(path, param, stacked=False)
    for path, param in _products(config)
    if path[0] not in ('layers', 'head')
  )


def cached_layers(config: DecoderConfig) -> int:
  """Layers that passages run through: up to the last that has a cache."""
  kinds = enumerate(config.layer_kinds)
  return 1 + max(number for number, kind in kinds if kind.has_cache)


@functools.cache
def cache_bytes(config: DecoderConfig, tokens: int) -> int:
  """Bytes of the cache of passages, in bfloat16.

  Args:
    config: the architecture.
    tokens: tokens of the passages.
  """
  dtype = jnp.dtype(jnp.bfloat16)
  graph, params = nnx.split(abstract_decoder(config, dtype))

  def encode(params: nnx.State[str, Any], x: jax.Array, ids: jax.Array) -> Any:
    return nnx.merge(graph, params).encode(x, ids, ids=ids).stacks

  made = jax.eval_shape(
    encode,
    params,
    jax.ShapeDtypeStruct((1, tokens, config.embed_dim), dtype),
    jax.ShapeDtypeStruct((1, tokens), jnp.int32),
  )
  return sum(
    math.prod(part.shape) * int(part.dtype.itemsize)
    for part in jax.tree.leaves(made)
  )


def _products(
  config: DecoderConfig,
) -> list[tuple[Sequence[Any], nnx.Variable[Any]]]:
  """Path and shapes of each weight that is a matrix."""
  params = nnx.state(abstract_decoder(config, jnp.dtype(jnp.float32)))
  return [
    (path, param)
    for path, param in nnx.to_flat_state(params)
    if quantize.matrix_inputs(param)
  ]


def _matrix(
  path: Sequence[Any], param: nnx.Variable[Any], *, stacked: bool
) -> Matrix:
  """The matrix of a weight.

  Args:
    path: names of the part and of the weight within it.
    param: the weight, without values.
    stacked: whether its first axis is that of the layers.
  """
  shape = param.shape[1:] if stacked else param.shape
  axes = param.get_metadata('axes')
  outer = quantize.matrix_outer(param)
  inner = outer + (quantize.matrix_inputs(param) or 0)
  count = math.prod(shape[:outer])
  return Matrix(
    part=str(path[0]),
    name='.'.join(map(str, path[1:])),
    inputs=math.prod(shape[outer:inner]),
    outputs=math.prod(shape[inner:]),
    count=count,
    active=count * param.get_metadata('active'),
    experts=outer > 0,
    reads_stream=axes[outer] == _STREAM,
    writes_stream=axes[-1] == _STREAM,
  )
