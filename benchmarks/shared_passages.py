"""How often questions have the same retrieved passages, so could share them.

python benchmarks/shared_passages.py FILE.jsonl.gz ...

Of JSON lines with `retrieved` (a list of [id, score], best first): the share of
the passages' encodings that one epoch could save if all questions with the same
first m passages, in whatever order, were in one batch and shown in one order.
"""

import collections
import gzip
import json
import pathlib
import sys


def saved(path: pathlib.Path, most: int) -> float:
  """Share of encodings that are another question's."""
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
