"""What computes attention over many tokens, and why, in words."""

import collections

import jax.numpy as jnp
from jax.sharding import Mesh

from vtokens.devices import partitioning
from vtokens.models import layer_kinds, layer_runs
from vtokens.models.decoder_config import DecoderConfig, attends
from vtokens.models.kernels import flash, splash
from vtokens.models.mixers.latent_attention import LatentAttention

_KERNELS = {
  'tpu': "JAX's splash attention among passages",
  'gpu': "vtokens' kernels",
}


def describe(config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh) -> str:
  """Kernels or matrix products, and why matrix products.

  Args:
    config: the base's architecture.
    dtype: dtype of its activations.
    mesh: the devices.

  Returns:
    A text for people; '' where there are no kernels, as on CPUs, or no
    attention.
  """
  platform = partitioning.platform(mesh)
  obstacles = _obstacles(config, dtype, mesh)
  if platform not in _KERNELS or not obstacles:
    return ''
  total = obstacles.total()
  plain = [
    f'matrix products ({why})'
    if count == total
    else f'matrix products in {count} of {total} layers ({why})'
    for why, count in obstacles.items()
    if why
  ]
  kernel = [_KERNELS[platform]] if '' in obstacles else []
  return '; '.join([*kernel, *plain])


def _obstacles(
  config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh
) -> collections.Counter[str]:
  """Why layers use no kernel ('' if they use one), and how many layers."""
  found: collections.Counter[str] = collections.Counter()
  for numbers in layer_runs.stacks(config):
    kinds = [config.layer_kinds[i] for i in numbers]
    for kind in kinds:
      if not attends(kind.mixer):
        continue
      if not config.kernels:
        why = 'config.base.attention=plain'
      elif isinstance(kind.mixer or config.attention, LatentAttention):
        why = 'latent attention'
      elif partitioning.platform(mesh) == 'tpu':
        why = splash.obstacle(mesh, varies=layer_kinds.windows_vary(kinds))
      else:
        why = flash.obstacle(mesh, config.head_width(kind), dtype)
      found[why] += 1
  return found
