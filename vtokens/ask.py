"""Answers one question with and without the virtual tokens of a run.

python -m vtokens.ask --workdir runs/quickstart --question 'Who wrote it?'
--passage 'A passage.' --passage 'Another.'
"""

from collections.abc import Sequence

from absl import flags as absl_flags

from vtokens.data.assemble import Assembler
from vtokens.data.records import GIVEN, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors, writers
from vtokens.method import kinds
from vtokens.models import frozen_base
from vtokens.run.workdir import RunDir
from vtokens.serving import prompt_ids
from vtokens.settings import flags

_WORKDIR = flags.define_path(
  'workdir', None, 'Work directory of a finished run.'
)
_QUESTION = absl_flags.DEFINE_string('question', None, 'The question.')
_PASSAGE = absl_flags.DEFINE_multi_string(
  'passage', [], 'A passage, best first; may be repeated.'
)
_NUM_ACTIVE = absl_flags.DEFINE_integer(
  'num_active', None, 'Virtual tokens used (k); default: all.'
)

_LABELS = {
  'closed_book': 'without passages',
  'prompt': 'with an instruction',
  'chat_prompt': 'instruction, chat template',
}


def ask(
  workdir: str,
  question: str,
  passages: Sequence[str],
  num_active: int | None = None,
) -> dict[str, Answer]:
  """Greedy answers to one question.

  Args:
    workdir: of a finished run.
    question: the question.
    passages: their texts, best first.
    num_active: virtual tokens used (k); None for all.

  Returns:
    Label of the condition -> answer, with its text and confidence; the virtual
    tokens come last.

  Raises:
    errors.UserError: there is no finished run, its base has changed, the
      question or a passage is not text, or the question is too long.
  """
  prompt_ids.check_question(question, '--question')
  shown = prompt_ids.read_passages(passages)
  finished = RunDir(workdir).read('--workdir')
  cfg = finished.config
  k = finished.count
  if num_active is not None:
    k = prompt_ids.check_number(num_active, 1, k, '--num_active')
  mesh = partitioning.make_mesh((-1, 1, 1))
  opened = frozen_base.open_base(cfg.base, cfg.context_length)
  finished.check_base(opened)
  base = opened.load(mesh)
  # Show all the given passages, in the given order.
  cfg.eval.num_passages = len(shown)
  cfg.eval.batch_size = 1
  cfg.eval.shuffle_passages = False
  cfg.eval.retriever = GIVEN
  assembler = Assembler.for_run(base.tokenizer, cfg)
  prompter = Prompter(assembler, cfg.eval, cfg.seed)
  answerer = Answerer(base, mesh, cfg.eval, cfg.seed)
  evaluator = Evaluator(answerer, prompter)
  record = Record(
    id='question',
    dataset='',
    question=question,
    answers=(),
    passages={GIVEN: tuple(shown)},
  )
  trained = TrainedTokens(
    workdir,
    finished.values,
    assembler,
    kinds.trainable_of(cfg.virtual_tokens),
  )
  tokens = tokens_variant(trained, k)
  names = list(_LABELS)
  if not base.tokenizer.has_chat_template:
    names.remove('chat_prompt')
  variants = [*map(bare_variant, names), tokens]
  prompter.check_fits([record], variants)
  answers = evaluator.answers([record], variants, label='answering')
  labels = {**_LABELS, tokens.name: f'with {k} virtual tokens'}
  return {
    labels[variant.name]: answers[variant.name][0] for variant in variants
  }


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  if _WORKDIR.value is None or _QUESTION.value is None:
    raise errors.UserError('--workdir and --question are needed')
  answers = ask(
    _WORKDIR.value, _QUESTION.value, _PASSAGE.value, _NUM_ACTIVE.value
  )
  width = max(map(len, answers))
  writers.say(f'{"":<{width}}   confidence')
  for label, answer in answers.items():
    writers.say(f'{label:<{width}} {answer.confidence:10.2f}   {answer.text}')


if __name__ == '__main__':
  flags.run(main)
