"""Our own model's answers, which those of servers have to equal."""

import dataclasses
import pathlib

from vtokens import config
from vtokens.data import training_set
from vtokens.exports import reference, torch_consumer, trained_table


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question and our answer.

  Attributes:
    passages: that were shown.
    question: the question.
    text: the whole answer.
  """

  passages: list[dict[str, str]]
  question: str
  text: str

  @property
  def line(self) -> str:
    """The answer up to its first line break."""
    return self.text.partition('\n')[0]


def ask(workdir: pathlib.Path, k: int, most: int = 16) -> list[Asked]:
  """Our greedy answers, in float32, to the questions of a run.

  Args:
    workdir: of the run.
    k: virtual tokens.
    most: tokens of an answer.
  """
  source = trained_table.read(str(workdir))
  table = dataclasses.replace(
    source.table, meta=dataclasses.replace(source.table.meta, num_trained=k)
  )
  records = training_set.read_held_out(
    source.config, 'test', 12, training_set.bad_records(source.config.data)
  ).records
  probes = reference.probe(
    source.base,
    table,
    table.table,
    reference.Asked(
      records,
      config.Decode(batch_size=12, max_new_tokens=most, stop_at_newline=False),
      num_passages=2,
      num_logits=0,
      seed=0,
    ),
  )
  tokenizer = torch_consumer.load_tokenizer(source.config.base.path)
  found = [
    Asked(
      passages=list(one.passages),
      question=one.record.question,
      text=tokenizer.decode(one.answer, skip_special_tokens=True),
    )
    for one in probes
  ]
  # They differ, and some have more lines than one.
  assert len({one.text for one in found}) > 1
  assert any(one.line != one.text for one in found)
  return found
