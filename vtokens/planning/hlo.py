"""Reads from HLO text what a compiled program moves between devices."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)
# What a device hands to the network between slices of TPUs.
BETWEEN_SLICES = 'between-slices'
_ALL_KINDS = frozenset((*KINDS, BETWEEN_SLICES))

# Bits of a value by the name of its type.
_BITS = {'pred': 8} | {
  f'{kind}{bits}': bits
  for kind, sizes in {
    's': (2, 4, 8, 16, 32, 64),
    'u': (2, 4, 8, 16, 32, 64),
    'f': (16, 32, 64),
    'bf': (16,),
    'c': (64, 128),
  }.items()
  for bits in sizes
}

_INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) '
  r'(?P<opcode>[a-z][a-z0-9-]*)\('
)
_SHAPE = re.compile(r'([a-z][a-z0-9]*)\[([0-9,<=]*)\]')
_CALLED = re.compile(
  r'\b(?:body|condition|calls|to_apply|branch_computations|true_computation'
  r'|false_computation|called_computations|async_computation)='
  r'(?:%?([\w.-]+)|\{([^}]*)\})'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r'\bcondition=%?([\w.-]+)')
_CONSTANT = re.compile(r'%?(\S+) = s32\[\]\S* constant\((\d+)\)')
_BELOW = re.compile(r'compare\(%?\S+, %?(\S+)\), direction=LT')
_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_CHANNEL = re.compile(r'\bchannel_id=(\d+)')
_LISTED = re.compile(r'(?:replica_groups|source_target_pairs)=\{(\{[^=]*?\})\}')
_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_MESH = re.compile(
  r'replica_groups=mesh\[(?P<sizes>[^\]]*)\]'
  r'(?:, device_ids=\(\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?'
  r' \{(?P<axes>[^}]*)\}'
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that moves arrays between devices.

  Attributes:
    kind: one of `KINDS`, or `BETWEEN_SLICES`.
    arrays: bytes of each array it gives a device.
    groups: ids of the devices that exchange with one another, within a slice;
      empty where they are all in one group, and between slices.
    times: how often it runs, by the trip counts of the loops around it.
    in_loop_of_unknown_length: whether one of them depends on values; it counts
      as one trip.
    op_name: where in the traced function it comes from.
  """

  kind: str
  arrays: tuple[int, ...]
  groups: tuple[tuple[int, ...], ...]
  times: int
  in_loop_of_unknown_length: bool
  op_name: str

  @property
  def nbytes(self) -> int:
    """Of one run, on one device."""
    return sum(self.arrays)


def collectives(text: str) -> list[Collective]:
  """The collectives of a compiled program.

  Args:
    text: HLO, as `jax.stages.Compiled.as_text` gives it.

  Raises:
    ValueError: it is in a form that is not known.
  """
  computations, entry = _computations(text)
  # By channel: TPUs' compiler spreads one over several fusions.
  found: dict[str, Collective] = {}

  def visit(name: str, times: int, unknown: bool) -> None:
    for opcode, shape, line in computations[name]:
      kind = opcode.removesuffix('-start')
      if opcode == 'send' and _MEGASCALE in line:
        kind = BETWEEN_SLICES
      if kind in _ALL_KINDS:
        channel = _CHANNEL.search(line)
        # Transfers and collectives count their channels apart.
        key = f'{kind} {channel[1] if channel else (name, len(found))}'
        before = found.get(key)
        if before is None or before.times < times:
          found[key] = Collective(
            kind=kind,
            arrays=_result(kind, opcode, shape),
            groups=_groups(line),
            times=times,
            in_loop_of_unknown_length=unknown,
            op_name=_op_name(line),
          )
      trips, endless = 1, unknown
      if opcode == 'while':
        known = _trips(line, computations)
        trips = known or 1
        endless = unknown or known is None
      for called in _called(line):
        if called in computations:
          visit(called, times * trips, endless)

  visit(entry, 1, False)
  return list(found.values())


def _trips(
  line: str, computations: dict[str, list[tuple[str, str, str]]]
) -> int | None:
  """How often a loop runs, or None if that is not fixed.

  As XLA has noted it, or, from a scan, a counter that is compared with a
  constant.
  """
  match = _TRIPS.search(line)
  if match:
    return int(match[1])
  name = _CONDITION.search(line)
  condition = computations.get(name[1], []) if name else []
  constants = {}
  for opcode, _, text in condition:
    if opcode == 'constant':
      match = _CONSTANT.search(text)
      if match:
        constants[match[1]] = int(match[2])
    if 'ROOT ' in text:
      match = _BELOW.search(text)
      return constants.get(match[1]) if match else None
  return None


def _computations(
  text: str,
) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
  """Opcode, shape and line of the instructions of each computation."""
  computations: dict[str, list[tuple[str, str, str]]] = {}
  entry = ''
  current: list[tuple[str, str, str]] = []
  for line in text.splitlines():
    if line and not line[0].isspace() and line.endswith('{'):
      name = line.removeprefix('ENTRY ').split()[0].lstrip('%')
      current = computations.setdefault(name, [])
      if line.startswith('ENTRY '):
        entry = name
      continue
    match = _INSTRUCTION.match(line)
    if match:
      current.append((match['opcode'], match['shape'], line))
  if not entry:
    raise ValueError('no HLO text: it has no ENTRY computation')
  return computations, entry


def _called(line: str) -> Iterator[str]:
  for match in _CALLED.finditer(line):
    for name in (match[1] or match[2]).split(','):
      yield name.strip().lstrip('%')


def _result(kind: str, opcode: str, shape: str) -> tuple[int, ...]:
  """Bytes of the result of an instruction, without its operands."""
  if kind == BETWEEN_SLICES:  # (operand, context, token)
    return tuple(_nbytes(*part) for part in _SHAPE.findall(shape)[:1])
  sizes = tuple(_nbytes(*part) for part in _SHAPE.findall(shape))
  if opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
    # (operands, results, contexts of no size)
    sizes = sizes[: len(sizes) // 2 * 2]
    return sizes[len(sizes) // 2 :]
  return sizes


def _nbytes(dtype: str, dims: str) -> int:
  if dtype.startswith('f8'):
    bits = 8
  elif dtype in _BITS:
    bits = _BITS[dtype]
  else:
    raise ValueError(f'HLO type {dtype} is not known')
  sizes = [int(n.removeprefix('<=')) for n in dims.split(',') if n]
  return -(-math.prod(sizes) * bits // 8)


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
  def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(',')]

  match = _LISTED.search(line)
  if match:
    return tuple(
      tuple(numbers(part)) for part in re.findall(r'\{([\d,]+)\}', match[1])
    )
  match = _IOTA.search(line)
  if match:
    shape, dims = numbers(match[1]), numbers(match[2])
    order = numbers(match[3]) if match[3] else list(range(len(dims)))
    ids = _iota(dims).transpose(order).reshape(shape)
    return tuple(map(tuple, ids.tolist()))
  match = _MESH.search(line)
  if match:
    axes = dict(re.findall(r"'(\w+)'=(\d+)", match['sizes']))
    names, sizes = list(axes), [int(n) for n in axes.values()]
    within = re.findall(r"'(\w+)'", match['axes'])
    # Parts of an axis are written 'axis_0':(1)2.
    if ':' in match['axes'] or set(within) - set(names):
      raise ValueError(f'replica groups are not known: {match[0]}')
    ids = _iota(sizes)
    if match['dims']:
      dims = numbers(match['dims'])
      order = [*range(len(dims))]
      if match['order']:
        order = numbers(match['order'])
      ids = _iota(dims).transpose(order).reshape(sizes)
    across = [i for i, name in enumerate(names) if name not in within]
    along = [i for i, name in enumerate(names) if name in within]
    ids = ids.transpose(across + along)
    width = math.prod(sizes[i] for i in along)
    return tuple(map(tuple, ids.reshape(-1, width).tolist()))
  if 'replica_groups={}' in line or 'replica_groups' not in line:
    return ()
  raise ValueError(f'replica groups are not known: {line.strip()}')


def _iota(shape: list[int]) -> np.ndarray:
  return np.arange(math.prod(shape)).reshape(shape)


def _op_name(line: str) -> str:
  match = re.search(r'op_name="([^"]*)"', line)
  return match[1] if match else ''
