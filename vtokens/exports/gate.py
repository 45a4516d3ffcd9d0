"""The gate: an export that does not answer like our own model is refused.

Every check runs the real consumer of the format. `gate.json` in the export has
all figures.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from vtokens.exports.reference import Probe
from vtokens.host import errors, writers

FILE = 'gate.json'
# Largest error of a logit, relative to the largest logit: consumers sum float32
# in another order.
TOLERANCE = 1e-4
# Ordinary text for which the logits of the base must not change.
TEXTS = (
  'The tower was completed in 1859 and stands at the north end of the palace.',
  'def add(a, b):\n  return a + b\n',
  'Question: Who wrote it?\nAnswer: Nobody knows, 東京, naïve.',
)


@dataclasses.dataclass(frozen=True)
class Check:
  """One check.

  Attributes:
    name: what was checked.
    passed: whether the check passed.
    found: the figure found.
    expected: the figure expected.
  """

  name: str
  passed: bool
  found: Any
  expected: Any


class Speaker(Protocol):
  """A model in the program that users of the export run."""

  def prompt_ids(
    self, passages: Sequence[dict[str, str]], question: str
  ) -> list[int]:
    """The prompt with all virtual tokens, as users of the format build it."""

  def virtual_ids(self) -> list[int]:
    """Ids of the virtual tokens in the model."""

  def answer(self, ids: Sequence[int], most: int) -> list[int]:
    """Ids of the greedy answer, with the id that ends it, if any."""

  def sample(self, ids: Sequence[int], number: int, seed: int) -> list[int]:
    """At least `number` ids, sampled at temperature 1."""


class Consumer(Speaker, Protocol):
  """A speaker that also gives logits."""

  def logits(self, ids: Sequence[int]) -> Float[np.ndarray, 'T V']:
    """Logits after each id, array of shape [T, V], float32."""


def matched(consumer: Speaker, probes: Sequence[Probe], num: int) -> Check:
  """Every prompt has every virtual token once, in order."""
  ids = consumer.virtual_ids()[:num]
  found = [
    [
      i
      for i in consumer.prompt_ids(one.passages, one.record.question)
      if i in set(consumer.virtual_ids())
    ]
    for one in probes
  ]
  worst = min(found, key=lambda one: (one == ids, len(one)))
  return Check(
    name='virtual tokens in the assembled prompt',
    passed=worst == ids,
    found=f'{len(worst)} of {num} in {len(probes)} prompts',
    expected=f'{num} of {num}, in order',
  )


def same_prompts(
  consumer: Speaker, probes: Sequence[Probe], vocab_size: int
) -> Check:
  """Prompts equal ours, except that virtual tokens have other ids."""
  virtual = consumer.virtual_ids()
  same = sum(
    consumer.prompt_ids(one.passages, one.record.question)
    == [i if i < vocab_size else virtual[i - vocab_size] for i in one.ids]
    for one in probes
  )
  return Check(
    name='prompts equal to ours, id by id',
    passed=same == len(probes),
    found=f'{same} of {len(probes)}',
    expected='all',
  )


def same_logits(
  consumer: Consumer, probes: Sequence[Probe], old: Sequence[int]
) -> Check:
  """Logits of the ids `old` of the base at the positions of the answer."""
  worst = 0.0
  asked = [one for one in probes if one.logits is not None]
  for one in asked:
    prompt = consumer.prompt_ids(one.passages, one.record.question)
    found = consumer.logits([*prompt, *one.answer[:-1]])[len(prompt) - 1 :]
    assert one.logits is not None
    expected = one.logits[:, old]
    error = np.abs(found[:, old] - expected).max()
    # numpy's maximum is NaN if a value is; Python's is not.
    worst = float(np.maximum(worst, error / np.abs(expected).max()))
  return Check(
    name='logits at answer positions, largest difference from ours',
    passed=bool(asked) and worst <= TOLERANCE,
    found=worst,
    expected=f'<= {TOLERANCE}, relative to the largest, {len(asked)} questions',
  )


def same_old_logits(
  found: Sequence[np.ndarray],
  base: Sequence[np.ndarray],
  old: Sequence[int],
) -> Check:
  """Logits of text without virtual tokens equal the base's in this consumer.

  Args:
    found: logits of the export for each text.
    base: logits of the base for each text.
    old: ids of the base, without ids of virtual tokens.
  """
  different = sum(
    int((a[:, old] != b[:, old]).sum())
    for a, b in zip(found, base, strict=True)
  )
  return Check(
    name='logits of old ids on ordinary text that differ from the base',
    passed=different == 0,
    found=different,
    expected=f'0 of {sum(len(a) * len(old) for a in base):,}, bit by bit',
  )


def never_said(
  consumer: Speaker, probes: Sequence[Probe], number: int, seed: int
) -> Check:
  """Sampled tokens have no virtual token among them."""
  drawn: list[int] = []
  each = -(-number // len(probes))
  for at, one in enumerate(probes):
    if len(drawn) < number:
      prompt = consumer.prompt_ids(one.passages, one.record.question)
      drawn += consumer.sample(prompt, each, seed + at)
  virtual = set(consumer.virtual_ids())
  said = sum(i in virtual for i in drawn)
  return Check(
    name='virtual tokens among sampled ones',
    passed=len(drawn) >= number and said == 0,
    found=f'{said} of {len(drawn)}',
    expected=f'0 of {number} or more',
  )


def same_answers(
  consumer: Speaker, probes: Sequence[Probe], most: int
) -> Check:
  """Greedy answers equal ours, token by token."""
  same = 0
  for one in probes:
    prompt = consumer.prompt_ids(one.passages, one.record.question)
    same += tuple(consumer.answer(prompt, most)) == one.answer
  return Check(
    name='greedy answers equal to ours',
    passed=same == len(probes),
    found=f'{same} of {len(probes)} questions',
    expected='all, token by token',
  )


def conclude(out: pathlib.Path, checks: Sequence[Check], about: Any) -> None:
  """Writes `gate.json`, prints the checks, and raises if one failed.

  Args:
    out: directory of the export, not yet in its place.
    checks: all checks.
    about: how the export was made, JSON values.

  Raises:
    errors.UserError: a check failed.
  """
  passed = all(check.passed for check in checks)
  writers.write_json(
    out / FILE,
    {
      'passed': passed,
      'checks': [dataclasses.asdict(check) for check in checks],
      **about,
    },
  )
  for check in checks:
    mark = 'ok    ' if check.passed else 'FAILED'
    writers.say(
      f'{mark} {check.name}: {check.found} (expected {check.expected})'
    )
  if not passed:
    failed = [check for check in checks if not check.passed]
    raise errors.UserError(
      'nothing is exported, since the export differs from the trained model: '
      + '; '.join(f'{c.name}: {c.found}, expected {c.expected}' for c in failed)
    )
