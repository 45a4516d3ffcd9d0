"""Properties of NVIDIA's cards, for compiling without a card.

The figures come from XLA's target configs h100_sxm, h200 and a100_sxm_80
(https://github.com/openxla/xla, xla/backends/gpu/target_config/specs).
"""

import dataclasses
import os
from collections.abc import Mapping

# Most cards that NVLink joins in one machine.
MOST_CARDS = 8
# Share of a card's memory that a JAX process takes by default
# (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
_SHARE = 0.75
_SHARE_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True)
class Card:
  """One card.

  Attributes:
    kind: JAX's name of the card.
    capability: major compute capability; 9 is Hopper.
    memory: memory in bytes.
    bandwidth: bandwidth of the memory in bytes/s.
    cores: number of streaming multiprocessors.
    units: float32 units of a multiprocessor.
    clock: clock rate in GHz.
    cache: L2 cache in bytes.
    shared: shared memory of a multiprocessor in bytes. A block of threads can
      use 1 KiB less.
  """

  kind: str
  capability: int
  memory: int
  bandwidth: int
  cores: int
  units: int
  clock: float
  cache: int
  shared: int

  @property
  def target_config(self) -> str:
    """XLA's GpuTargetConfigProto as text."""
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024
        threads_per_warp: 32
        threads_per_core_limit: 2048
        shared_memory_per_block: 49152
        shared_memory_per_block_optin: {self.shared - 1024}
        shared_memory_per_core: {self.shared}
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        core_count: {self.cores}
        fpus_per_core: {self.units}
        clock_rate_ghz: {self.clock}
        l2_cache_size: {self.cache}
        memory_bandwidth: {self.bandwidth}
        device_memory_size: {self.memory}
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        cuda_compute_capability {{ major: {self.capability} }}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      runtime_version {{ major: 12 minor: 8 }}
      device_description_str: "{self.kind}"
    """


def _hopper(kind: str, memory: int, bandwidth: int) -> Card:
  return Card(
    kind=kind,
    capability=9,
    memory=memory,
    bandwidth=bandwidth,
    cores=132,
    units=128,
    clock=1.98,
    cache=52_428_800,
    shared=233_472,
  )


CARDS = {
  'a100-80gb': Card(
    kind='NVIDIA A100-SXM4-80GB',
    capability=8,
    memory=85_100_068_864,
    bandwidth=2_039_040_000_000,
    cores=108,
    units=64,
    clock=1.41,
    cache=41_943_040,
    shared=167_936,
  ),
  'h100': _hopper('NVIDIA H100 80GB HBM3', 84_942_979_072, 3_352_320_000_000),
  'h200': _hopper('NVIDIA H200', 151_397_597_184, 4_800_000_000_000),
}


def usable_memory(card: Card, environ: Mapping[str, str] = os.environ) -> float:
  """Bytes of a card that a JAX program can use, given the environment."""
  shares = [environ[name] for name in _SHARE_VARIABLES if environ.get(name)]
  return card.memory * (float(shares[0]) if shares else _SHARE)
