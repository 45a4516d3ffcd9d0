"""Answers the questions of all cells that have no answer yet.

cell_plan: groups of cells --cell_files: answers on disk--> evaluator: answers,
batch by batch --cell_files--> disk
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import tqdm
from etils import epath

from vtokens import config
from vtokens.data.records import Record
from vtokens.devices import distributed
from vtokens.evaluation.asking import cost
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cell_files import CellFile, CellFiles
from vtokens.evaluation.asking.cell_plan import CellGroup
from vtokens.evaluation.asking.cells import Answer, Cell
from vtokens.evaluation.asking.evaluated_models import Model
from vtokens.evaluation.asking.evaluator import Evaluator, report_cuts
from vtokens.evaluation.asking.prompter import (
  Prompter,
  PromptVariant,
  bare_variant,
)
from vtokens.evaluation.eval_config import Config
from vtokens.evaluation.trained_tokens import refusal_tokens
from vtokens.host import stopping, writers
from vtokens.models.frozen_base import FrozenBase
from vtokens.serving import trained_file

# Format of the lines of a cell's file.
_FORMAT = 1


class Grid:
  """The cells of one base.

  Args:
    cfg: settings of the evaluation.
    model: the base, without its weights, and its tables.
    groups: its cells.
    records: questions by dataset.
  """

  def __init__(
    self,
    cfg: Config,
    model: Model,
    groups: Sequence[CellGroup],
    records: Mapping[str, Sequence[Record]],
  ):
    self._cfg = cfg
    self._model = model
    self._groups = groups
    self._records = records
    self._files: dict[Cell, CellFile] | None = None

  def check(self) -> None:
    """Checks that all questions can be asked, before hours of answering.

    Raises:
      errors.UserError: a question is impossible or does not fit.
    """
    # Cells that differ in passages alone need the same room for the question,
    # and the largest k needs the most.
    longest: dict[tuple[Any, ...], tuple[CellGroup, PromptVariant]] = {}
    for group in self._groups:
      for cell, variant in group.variants.items():
        key = (cell.dataset, cell.condition, cell.table)
        if (
          key not in longest or variant.num_active > longest[key][1].num_active
        ):
          longest[key] = group, variant
    for group, variant in longest.values():
      self._prompter(group).check_fits(self._records[group.dataset], [variant])

  def open(self) -> None:
    """Reads the answers on disk. Call it before the methods below.

    Raises:
      errors.UserError: a file is broken.
    """
    files = CellFiles(epath.Path(self._cfg.workdir) / 'cells')
    self._files = {
      cell: files.open(cell, self._identity(cell, variant, asked))
      for group in self._groups
      for asked in [self._hash_asked(group)]
      for cell, variant in group.variants.items()
    }

  @property
  def files(self) -> dict[Cell, CellFile]:
    """The file of each cell."""
    assert self._files is not None, 'open() comes first'
    return self._files

  def has_missing(self) -> bool:
    """Whether answers are still to be generated."""
    return distributed.from_first(lambda: self._num_missing() > 0)

  def _num_missing(self) -> int:
    return sum(
      len(self._records[cell.dataset]) - len(file.answers)
      for cell, file in self.files.items()
    )

  def _hash_asked(self, group: CellGroup) -> str:
    """Hash of the questions of a group and the passages that are shown.

    Not of the accepted answers, nor of passages that other groups show: a
    correction of the one, or more of the other, costs no answer.
    """
    prompter = self._prompter(group)
    digest = hashlib.sha256()
    for record in self._records[group.dataset]:
      shown = [
        (rank, passage.title, passage.text)
        for rank, passage in prompter.shown(record)
      ]
      line = json.dumps([record.id, record.question, shown])
      digest.update(line.encode() + b'\n')
    return digest.hexdigest()

  def _identity(
    self, cell: Cell, variant: PromptVariant, asked: str
  ) -> dict[str, Any]:
    """All that decides the answers of a cell, except versions of programs.

    The seed and quantisation are there only if they change answers.
    """
    cfg = self._cfg
    settings = self._model.base.settings
    table: dict[str, Any] = {}
    assembler = self._model.assembler
    if variant.tokens is not None:
      assembler = variant.tokens.assembler
      table = {
        'table_sha256': trained_file.sha256(variant.tokens.values),
        'position': variant.condition.position or assembler.position,
      }
    decode = dataclasses.asdict(cfg.decode)
    # The batch size changes no answer.
    del decode['batch_size']
    # Its bias, and its margin, are of this token.
    [refusal] = refusal_tokens([variant.tokens])
    if refusal is None:
      del decode['refusal_bias']
    condition = dataclasses.asdict(variant.condition)
    del condition['text']
    return {
      'format': _FORMAT,
      'cell': dataclasses.asdict(cell),
      'condition': condition,
      'base_fingerprint': self._model.base.fingerprint,
      'tokenizer_sha256': self._model.base.tokenizer.sha256,
      'dtype': settings.dtype,
      **(
        {'quantize': settings.quantize} if settings.quantize != 'none' else {}
      ),
      **table,
      'templates': assembler.encoder.identity,
      'max_prefix_tokens': cfg.data.max_prefix_tokens,
      # Some rotary embeddings depend on the context length.
      'context_length': cfg.context_length,
      'decode': decode,
      **({} if refusal is None else {'refusal_token': list(refusal)}),
      **({'seed': cfg.seed} if cfg.decode.temperature else {}),
      'asked_sha256': asked,
    }

  def run(
    self,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    stop: stopping.StopRequest,
  ) -> None:
    """Generates the missing answers and writes them batch by batch.

    Args:
      base: the model with its weights.
      mesh: the devices.
      stop: a stop drops the batch that is being answered.
    """
    answerer = Answerer(base, mesh, self._cfg.decode, self._cfg.seed)
    with writers.progress(
      total=self._num_missing(), desc=self._model.name, unit='answer'
    ) as bar:
      for group in self._groups:
        evaluator = Evaluator(answerer, self._prompter(group), stop)
        for missing, variants in self._missing(group):
          self._answer(evaluator, group, missing, variants, bar)

  def measure(
    self,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    stop: stopping.StopRequest,
  ) -> list[dict[str, Any]]:
    """Times the conditions with the main passages; see `cost.measure`.

    The condition `plain`, the text around the tokens without them, comes first
    even if it is not among the conditions of the evaluation.
    """
    cfg = self._cfg
    main = next(
      (
        group
        for group in self._groups
        if group.num_passages == cfg.num_passages[0]
        and group.retriever in ('', cfg.retrievers[0])
      ),
      None,
    )
    if main is None:
      return []
    variants = [bare_variant('plain'), *main.variants.values()]
    records = self._records[main.dataset][: cfg.cost.questions]
    timed = cost.Timed(
      prompter=self._prompter(main),
      records=records,
      variants=list({variant.name: variant for variant in variants}.values()),
      decode=cfg.decode,
      repeats=cfg.cost.repeats,
    )
    return cost.measure(base, mesh, timed, stop)

  def _prompter(self, group: CellGroup) -> Prompter:
    shown = config.Shown(
      num_passages=group.num_passages,
      retriever=group.retriever,
      shuffle_passages=self._cfg.shuffle_passages,
    )
    return Prompter(self._model.assembler, shown, self._cfg.seed)

  def _missing(
    self, group: CellGroup
  ) -> Iterator[tuple[list[Record], dict[Cell, PromptVariant]]]:
    """Records without an answer, and the cells without these answers."""
    records = self._records[group.dataset]
    parts: dict[tuple[int, ...], dict[Cell, PromptVariant]] = {}
    for cell, variant in group.variants.items():
      lacking = distributed.from_first(
        functools.partial(self._lacking, cell, records)
      )
      parts.setdefault(tuple(lacking), {})[cell] = variant
    for wanted, variants in parts.items():
      if wanted:
        yield [records[i] for i in wanted], variants

  def _lacking(self, cell: Cell, records: Sequence[Record]) -> list[int]:
    """Numbers of the records to which the cell has no answer."""
    answers = self.files[cell].answers
    return [i for i, record in enumerate(records) if record.id not in answers]

  def _answer(
    self,
    evaluator: Evaluator,
    group: CellGroup,
    records: Sequence[Record],
    variants: Mapping[Cell, PromptVariant],
    bar: tqdm.tqdm,
  ) -> None:
    bar.set_postfix_str(
      f'{group.dataset}, {group.num_passages} passages {group.retriever}'
    )
    told: list[Answer] = []
    for batch in evaluator.stream(records, list(variants.values())):
      ids = [records[i].id for i in batch.index]
      for cell, variant in variants.items():
        answers = dict(zip(ids, batch.answers[variant.name], strict=True))
        if distributed.is_first():
          self.files[cell].append(answers)
        bar.update(len(answers))
        told += answers.values()
    report_cuts(f'{group.dataset}, {group.num_passages} passages', told)

  def results(self) -> dict[Cell, list[Answer]]:
    """The answers of every cell, in the order of the dataset's records."""
    return {
      cell: [file.answers[r.id] for r in self._records[cell.dataset]]
      for cell, file in self.files.items()
    }
