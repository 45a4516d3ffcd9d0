"""Measures the host side of training: tokenising and making batches.

python benchmarks/pipeline.py [--json FILE] [--source FILE ...]

Without a source, it uses 4,096 made-up questions, each with 5 passages of 120
words (words of the quickstart data in random order). It runs one thread.
"""

import os

# Set before the tokenizers library starts its threads.
os.environ['RAYON_NUM_THREADS'] = '1'

import argparse
import itertools
import json
import pathlib
import random
import tempfile
import time
from typing import Any

from vtokens import config
from vtokens.data import formats, pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.host import paths
from vtokens.models.tokenizers.tokenizer import load_tokenizer
from vtokens.recipes import smollm2

TOKENIZER = smollm2.PATH
WORDS = 'package:vtokens/data/quickstart/train.jsonl.gz'


def write_source(path: pathlib.Path, count: int) -> None:
  rng = random.Random(0)
  words = [
    word
    for record in formats.read_all([WORDS])[:500]
    for passage in record.ranked()
    for word in passage.text.split()
  ]

  def text(length):
    return ' '.join(rng.choices(words, k=length))

  with path.open('w', encoding='utf-8') as file:
    for i in range(count):
      row = {
        'id': str(i),
        'question': text(10) + '?',
        'answers': [text(2)],
        'passages': [text(120) for _ in range(5)],
      }
      file.write(json.dumps(row) + '\n')


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--source', nargs='*', default=[])
  parser.add_argument('--batches', type=int, default=256)
  parser.add_argument('--batch_size', type=int, default=32)
  args = parser.parse_args()
  report = {'batch_size': args.batch_size}
  with tempfile.TemporaryDirectory() as directory:
    source = pathlib.Path(directory, 'made_up.jsonl')
    if not args.source:
      write_source(source, 4096)
    tokenizer = load_tokenizer(paths.resolve(TOKENIZER))

    def open_set(per_row):
      cfg = config.Config(
        workdir=directory,
        data=config.Data(
          train=tuple(args.source) or (str(source),),
          on_bad_record='skip',
          batch_size=args.batch_size,
          examples_per_row=per_row,
          max_suffix_tokens=192,
          window_batches=16,
        ),
      )
      assembler = Assembler.for_run(tokenizer, cfg)
      began = time.process_time()
      mixture, _ = training_set.open_training_set(cfg, assembler, [], print)
      seconds = time.process_time() - began
      batches = pipeline.TrainBatches(
        mixture, cfg.data, cfg.virtual_tokens, assembler, 49152, 0
      )
      return batches, sum(mixture.sizes), seconds

    _, count, seconds = open_set(4)
    report['tokenize_examples_per_cpu_second'] = count / seconds
    print(f'tokenised: {count / seconds:.0f} examples/s of processor time')
    for per_row in (1, 2, 4, 8):
      batches, _, _ = open_set(per_row)
      shapes, real, computed, examples = set(), 0, 0, 0
      with batches.starting_at(0) as stream:
        next(stream)
        began = time.process_time()
        for host in itertools.islice(stream, args.batches):
          shapes.add((host.batch.prefix.shape[1], host.batch.suffix.shape[1]))
          real += host.real_tokens
          computed += host.computed_tokens
          examples += len(host.ids)
        seconds = time.process_time() - began
      row: dict[str, Any] = {
        'examples_per_cpu_second': examples / seconds,
        'real_tokens': real / computed,
        'shapes': sorted(shapes),
      }
      report[f'examples_per_row={per_row}'] = row
      print(
        f'{per_row} to a row: {row["examples_per_cpu_second"]:.0f} examples/s '
        f'of processor time, {100 * row["real_tokens"]:.1f} % of the tokens '
        f'real, {len(shapes)} shapes'
      )
  if args.json:
    args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
