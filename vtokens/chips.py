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


def _tpu(
  name: str, tflops: float, memory: float, bandwidth: float, ici: float
) -> Chip:
  return Chip(
    name,
    tflops * 1e12,
    memory * _GIB,
    bandwidth * _GB,
    ici * _GB,
    f'https://docs.cloud.google.com/tpu/docs/{name}',
  )


def _gpu(
  name: str, tflops: float, memory: float, bandwidth: float, nvlink: float
) -> Chip:
  return Chip(
    name,
    tflops * 1e12,
    memory * _GB,
    bandwidth * _GB,
    nvlink * _GB,
    'https://www.nvidia.com/en-us/data-center/',
  )


# By what `jax.Device.device_kind` begins with, the longest first. Google gives
# the interconnect of v5e and v6e for both directions together, that of v4 and
# v5p in Gbit/s of one; NVIDIA that of NVLink for both.
CHIPS = {
  'TPU v6 lite': _tpu('v6e', 918, 31.25, 1638, 400),
  'TPU v5 lite': _tpu('v5e', 197, 15.75, 819, 200),
  'TPU v5': _tpu('v5p', 459, 95.74, 2765, 600),
  'TPU v4': _tpu('v4', 275, 30.75, 1228, 300),
  'NVIDIA H200': _gpu('H200 SXM', 989.5, 141, 4800, 450),
  'NVIDIA H100 80GB HBM3': _gpu('H100 SXM', 989.5, 80, 3350, 450),
  'NVIDIA A100-SXM4-80GB': _gpu('A100 SXM 80GB', 312, 80, 2039, 300),
  'NVIDIA A100-SXM4-40GB': _gpu('A100 SXM 40GB', 312, 40, 1555, 300),
  'NVIDIA L4': _gpu('L4', 121, 24, 300, 32),
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
