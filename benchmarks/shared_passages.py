"""Measures how often questions have the same retrieved passages.

python benchmarks/shared_passages.py FILE.jsonl.gz ...

The files have JSON lines with `retrieved`, a list of [id, score], best first.
The output is the share of passage encodings that an epoch could save if all
questions with the same set of first m passages were in one batch and had them
in the same order.
"""

import collections
import gzip
import json
import pathlib
import sys


def saved(path: pathlib.Path, most: int) -> float:
  """Share of encodings that another question already has."""
  sets: collections.Counter[frozenset[str]] = collections.Counter()
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    for line in lines:
      found = json.loads(line)['retrieved'][:most]
      sets[frozenset(name for name, _ in found)] += 1
  return 1 - len(sets) / sets.total()


def main() -> None:
  print(f'{"":28}' + ''.join(f'{f"m = {m}":>8}' for m in (1, 3, 5)))
  for name in sys.argv[1:]:
    path = pathlib.Path(name)
    shares = ''.join(f'{saved(path, m):8.1%}' for m in (1, 3, 5))
    print(f'{path.name:28}{shares}')


if __name__ == '__main__':
  main()
