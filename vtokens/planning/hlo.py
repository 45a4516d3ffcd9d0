"""Reads the collectives of a compiled program from its HLO text."""

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
# Kind of a transfer between slices of TPUs.
BETWEEN_SLICES = 'between-slices'
_ALL_KINDS = frozenset((*KINDS, BETWEEN_SLICES))

# Bits of a value, by the name of its type.
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

# Such as f8e4m3fn and f4e2m1fn.
_NARROW = re.compile(r'f(\d)e\dm\d')
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
    arrays: bytes of each array that a device gets.
    groups: groups of ids of devices that exchange arrays within a slice; empty
      for one group of all devices, and between slices.
    times: number of runs, by the trip counts of the loops around it.
    in_loop_of_unknown_length: whether the length of a loop around it depends on
      values. Such a loop counts as one trip.
    op_name: operation of the traced function that it comes from.
  """

  kind: str
  arrays: tuple[int, ...]
  groups: tuple[tuple[int, ...], ...]
  times: int
  in_loop_of_unknown_length: bool
  op_name: str

  @property
  def nbytes(self) -> int:
    """Bytes that a device gets in one run."""
    return sum(self.arrays)


def collectives(text: str) -> list[Collective]:
  """The collectives of a compiled program.

  Args:
    text: HLO text from `jax.stages.Compiled.as_text`.

  Raises:
    ValueError: the text has an unknown form.
  """
  computations, entry = _computations(text)
  # By channel, because the TPU compiler spreads a collective over several
  # fusions.
  found: dict[str, Collective] = {}

  def visit(name: str, times: int, unknown: bool) -> None:
    for opcode, shape, line in computations[name]:
      kind = opcode.removesuffix('-start')
      if opcode == 'send' and _MEGASCALE in line:
        kind = BETWEEN_SLICES
      if kind in _ALL_KINDS:
        channel = _CHANNEL.search(line)
        # Transfers and collectives number their channels separately.
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
  """Trip count of a loop; None if it is not fixed.

  It comes from XLA's note, or from the constant that a scan compares its
  counter with.
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
  """Opcode, shape and line of each instruction, by computation."""
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
  """Bytes of each array in an instruction's result, without its operands."""
  if kind == BETWEEN_SLICES:  # (operand, context, token)
    return tuple(_nbytes(*part) for part in _SHAPE.findall(shape)[:1])
  sizes = tuple(_nbytes(*part) for part in _SHAPE.findall(shape))
  if opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
    # (operands, results, contexts of no size)
    sizes = sizes[: len(sizes) // 2 * 2]
    return sizes[len(sizes) // 2 :]
  return sizes


def _nbytes(dtype: str, dims: str) -> int:
  narrow = _NARROW.match(dtype)
  if narrow:
    bits = int(narrow[1])
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
    # XLA writes parts of an axis as 'axis_0':(1)2.
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
