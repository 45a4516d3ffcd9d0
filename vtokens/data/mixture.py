"""Order of the training examples, and the random choices about each.

Everything is a pure function of (seed, epoch, index).
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from vtokens import config
from vtokens.data import assemble
from vtokens.data.assemble import Assembler
from vtokens.data.prompt_encoder import PassageIds
from vtokens.data.records import GOLD
from vtokens.data.token_set import TokenSet
from vtokens.host import errors

# Numbers of random streams under one seed. `order` uses the datasets' numbers
# too, but only to seed the shuffle of another generator.
_DRAW, _CAP = 1, 2
# In place of the number of an answer: the refusal.
REFUSAL = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """Where an example of the mixture comes from.

  Attributes:
    dataset: index of its dataset in `TrainingMixture.names`.
    source: number of its token set.
    index: its index in the token set.
  """

  dataset: int
  source: int
  index: int


@dataclasses.dataclass(frozen=True, slots=True)
class ShownPassage:
  """A passage that an example shows.

  Attributes:
    rank: rank in its retriever's list, from 0.
    member: the example that it belongs to: for a distractor, another one.
    slot: number of the passage in that example.
  """

  rank: int
  member: Member
  slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
  """A passage's retriever and marks.

  Attributes:
    retriever: the retriever's name.
    has_answer: whether the text contains an answer to its own question.
    is_gold: whether annotators marked it for that question.
  """

  retriever: str
  has_answer: bool
  is_gold: bool


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetCounts:
  """Numbers of records of a dataset that are used and left out.

  Attributes:
    records: records read.
    removed: records removed, by the first reason that applies.
    capped: records left out by config.data.mixture.max_examples.
    used: records used.
  """

  records: int
  removed: Mapping[str, int]
  capped: int
  used: int


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleDraw:
  """The random choices about one example.

  Attributes:
    passages: passages in the order shown.
    answer: number of the answer, or `REFUSAL`.
    num_active: number of virtual tokens (k) of each suffix.
  """

  passages: tuple[ShownPassage, ...]
  answer: int
  num_active: tuple[int, ...]


class TrainingMixture:
  """Training examples of all datasets.

  Args:
    sources: token sets.
    removed: for each token set, by reason, a bool array that is true for
      records not to use.
    cfg: config of the run: data.mixture, data.passages, data.unanswerable,
      virtual_tokens and seed. With draw=per_batch, k is n here and is replaced
      later.
    assembler: tells which answers are short enough to be drawn.

  Attributes:
    names: names of the datasets, sorted.
    sizes: number of examples of each dataset.
    weights: share of each dataset in the batches; the sum is 1.
    counts: counts by dataset, also for datasets without a usable example.
    num_without_passages: number of examples without a passage that their
      policy allows.

  Raises:
    errors.UserError: a setting names an unknown dataset, or no example is left.
  """

  def __init__(
    self,
    sources: Sequence[TokenSet],
    removed: Sequence[Mapping[str, np.ndarray]],
    cfg: config.Config,
    assembler: Assembler,
  ):
    settings, passages = cfg.data.mixture, cfg.data.passages
    self._sources = sources
    self._tokens = cfg.virtual_tokens
    self._seed = cfg.seed
    self._assembler = assembler
    self._refuses = cfg.data.refuses
    self._refusal = assembler.refusal()
    self._cites = assembler.encoder.cites(chat=assembler.in_chat(None))
    members: dict[str, list[np.ndarray]] = {}
    for number, (source, reasons) in enumerate(
      zip(sources, removed, strict=True)
    ):
      drop = np.logical_or.reduce([*reasons.values()])
      for code, name in enumerate(source.datasets):
        index = np.flatnonzero((source.dataset == code) & ~drop)
        if len(index):
          rows = np.stack([np.full_like(index, number), index], axis=1)
          members.setdefault(name, []).append(rows)
    self.names = sorted(members)
    _check_names(settings, self.names)
    self._members = [
      _cap(
        np.concatenate(members[name]), settings.max_examples.get(name), cfg.seed
      )
      for name in self.names
    ]
    self.sizes = [len(rows) for rows in self._members]
    self.weights = _weights(settings, self.names, self.sizes)
    used = dict(zip(self.names, self.sizes, strict=True))
    self.counts = _count(sources, removed, used)
    self._policies = [
      settings.passages.get(name, passages) for name in self.names
    ]
    _check_retrievers(settings, passages, sources)
    self._retrievers = [
      [_allowed(source.retrievers, policy) for source in sources]
      for policy in self._policies
    ]
    self.num_without_passages = self._count_without_passages()

  def _count_without_passages(self) -> int:
    count = 0
    for rows, allowed in zip(self._members, self._retrievers, strict=True):
      for number, source in enumerate(self._sources):
        there = source.has_passages(allowed[number])
        count += int((~there[rows[rows[:, 0] == number, 1]]).sum())
    return count

  def order(self) -> grain.MapDataset:
    """The endless order of (dataset, epoch, index), with random access."""
    streams = []
    for number, size in enumerate(self.sizes):
      entropy = np.random.SeedSequence([self._seed, number])
      stream = grain.MapDataset.range(size)
      stream = stream.seed(int(entropy.generate_state(1)[0])).shuffle().repeat()
      # Position p of the repeated order is in epoch p // size.
      streams.append(stream.map_with_index(_EpochPosition(number, size)))
    if len(streams) == 1:
      return streams[0]
    return grain.MapDataset.mix(streams, weights=self.weights)

  def member(self, dataset: int, index: int) -> Member:
    """The example at an index of a dataset."""
    source, i = self._members[dataset][index]
    return Member(dataset, int(source), int(i))

  def draw(self, dataset: int, epoch: int, index: int) -> ExampleDraw:
    """The random choices about an example in an epoch."""
    member = self.member(dataset, index)
    source = self._sources[member.source]
    rng = np.random.default_rng([self._seed, _DRAW, dataset, epoch, index])
    fits = self._assembler.fits(
      self._tokens.num_virtual_tokens,
      source.prompt_len(member.index),
      source.answer_lens(member.index),
    )
    usable = np.flatnonzero(fits)
    answer = REFUSAL
    if source.has_answers(member.index):
      answer = int(usable[rng.integers(len(usable))])
    first = _draw_k(self._tokens, rng)
    passages = self._draw_passages(member, rng)
    # Drawn last, so that the other choices do not depend on their number.
    more = range(1, self._tokens.draws_per_example)
    num_active = (first, *(_draw_k(self._tokens, rng) for _ in more))
    if self._tokens.always_all:
      num_active = (*num_active[:-1], self._tokens.num_virtual_tokens)
    return ExampleDraw(passages, answer, num_active)

  def target(
    self, member: Member, draw: ExampleDraw, kept: Sequence[int]
  ) -> int:
    """The number of the answer that is the target, or `REFUSAL`.

    With data.unanswerable=refuse it is the refusal if passages are shown and
    none of them has the answer. A passage has it if its text contains an answer
    of its own question. If none of the question's passages does (its answer is
    yes, or said in other words), those marked as gold have it. What was cut off
    a passage, and what a distractor contains, is not looked at.

    Args:
      member: the example.
      draw: the random choices about it.
      kept: tokens kept of each drawn passage's body; 0 if it is dropped.
    """
    shown = [p for p, n in zip(draw.passages, kept, strict=True) if n]
    if not (self._refuses and shown):
      return draw.answer
    slots = self._sources[member.source].slots(member.index)
    has_it = slots.has_answer if slots.has_answer.any() else slots.is_gold
    found = any(p.member == member and has_it[p.slot] for p in shown)
    return draw.answer if found else REFUSAL

  def source(
    self, member: Member, draw: ExampleDraw, kept: Sequence[int]
  ) -> int:
    """The number that the answer cites, from 1; 0 for no citation.

    It is that of the first shown passage that is gold or contains an answer. A
    refusal cites nothing.

    Args:
      member: the example.
      draw: the random choices about it, with the target.
      kept: tokens kept of each drawn passage's body; 0 if it is dropped.
    """
    if not self._cites or draw.answer == REFUSAL:
      return 0
    slots = self._sources[member.source].slots(member.index)
    has_it = slots.has_answer | slots.is_gold
    return assemble.first_shown(
      kept,
      [p.member == member and bool(has_it[p.slot]) for p in draw.passages],
    )

  def _draw_passages(
    self, member: Member, rng: np.random.Generator
  ) -> tuple[ShownPassage, ...]:
    policy = self._policies[member.dataset]
    low, high = policy.number
    number = int(rng.integers(low, high + 1))
    if policy.none and rng.random() < policy.none:
      return ()
    slots = self._sources[member.source].slots(member.index)
    first, count = _draw_list(
      slots.retriever, self._retrievers[member.dataset][member.source], rng
    )
    ranks = np.arange(min(count, policy.depth))
    if policy.no_answer and rng.random() < policy.no_answer:
      ranks = ranks[~slots.has_answer[first + ranks]]
    if policy.order == 'shuffled':
      ranks = rng.permutation(ranks)
    ranks = ranks[:number]
    if policy.order == 'gold_last':
      gold = slots.gold[first + ranks]
      ranks = ranks[np.argsort(gold, kind='stable')]
    shown = [
      ShownPassage(int(rank), member, first + int(rank)) for rank in ranks
    ]
    if policy.distractors:
      shown = [
        self._distractor(passage, rng)
        if rng.random() < policy.distractors
        else passage
        for passage in shown
      ]
    return tuple(shown)

  def _distractor(
    self, passage: ShownPassage, rng: np.random.Generator
  ) -> ShownPassage:
    """A passage that another example of the dataset could show.

    It takes the rank, and so the cut, of the passage that it replaces. It may
    contain an answer: that is not checked.
    """
    dataset = passage.member.dataset
    depth = self._policies[dataset].depth
    # Some examples have no passages, so try a few.
    for index in rng.integers(self.sizes[dataset], size=8).tolist():
      other = self.member(dataset, index)
      if other == passage.member:
        continue
      slots = self._sources[other.source].slots(other.index)
      first, count = _draw_list(
        slots.retriever, self._retrievers[dataset][other.source], rng
      )
      if count:
        slot = first + int(rng.integers(min(count, depth)))
        return ShownPassage(passage.rank, other, slot)
    return passage

  def prompt_len(self, member: Member) -> int:
    """Number of tokens of the question."""
    return self._sources[member.source].prompt_len(member.index)

  def answer_len(self, member: Member, answer: int) -> int:
    """Number of tokens of an answer, or of the refusal, and its end."""
    if answer == REFUSAL:
      return len(self._refusal)
    return self._sources[member.source].answer_len(member.index, answer)

  def passage_lens(self, passage: ShownPassage) -> tuple[int, int, int]:
    """See `TokenSet.passage_lens`."""
    member = passage.member
    return self._sources[member.source].passage_lens(member.index, passage.slot)

  def is_gold(self, member: Member, passage: ShownPassage) -> bool:
    """Whether a passage is gold for an example; a distractor never is."""
    if passage.member != member:
      return False
    slots = self._sources[member.source].slots(member.index)
    return bool(slots.gold[passage.slot])

  def origin(self, passage: ShownPassage) -> Origin:
    """Retriever and marks of a passage."""
    member = passage.member
    source = self._sources[member.source]
    slots = source.slots(member.index)
    return Origin(
      retriever=source.retrievers[slots.retriever[passage.slot]],
      has_answer=bool(slots.has_answer[passage.slot]),
      is_gold=bool(slots.is_gold[passage.slot]),
    )

  def passage(self, passage: ShownPassage) -> PassageIds:
    """Ids of a passage."""
    member = passage.member
    return self._sources[member.source].passage(member.index, passage.slot)

  def prompt(self, member: Member) -> np.ndarray:
    """Ids of the question."""
    return self._sources[member.source].prompt(member.index)

  def answer(self, member: Member, answer: int) -> np.ndarray:
    """Ids of an answer, or of the refusal, and its end."""
    if answer == REFUSAL:
      return self._refusal
    return self._sources[member.source].answer(member.index, answer)

  def id(self, member: Member) -> str:
    """The record's id."""
    return self._sources[member.source].id(member.index)


@dataclasses.dataclass(frozen=True)
class _EpochPosition:
  """Maps a position of a repeated order to (dataset, epoch, index)."""

  dataset: int
  size: int

  def __call__(self, position: int, index: int) -> tuple[int, int, int]:
    return self.dataset, int(position) // self.size, int(index)


def _draw_k(tokens: config.VirtualTokens, rng: np.random.Generator) -> int:
  rows = tokens.num_virtual_tokens
  if tokens.draw == 'fixed':
    return tokens.num_active
  if tokens.draw == 'uniform':
    return int(rng.integers(1, rows + 1))
  if tokens.draw == 'power':
    shares = np.cumsum(np.arange(1, rows + 1) ** -tokens.draw_exponent)
    return 1 + int(np.searchsorted(shares, rng.random() * shares[-1], 'right'))
  return rows


def _draw_list(
  retriever: np.ndarray, allowed: Sequence[int], rng: np.random.Generator
) -> tuple[int, int]:
  """First slot and length of the list of a retriever, drawn at random."""
  present = [code for code in allowed if (retriever == code).any()]
  if not present:
    return 0, 0
  code = present[int(rng.integers(len(present))) if len(present) > 1 else 0]
  slots = np.flatnonzero(retriever == code)
  return int(slots[0]), len(slots)


def _allowed(retrievers: Sequence[str], policy: config.Passages) -> list[int]:
  names = policy.retrievers or [n for n in retrievers if n != GOLD] or [GOLD]
  return [retrievers.index(name) for name in names if name in retrievers]


def _count(
  sources: Sequence[TokenSet],
  removed: Sequence[Mapping[str, np.ndarray]],
  used: Mapping[str, int],
) -> dict[str, DatasetCounts]:
  records: collections.Counter[str] = collections.Counter()
  gone: dict[str, collections.Counter[str]] = {}
  for source, reasons in zip(sources, removed, strict=True):
    counted = np.zeros(len(source), bool)
    for code, name in enumerate(source.datasets):
      records[name] += int((source.dataset == code).sum())
      gone.setdefault(name, collections.Counter())
    for reason, mask in reasons.items():
      first = mask & ~counted
      counted |= mask
      for code, name in enumerate(source.datasets):
        gone[name][reason] += int((first & (source.dataset == code)).sum())
  return {
    name: DatasetCounts(
      records=total,
      removed=dict(gone[name]),
      capped=total - gone[name].total() - used.get(name, 0),
      used=used.get(name, 0),
    )
    for name, total in sorted(records.items())
  }


def _cap(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
  if most is None or len(rows) <= most:
    return rows
  rng = np.random.default_rng([seed, _CAP])
  return rows[np.sort(rng.permutation(len(rows))[:most])]


def _check_names(settings: config.Mixture, names: Sequence[str]) -> None:
  if not names:
    raise errors.UserError(
      'config.data.train: no training example is left: every question is also '
      'in the validation or test data (config.data.mixture.remove_leaks) or '
      'too long (config.data.max_answer_tokens, max_suffix_tokens)'
    )
  fields: dict[str, Mapping[str, object]] = {
    'weights': settings.weights,
    'max_examples': settings.max_examples,
    'passages': settings.passages,
  }
  for field, value in fields.items():
    unknown = sorted(value.keys() - set(names))
    if unknown:
      raise errors.UserError(
        f'config.data.mixture.{field}: no training data of {unknown[0]!r}; '
        f'there are {errors.several(names)}'
      )
  missing = sorted(set(names) - settings.weights.keys())
  if settings.weighting == 'weights' and missing:
    raise errors.UserError(
      f'config.data.mixture.weights: no weight for {missing[0]!r}; expected '
      f'one for each of {errors.several(names)}'
    )


def _check_retrievers(
  settings: config.Mixture,
  passages: config.Passages,
  sources: Sequence[TokenSet],
) -> None:
  """Raises if a policy names a retriever that no source has."""
  there = sorted({name for source in sources for name in source.retrievers})
  policies = {'passages': passages} | {
    f'mixture.passages[{name}]': policy
    for name, policy in settings.passages.items()
  }
  for field, policy in policies.items():
    unknown = [name for name in policy.retrievers if name not in there]
    if unknown:
      raise errors.UserError(
        f'config.data.{field}.retrievers: no training data have passages of '
        f'{unknown[0]!r}; found passages of {errors.several(there)}'
      )


def _weights(
  settings: config.Mixture, names: Sequence[str], sizes: Sequence[int]
) -> list[float]:
  if settings.weighting == 'weights':
    shares = np.array([settings.weights[name] for name in names], float)
  elif settings.weighting == 'temperature':
    shares = np.array(sizes, float) ** (1 / settings.temperature)
  else:
    shares = np.array(sizes, float)
  weights: list[float] = (shares / shares.sum()).tolist()
  return weights
