"""Peak performance and memory of accelerators, from their data sheets."""

import dataclasses

_GB, _GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator that JAX sees as one device.

  Attributes:
    name: as its maker calls it.
    flops: peak of dense bfloat16 products, FLOP/s.
    memory: bytes of HBM that a program can use; for TPUs the figure of their
      compiler, which is below that of the data sheet.
    bandwidth: of the HBM, bytes/s.
    interconnect: to other chips of its slice or machine, bytes/s in one
      direction, over all links together.
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
  """Makes a chip from bytes of memory, and GB/s of both rates."""
  return Chip(
    name, tflops * 1e12, memory, bandwidth * _GB, interconnect * _GB, source
  )


# Keys are prefixes of `jax.Device.device_kind`, longer ones first. For v5e and
# v6e, Google states the interconnect in both directions together; for v4 and
# v5p, in one direction, in Gbit/s. NVIDIA states NVLink in both directions.
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
  """Finds the chip of a device; None if the table lacks it.

  Args:
    device_kind: its name in JAX.
  """
  for prefix, chip in CHIPS.items():
    if device_kind.startswith(prefix):
      return chip
  return None
