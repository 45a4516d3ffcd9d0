"""Lengths that prefixes and suffixes are padded to while answering."""

import jax

# Multiples for prefixes and for suffixes, so that few shapes are compiled. A
# CPU has smaller ones, since there computing takes longer than compiling.
ROUND, _ROUND_CPU = (128, 32), (32, 16)
# Suffix tokens of branches that are answered together, unless one branch alone
# has more: branches compute scores of one another's slots only to mask them.
SUFFIX_BUDGET = 1024


def round_prefix(size: int) -> int:
  """Length that a prefix is padded to; 1 if it is empty or only bos."""
  return round_up(size, _multiples()[0]) if size > 1 else 1


def round_suffix(size: int) -> int:
  """Length that a suffix is padded to."""
  return round_up(size, _multiples()[1])


def round_up(size: int, multiple: int) -> int:
  """The next multiple, at least one."""
  return max(1, -(-size // multiple)) * multiple


def _multiples() -> tuple[int, int]:
  return _ROUND_CPU if jax.default_backend() == 'cpu' else ROUND


def coarse_prefix(size: int) -> int:
  """As `round_prefix`, with few lengths: at most an eighth is added."""
  return _leading_bits(size, _multiples()[0], 4) if size > 1 else 1


def coarse_cache(size: int) -> int:
  """Slots for a prefix that was encoded; as `round_prefix`, doubling.

  Later tokens only attend to these slots, so many empty ones cost little, and
  each length is another program.
  """
  return _leading_bits(size, 2 * _multiples()[0], 1) if size > 1 else 1


def coarse_suffix(size: int) -> int:
  """As `round_suffix`, with few lengths."""
  return _leading_bits(size, 2 * _multiples()[1], 3)


def coarse_rows(rows: int) -> int:
  """The next power of two."""
  return 1 << (rows - 1).bit_length()


def _leading_bits(size: int, multiple: int, bits: int) -> int:
  """Rounds up to a multiple by a number with at most so many leading bits."""
  number = round_up(size, multiple) // multiple
  shift = max(0, number.bit_length() - bits)
  return (-(-number >> shift) << shift) * multiple
