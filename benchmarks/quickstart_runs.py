"""The quickstart's base, data and training, for benchmarks of quality."""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtokens import config
from vtokens.data import pipeline, training_set
from vtokens.data.assemble import Assembler
from vtokens.data.records import Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import Prompter, PromptVariant
from vtokens.method import optim, steps, virtual_tokens
from vtokens.models import frozen_base
from vtokens.run import distillation

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'

# Loss of each step, and the table after it.
Steps = Iterator[tuple[float, np.ndarray]]


def load_config(directory: str, questions: int, seed: int) -> config.Config:
  """`configs/quickstart.py:long`, for runs of any number of steps.

  The learning rate is constant after the warm-up, because a decay would need
  the number of steps.

  Args:
    directory: work directory.
    questions: number of test questions to score.
    seed: seed of data and draws.
  """
  sys.path.insert(0, str(CONFIGS))
  import quickstart

  # The variant that the figures in the docs are of.
  cfg = quickstart.get_config('long')
  cfg.workdir = directory
  cfg.seed = seed
  cfg.optim.schedule = 'constant'
  cfg.eval.max_test = questions
  return cfg


class Setting:
  """Opens the base, data and training of a config."""

  def __init__(self, cfg: config.Config):
    config.validate(cfg)
    self.cfg = cfg
    self.mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
    self.opened = frozen_base.open_base(cfg.base, cfg.context_length)
    self.assembler = Assembler.for_run(self.opened.tokenizer, cfg)
    self._teacher = distillation.open_teacher(cfg, self.opened)
    report = training_set.bad_records(cfg.data)
    self._held_out = [
      training_set.read_held_out(cfg, field, most, report)
      for field, most in (
        ('validation', cfg.eval.max_validation),
        ('test', cfg.eval.max_test),
      )
    ]

  @property
  def validation(self) -> list[Record]:
    """Records to validate with."""
    return self._held_out[0].records

  @property
  def test(self) -> list[Record]:
    """Records to test with."""
    return self._held_out[1].records

  def batches(self) -> pipeline.TrainBatches:
    """The training batches."""
    mixture, _ = training_set.open_training_set(
      self.cfg, self.assembler, self._held_out, print
    )
    return pipeline.TrainBatches(
      mixture,
      self.cfg.data,
      self.cfg.virtual_tokens,
      self.assembler,
      self.opened.config.vocab_size,
      self.cfg.seed,
      distill=self.cfg.train.distill,
      teacher=self._teacher.inputs if self._teacher else None,
    )

  def load(self) -> frozen_base.FrozenBase:
    """The weights."""
    return self.opened.load(self.mesh)

  def initial_table(self, base: frozen_base.FrozenBase) -> np.ndarray:
    """The table before the first step, array of shape [P, D], float32."""
    return virtual_tokens.TABLE.init(
      self.cfg.virtual_tokens, base.decoder(), base.tokenizer, self.cfg.seed
    )

  def train(self) -> Steps:
    """Trains without end; first yields the initial table, with loss nan."""
    cfg = self.cfg
    base, batches = self.load(), self.batches()
    table = jnp.asarray(self.initial_table(base))
    optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
    state = steps.TrainState(table, optimizer.init(table), jnp.int32(0))
    teacher = self._teacher
    step = steps.jit_train_step(
      base.graph,
      optimizer,
      state,
      cfg.train,
      teacher=teacher.trainable if teacher else None,
    )
    taught_by = [teacher.values] if teacher and teacher.trainable else []
    with batches.starting_at(0) as stream:
      yield float('nan'), np.asarray(table)
      for host in stream:
        batch = partitioning.shard_batch(
          host.batch, self.mesh, batches.batch_rows
        )
        state, values = step(state, base.params, batch, *taught_by)
        yield float(values['loss']), np.asarray(state.trained)

  def score(
    self,
    variants: Sequence[PromptVariant],
    records: Sequence[Record] | None = None,
  ) -> list[dict[str, Any]]:
    """EM, F1 and number of questions for each variant.

    Args:
      variants: what answers.
      records: questions; None for those of the test.
    """
    cfg = self.cfg
    prompter = Prompter(self.assembler, cfg.eval, cfg.seed)
    answerer = Answerer(self.load(), self.mesh, cfg.eval, cfg.seed)
    records = self.test if records is None else records
    answers = Evaluator(answerer, prompter).answers(
      records, variants, label='scoring'
    )
    form = AnswerTexts.of(self.cfg.templates, self.cfg.templates.chat)
    return [
      run_scores.scores_of(records, answers[variant.name], form).as_dict()
      for variant in variants
    ]
