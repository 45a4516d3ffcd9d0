"""Scores on the test questions, before and after training."""

from collections.abc import Sequence
from typing import Any

from vtokens.data.assemble import Assembler
from vtokens.data.records import Record
from vtokens.devices import distributed
from vtokens.evaluation.asking import run_scores
from vtokens.evaluation.asking.answer_texts import AnswerTexts
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  PromptVariant,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import writers
from vtokens.run import run_summary
from vtokens.run.workdir import RunDir


class TestScores:
  """Asks the test questions and keeps what was answered.

  Args:
    run_dir: gets the predictions.
    evaluator: asks.
    records: the questions; there may be none.
    assembler: makes the prompts, and tells how answers look.
    retriever: whose passages are shown.
  """

  # The name is not that of a test class.
  __test__ = False

  def __init__(
    self,
    run_dir: RunDir,
    evaluator: Evaluator,
    records: Sequence[Record],
    assembler: Assembler,
    retriever: str,
  ):
    self._assembler = assembler
    self._retriever = retriever
    self._run_dir = run_dir
    self._evaluator = evaluator
    self._records = records

  def score_untrained(
    self, conditions: Sequence[str]
  ) -> dict[str, dict[str, Any]]:
    """Scores the base without virtual tokens, or finds its scores.

    Returns:
      Condition -> scores; see `run_scores.all_scores`.

    Raises:
      errors.UserError: untrained.json is damaged.
      stopping.Stopped: the run was asked to stop.
    """
    found = distributed.from_first(self._run_dir.read_untrained)
    if found is None:
      found = self._score(list(map(bare_variant, conditions)), 'untrained')
      if distributed.is_first():
        self._run_dir.write_untrained(found)
    if found:
      writers.say(run_summary.format_scores('before training', found))
    return found

  def score_tokens(
    self, tokens: TrainedTokens, numbers: Sequence[int]
  ) -> dict[int, dict[str, Any]]:
    """Scores the first k virtual tokens, for each of several k.

    Returns:
      k -> scores as of `score_untrained`, in rising order of k.

    Raises:
      stopping.Stopped: the run was asked to stop.
    """
    variants = {k: tokens_variant(tokens, k) for k in sorted(set(numbers))}
    found = self._score(list(variants.values()), 'virtual tokens')
    return {
      k: found[variant.name]
      for k, variant in variants.items()
      if variant.name in found
    }

  def _score(
    self, variants: Sequence[PromptVariant], label: str
  ) -> dict[str, dict[str, Any]]:
    """Asks all questions, writes predictions, returns scores by variant."""
    if not self._records or not variants:
      return {}
    found = {}
    answered = self._evaluator.answers(self._records, variants, label=label)
    for variant in variants:
      name, answers = variant.name, answered[variant.name]
      form = AnswerTexts.of(
        self._assembler.encoder.templates,
        self._assembler.in_chat(variant.condition.chat),
      )
      if distributed.is_first():
        run_scores.write_predictions(
          self._run_dir.path / 'predictions' / f'{name}.jsonl',
          self._records,
          answers,
          form,
        )
      found[name] = run_scores.all_scores(
        self._records, answers, form, self._retriever
      )
    return found
