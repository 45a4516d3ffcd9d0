"""Training examples of two small datasets."""

import pathlib

import numpy as np

from vtokens import config
from vtokens.data import token_cache
from vtokens.data.assemble import Assembler
from vtokens.data.checks import BadRecords
from vtokens.data.mixture import TrainingMixture
from vtokens.data.records import Passage, Record
from vtokens.models.tokenizers.tokenizer import Tokenizer

DATASETS = ('one', 'two')
NUM_RECORDS, NUM_ANSWERS = 40, 5


def record(dataset: str, i: int) -> Record:
  """One passage; answers that several records share."""
  return Record(
    id=f'{dataset}{i}',
    dataset=dataset,
    question=f'question {i}',
    answers=(f'{dataset} says {"yes " * (i % NUM_ANSWERS)}no',),
    passages={'r': (Passage(f'p{i}', 'Title', f'Of {dataset}: fact {i}.'),)},
  )


def make(
  tokenizer: Tokenizer, directory: pathlib.Path, **sections
) -> TrainingMixture:
  """The examples as a run with these sections of `config.Config` draws them."""
  cfg = config.Config(**sections)
  assembler = Assembler.for_run(tokenizer, cfg)
  records = [record(name, i) for name in DATASETS for i in range(NUM_RECORDS)]
  source = token_cache.TokenCache(directory, assembler.encoder, depth=1).open(
    iter(records), BadRecords(), identity={}, label=''
  )
  none = {'removed': np.zeros(len(source), bool)}
  return TrainingMixture([source], [none], cfg, assembler)
