"""Whether attention uses kernels, in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.kernels import chosen
from vtokens.models.mixers.delta_net import DeltaNet
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.models.mixers.shared_heads import Heads

_PLAIN = DecoderConfig(
  vocab_size=8,
  embed_dim=8,
  num_layers=6,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  mlp_dim=8,
)
_ALTERNATING = dataclasses.replace(
  _PLAIN, layer_pattern=(LayerKind(window=9), LayerKind())
)
_WIDE = LayerKind(mixer=Heads(512, 2))
_RECURRENT = LayerKind(mixer=DeltaNet(2, 4, 8, 6, 4))
_LATENT = LatentAttention(16, 4, 8, 6)


@dataclasses.dataclass(frozen=True)
class _Device:
  platform: str
  device_kind: str


def _describe(config, platform, kind, dtype='bfloat16'):
  devices = np.array([_Device(platform, kind)]).reshape(1, 1, 1)
  mesh = jax.sharding.Mesh(devices, partitioning.MESH_AXES)
  return chosen.describe(config, jnp.dtype(dtype), mesh)


@pytest.mark.parametrize(
  ('changes', 'dtype', 'kind', 'expected'),
  [
    ({}, 'bfloat16', 'NVIDIA H100 80GB HBM3', "vtokens' kernels"),
    (
      {},
      'float32',
      'NVIDIA H200',
      'matrix products (the kernels take bfloat16, and config.base.dtype is '
      'float32)',
    ),
    (
      {},
      'bfloat16',
      'NVIDIA L4',
      'matrix products (the kernels were not compiled for NVIDIA L4)',
    ),
    (
      {'kernels': False},
      'bfloat16',
      'NVIDIA H200',
      'matrix products (config.base.attention=plain)',
    ),
    (
      {'layer_pattern': (LayerKind(window=9), LayerKind(), _WIDE)},
      'bfloat16',
      'NVIDIA H200',
      "vtokens' kernels; matrix products in 2 of 6 layers (heads of 512 are "
      'wider than 256)',
    ),
    (
      {'layer_pattern': (_RECURRENT, LayerKind())},
      'bfloat16',
      'NVIDIA H200',
      "vtokens' kernels",
    ),
    ({'layer_pattern': (_RECURRENT,)}, 'bfloat16', 'NVIDIA H200', ''),
    (
      {'attention': _LATENT},
      'bfloat16',
      'NVIDIA H200',
      'matrix products (latent attention)',
    ),
  ],
)
def test_on_gpus(changes, dtype, kind, expected):
  config = dataclasses.replace(_PLAIN, **changes)
  assert _describe(config, 'gpu', kind, dtype) == expected


def test_on_tpus():
  splash = "JAX's splash attention among passages"
  assert _describe(_PLAIN, 'tpu', 'TPU v5e') == splash
  found = _describe(_ALTERNATING, 'tpu', 'TPU v5e')
  assert found.startswith('matrix products (windows differ between the layers')
  apart = dataclasses.replace(_ALTERNATING, scan_layers=False)
  assert _describe(apart, 'tpu', 'TPU v5e') == splash
  # Angles alone may differ.
  for window in (None, 9):
    ropes = (LayerKind(rope=None, window=window), LayerKind(window=window))
    same = dataclasses.replace(_PLAIN, layer_pattern=ropes)
    assert _describe(same, 'tpu', 'TPU v5e') == splash


def test_cpus_have_no_kernels():
  assert _describe(_PLAIN, 'cpu', 'cpu') == ''
