"""The frozen base: weights, tokenizer and identity."""

import dataclasses
import itertools
import os
import pathlib
import sys
from typing import Any

import flax.nnx as nnx
import huggingface_hub
import jax
import jax.numpy as jnp

from vtokens import config
from vtokens.host import errors, paths
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.files import (
  directory_files,
  fingerprints,
  gguf_weights,
  hf_directory,
  weights,
)
from vtokens.models.files.weight_map import TensorSource
from vtokens.models.kernels import kernel_check
from vtokens.models.tokenizers.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class FrozenBase:
  """A loaded base. Its weights never change.

  Attributes:
    path: path or hub id in the config.
    config: its architecture.
    graph: structure of the `Decoder`.
    params: its weights.
    tokenizer: its tokenizer.
    fingerprint: identifies the files, whatever `quantize` is; see
      `fingerprints.of_base`.
    quantize: quantisation of the matrices; see `config.Base`.
  """

  path: str
  config: DecoderConfig
  graph: nnx.GraphDef[Decoder]
  params: nnx.State[str, Any]
  tokenizer: Tokenizer
  fingerprint: str
  quantize: str = 'none'

  def decoder(self) -> Decoder:
    """The model itself."""
    return nnx.merge(self.graph, self.params)


@dataclasses.dataclass(frozen=True)
class OpenBase:
  """A base whose weights are not loaded.

  Attributes:
    settings: path, dtype and quantisation.
    source: source of its weights.
    config: its architecture.
    tokenizer: its tokenizer.
    fingerprint: see `FrozenBase`.
  """

  settings: config.Base
  source: TensorSource
  config: DecoderConfig
  tokenizer: Tokenizer
  fingerprint: str

  def load(self, mesh: jax.sharding.Mesh) -> FrozenBase:
    """Loads the weights.

    Args:
      mesh: mesh over which the weights are sharded.

    Raises:
      errors.UserError: the weights are broken, or the GPU kernels give wrong
        results on this machine.
    """
    dtype = jnp.dtype(self.settings.dtype)
    kernel_check.check(self.config, dtype, mesh)
    decoder = weights.load_decoder(
      self.source,
      self.config,
      dtype,
      mesh,
      self.settings.quantize,
    )
    graph, params = nnx.split(decoder)
    return FrozenBase(
      path=self.settings.path,
      config=self.config,
      graph=graph,
      params=params,
      tokenizer=self.tokenizer,
      fingerprint=self.fingerprint,
      quantize=self.settings.quantize,
    )


class BaseKeeper:
  """Opens and loads bases, and keeps the last one.

  So several runs of one process read their base's files once.
  """

  def __init__(self) -> None:
    self._wanted: tuple[config.Base, int | None] | None = None
    self._open: OpenBase | None = None
    self._of: tuple[OpenBase, jax.sharding.Mesh] | None = None
    self._loaded: FrozenBase | None = None

  def open(self, settings: config.Base, context_length: int | None) -> OpenBase:
    """Opens a base; see `open_base`."""
    wanted = dataclasses.replace(settings), context_length
    if self._open is None or self._wanted != wanted:
      self._open, self._wanted = open_base(*wanted), wanted
    return self._open

  def load(self, base: OpenBase, mesh: jax.sharding.Mesh) -> FrozenBase:
    """Loads a base that `open` returned; see `OpenBase.load`."""
    same = self._of is not None and self._of[0] is base and self._of[1] == mesh
    if self._loaded is None or not same:
      self._loaded = None  # Memory may not hold two.
      self._loaded, self._of = base.load(mesh), (base, mesh)
    return self._loaded


def open_base(
  settings: config.Base, context_length: int | None = None
) -> OpenBase:
  """Finds a base and reads everything but its weights.

  Args:
    settings: see `OpenBase`.
    context_length: longest sequence that will be run; see `DecoderConfig`.

  Raises:
    errors.UserError: it is not found, not supported, or broken.
  """
  path = resolve(settings.path)
  source, architecture = _open(path)
  # First, because numbers of the config decide the size of arrays below.
  weights.check_shapes(source, architecture)
  # Without `context_length`: it belongs to the run, not to the base.
  fingerprint = fingerprints.of_base(source, architecture)
  tokenizer = load_tokenizer(path, architecture.vocab_size)
  return OpenBase(
    settings=settings,
    source=source,
    config=dataclasses.replace(
      architecture,
      context_length=context_length,
      kernels=settings.attention == 'auto',
      scan_layers=settings.scan_layers,
    ),
    tokenizer=tokenizer,
    fingerprint=fingerprint,
  )


def load_base(
  settings: config.Base,
  mesh: jax.sharding.Mesh,
  context_length: int | None = None,
) -> FrozenBase:
  """`open_base` and then `OpenBase.load`."""
  return open_base(settings, context_length).load(mesh)


def longest_sequence(base: OpenBase | FrozenBase) -> int:
  """Most tokens that the base takes."""
  most = base.config.longest_sequence
  # Elsewhere positions do not depend on it; see `DecoderConfig`.
  if any(
    kind.rope is not None and kind.rope.type in ('dynamic', 'longrope')
    for kind in base.config.layer_pattern
  ):
    return base.config.context_length or most
  return most


def tokenizer_of(settings: config.Base) -> Tokenizer:
  """The base's tokenizer alone.

  Raises:
    errors.UserError: it is not found or not supported.
  """
  path = resolve(settings.path)
  if path.endswith('.gguf'):
    # llama.cpp takes no file with more tokens than rows.
    return load_tokenizer(path)
  directory_files.check(path)
  return load_tokenizer(path, hf_directory.read_config(path).vocab_size)


def revision(path: str) -> str:
  """The hub's commit of the base at `config.base.path`; '' for a local base.

  Raises:
    errors.UserError: the base is not found.
  """
  return '' if pathlib.Path(path).exists() else commit(resolve(path))


def commit(path: str) -> str:
  """The commit of a path in the cache of huggingface_hub; '' elsewhere.

  Args:
    path: path of a repository or of a file in it.
  """
  parts = pathlib.Path(path).parts
  # models--ORG--NAME/snapshots/COMMIT/...
  for before, at in itertools.pairwise(parts):
    if before == 'snapshots':
      return at
  return ''


def _open(path: str) -> tuple[TensorSource, DecoderConfig]:
  if path.endswith('.gguf'):
    source = gguf_weights.GGUFSource(path)
    return source, source.config
  directory_files.check(path)
  # The config first, so that an unsupported type is reported as such.
  architecture = hf_directory.read_config(path)
  return hf_directory.SafetensorsSource(path), architecture


def resolve(path: str) -> str:
  """The local directory or file of `config.base.path`.

  A hub id is downloaded (safetensors and tokenizer only) or, offline, found in
  the cache.

  Raises:
    errors.UserError: the base is not found.
  """
  path = paths.resolve(path)
  if pathlib.Path(path).exists():
    if path.endswith('.gguf') or not os.path.isdir(path):
      paths.check_file(path, sys.maxsize)
    return path
  paths.check_on_disk(path)
  if path.endswith('.gguf') or path.count('/') != 1 or path.startswith('.'):
    raise errors.UserError(f'config.base.path: {path} does not exist')
  try:
    return huggingface_hub.snapshot_download(
      path,
      allow_patterns=['*.json', '*.safetensors', '*.model', '*.jinja'],
      # The same weights in Mistral's and Meta's own format.
      ignore_patterns=['consolidated*', 'original/*'],
    )
  # The hub raises its own errors and errors of its HTTP client, which depends
  # on the version.
  except Exception as e:
    raise errors.UserError(
      f'config.base.path: {path} is no local path, and as a Hugging Face id '
      f'it cannot be had: {e}'
    ) from e
