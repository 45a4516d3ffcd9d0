"""What accelerators can do, by their makers' data sheets."""

import dataclasses

_GB, _GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator, as JAX sees it as one device.

  Attributes:
    name: in the maker's words.
    flops: peak of dense bfloat16 products, FLOP/s.
    memory: bytes of HBM that a program can have; of TPUs what their compiler
      says, which is less than the data sheet.
    bandwidth: of the HBM, bytes/s.
    interconnect: to the other chips of its slice or machine, bytes/s in one
      direction, all links together.
    source: page of the figures.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  source: str


_TPU = 'https://docs.cloud.google.com/tpu/docs/'
_GPU = 'https://www.nvidia.com/en-us/data-center/'


def _chip(
  name: str,
  tflops: float,
  memory: float,
  bandwidth: float,
  interconnect: float,
  source: str,
) -> Chip:
  """A chip; memory in bytes, bandwidth and interconnect in GB/s."""
  return Chip(
    name, tflops * 1e12, memory, bandwidth * _GB, interconnect * _GB, source
  )


# By what `jax.Device.device_kind` begins with, the longest first. Google gives
# the interconnect of v5e and v6e for both directions together, that of v4 and
# v5p in Gbit/s of one; NVIDIA that of NVLink for both.
CHIPS = {
  'TPU v6 lite': _chip('v6e', 918, 31.25 * _GIB, 1638, 400, f'{_TPU}v6e'),
  'TPU v5 lite': _chip('v5e', 197, 15.75 * _GIB, 819, 200, f'{_TPU}v5e'),
  'TPU v5': _chip('v5p', 459, 95.74 * _GIB, 2765, 600, f'{_TPU}v5p'),
  'TPU v4': _chip('v4', 275, 30.75 * _GIB, 1228, 300, f'{_TPU}v4'),
  'NVIDIA H200': _chip('H200 SXM', 989.5, 141 * _GB, 4800, 450, _GPU),
  'NVIDIA H100 80GB HBM3': _chip('H100 SXM', 989.5, 80 * _GB, 3350, 450, _GPU),
  'NVIDIA A100-SXM4-80GB': _chip('A100 80GB', 312, 80 * _GB, 2039, 300, _GPU),
  'NVIDIA A100-SXM4-40GB': _chip('A100 40GB', 312, 40 * _GB, 1555, 300, _GPU),
  'NVIDIA L4': _chip('L4', 121, 24 * _GB, 300, 32, _GPU),
}


def find(device_kind: str) -> Chip | None:
  """The chip of a device, or None where it is not in the table.

  Args:
    device_kind: what JAX calls it.
  """
  for prefix, chip in CHIPS.items():
    if device_kind.startswith(prefix):
      return chip
  return None
