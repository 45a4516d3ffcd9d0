r"""Measures the time to compare checksums at the start of a run.

    python benchmarks/checksums.py --gigabytes 1.27
    python benchmarks/checksums.py --index indices/corpus --index indices/bm25

The first command writes a file of random bytes, as large as a token cache of
500,000 examples of 600 tokens. Output is wall-clock and processor time in
seconds. The second and third pass read from memory.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from vtokens.host import checksums, json_files

_BLOCK = 1 << 24


def check(name: str, directory: pathlib.Path, files: dict) -> None:
  """Prints the time to compare files."""
  size = sum(file['bytes'] for file in files.values())
  print(f'{name}: {len(files):,} files, {size / 1e9:.2f} GB')
  for _ in range(3):
    began, busy = time.perf_counter(), time.process_time()
    assert checksums.problem(directory, files) == ''
    clock, busy = time.perf_counter() - began, time.process_time() - busy
    print(f'  {clock:.2f} s, {busy:.2f} s of processor')


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--gigabytes', type=float, default=0)
  parser.add_argument('--index', type=pathlib.Path, action='append', default=[])
  args = parser.parse_args()
  if args.gigabytes:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
      directory = pathlib.Path(name)
      with (directory / 'tokens').open('wb') as file:
        for _ in range(int(args.gigabytes * 1e9) // _BLOCK):
          file.write(rng.bytes(_BLOCK))
      files = checksums.of_files(directory, ['tokens'])
      check('made up', directory, files)
  for directory in args.index:
    content = json_files.read(directory / 'complete.json')
    files = {
      name: {'bytes': size, 'sha256': content['sha256'][name]}
      for name, size in content['files'].items()
    }
    check(str(directory), directory, files)


if __name__ == '__main__':
  main()
