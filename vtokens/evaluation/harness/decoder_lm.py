"""The frozen base, with or without virtual tokens, as a model of lm-eval.

It needs the extra `lm-eval`. Any task of the harness can be asked:

    lm = DecoderLM(base, mesh, batch_size=16)
    lm_eval.simple_evaluate(model=lm, tasks=['arc_easy'])
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from lm_eval import utils as harness_utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from vtokens.evaluation.harness import (
  continuation_scores,
  continued_prompts,
  prompt_batches,
  response_log,
)
from vtokens.evaluation.harness.continued_prompts import (
  Continuation,
  TokenChoice,
)
from vtokens.host import errors, stopping
from vtokens.models import frozen_base
from vtokens.models.frozen_base import FrozenBase
from vtokens.serving import table_file

# Most tokens of the options that one row has side by side.
_OPTIONS_OF_A_ROW = 512
_GENERATION = ('until', 'max_gen_toks', 'do_sample', 'temperature', 'top_p')


@dataclasses.dataclass(frozen=True, eq=False)
class PluggedTable:
  """Virtual tokens that every prompt gets.

  Attributes:
    rows: the tokens in use, array of shape [k, D], float32.
    position: last puts them after the prompt; otherwise they stand before it,
      after bos.
  """

  rows: Float[np.ndarray, 'k D']
  position: str = 'middle'


class RequestEncoder:
  """Ids of requests.

  Args:
    base: the model; its weights are not needed.
    plugged: virtual tokens of each prompt; None for none.

  Attributes:
    bos: ids before every text.
    max_length: most tokens that the model takes, with virtual tokens.
    num_shortened: prompts whose beginning was cut off to fit.
  """

  def __init__(
    self,
    base: frozen_base.OpenBase | FrozenBase,
    plugged: PluggedTable | None = None,
  ):
    self._tokenizer = base.tokenizer
    self.bos = tuple(base.tokenizer.prefix_ids)
    self.max_length = frozen_base.longest_sequence(base)
    self.num_shortened = 0
    self._last = plugged is not None and plugged.position == 'last'
    first = base.config.vocab_size
    size = 0 if plugged is None else len(plugged.rows)
    self._virtual = tuple(range(first, first + size))

  @property
  def room(self) -> int:
    """Tokens of text that a sequence has room for, bos aside."""
    return self.max_length - len(self.bos) - len(self._virtual)

  def text(self, text: str) -> list[int]:
    """Ids of plain text, after bos."""
    return [*self.bos, *self._tokenizer.encode(text)]

  def prompt(self, ids: Sequence[int], num_new: int) -> np.ndarray:
    """A whole prompt: bos, virtual tokens and the end of the text that fits.

    Args:
      ids: of the text, after bos if it has it.
      num_new: tokens after the prompt that the model has to take in.

    Raises:
      errors.UserError: the new tokens alone are too many.
    """
    if num_new > self.room:
      raise errors.UserError(
        f'a request asks for {num_new:,} tokens after its prompt; the base '
        f'has room for {self.room:,}'
      )
    start = self.bos if tuple(ids[: len(self.bos)]) == self.bos else ()
    rest = ids[len(start) :]
    if len(rest) + num_new > self.room:
      self.num_shortened += 1
      rest = rest[len(rest) + num_new - self.room :]
    parts = (rest, self._virtual) if self._last else (self._virtual, rest)
    found = [*start, *parts[0], *parts[1]]
    return np.asarray(found or [self._tokenizer.bos_id], np.int32)


class DecoderLM(TemplateLM):
  """Answers requests of lm-eval on all devices of a mesh.

  Texts are encoded as transformers does: special tokens in them stay text, bos
  comes first where the tokenizer adds it. A prompt that is too long loses its
  beginning, as in lm-eval's own models, and is counted.

  Args:
    base: the frozen model.
    mesh: the devices.
    batch_size: prompts at a time.
    plugged: virtual tokens of each prompt; None for none.
    max_new_tokens: longest continuation where a task does not say.
    seed: of draws, for tasks that sample.
    log: keeps responses; None keeps none.
    label: of progress bars.
    stop: drops the batch that is being computed.
  """

  def __init__(
    self,
    base: FrozenBase,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    plugged: PluggedTable | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    log: response_log.ResponseLog | None = None,
    label: str = 'lm-eval',
    stop: stopping.StopRequest | None = None,
  ):
    super().__init__()
    self.encoder = RequestEncoder(base, plugged)
    self._base = base
    self._mesh = mesh
    self._batch_size = batch_size
    self._max_new_tokens = max_new_tokens
    self._seed = seed
    self._log = log
    self._label = label
    self._stop = stop or stopping.StopRequest()
    self._known: dict[str, list[Any]] = {}
    self._table = prompt_batches.no_table(base)
    # What keys of responses begin with.
    self._about: list[Any] = []
    if plugged is not None:
      self._table = np.asarray(plugged.rows, np.float32)
      self._about = [table_file.sha256(self._table), plugged.position]

  @property
  def eot_token_id(self) -> int:
    """The token that ends a text."""
    return self._base.tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    """The token that stands before a text without a context."""
    return self._base.tokenizer.bos_id

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused: Any
  ) -> list[int]:
    """Ids of plain text; after bos unless `add_special_tokens` is False."""
    if add_special_tokens is False:
      return self._base.tokenizer.encode(string)
    return self.encoder.text(string)

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = True
  ) -> list[tuple[float, bool]]:
    """See `lm_eval.api.model.LM`."""
    scores: list[tuple[float, bool]] = super().loglikelihood(
      requests, disable_tqdm=disable_tqdm
    )
    return scores

  def num_tokens(self, context: str, continuation: str) -> int:
    """Tokens of a continuation."""
    return len(self._encode_pair(context, continuation)[1])

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = True
  ) -> list[float]:
    """See `lm_eval.api.model.LM`. Bos is a context and never predicted."""
    windows = [
      [
        harness_utils.make_disjoint_window(pair)
        for pair in harness_utils.get_rolling_token_windows(
          token_list=self._base.tokenizer.encode(request.args[0]),
          prefix_token=self.prefix_token_id,
          max_seq_len=self.encoder.room,
          context_len=1,
        )
      ]
      for request in requests
    ]
    scores = iter(self._score(list(itertools.chain(*windows))))
    return [sum(next(scores)[0] for _ in part) for part in windows]

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **unused: Any
  ) -> list[tuple[float, bool]]:
    return self._score([(context, ids) for _, context, ids in requests])

  def _score(
    self, pairs: Sequence[tuple[list[int], list[int]]]
  ) -> list[tuple[float, bool]]:
    """Log-probability of each continuation, and whether it is greedy."""
    prompts = [
      # The last token of a continuation is predicted, not taken in.
      self.encoder.prompt(context, max(0, len(ids) - 1))
      for context, ids in pairs
    ]
    keys = [
      self._key('loglikelihood', prompt.tolist(), ids)
      for prompt, (_, ids) in zip(prompts, pairs, strict=True)
    ]
    asked: dict[str, tuple[np.ndarray, list[int]]] = {}
    for key, prompt, (_, ids) in zip(keys, prompts, pairs, strict=True):
      if not ids:
        self._known[key] = [0.0, True]
      elif self._response(key) is None:
        asked[key] = prompt, ids
    items, item_keys = _side_by_side(asked)
    for index, scores in continuation_scores.score(
      self._base,
      self._mesh,
      items,
      table=self._table,
      batch_size=self._batch_size,
      label=self._label,
      stop=self._stop,
    ):
      self._keep(
        {
          key: [*score]
          for i, part in zip(index, scores, strict=True)
          for key, score in zip(item_keys[i], part, strict=True)
        }
      )
    found = [self._response(key) for key in keys]
    return [(value[0], value[1]) for value in found if value is not None]

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = True
  ) -> list[str]:
    """See `lm_eval.api.model.LM`.

    Raises:
      errors.UserError: a task asks for something other than greedy decoding or
        sampling with temperature and top_p.
    """
    counts: collections.Counter[str] = collections.Counter()
    keys, asked = [], {}
    for request in requests:
      context, settings = request.args
      key, draw, task = self._continuation_task(context, settings)
      if draw.temperature:
        # lm-eval repeats a request for each sample that it wants.
        counts[key] += 1
        key = self._key(key, counts[key])
        task = dataclasses.replace(task, name=key)
      keys.append(key)
      if self._response(key) is None:
        asked[key] = draw, task
    for draw, tasks in _by_draw(asked.values()):
      for i, found in continued_prompts.continue_prompts(
        self._base,
        self._mesh,
        tasks,
        draw,
        table=self._table,
        batch_size=self._batch_size,
        label=self._label,
        stop=self._stop,
      ):
        self._keep({tasks[i].name: [*dataclasses.astuple(found)]})
    return [self._continuation(key).text for key in keys]

  def continuation(
    self, context: str, settings: Mapping[str, Any]
  ) -> Continuation:
    """A greedy continuation that `generate_until` has found."""
    return self._continuation(self._continuation_task(context, settings)[0])

  def _continuation(self, key: str) -> Continuation:
    found = self._response(key)
    assert found is not None
    return Continuation(*found)

  def _continuation_task(
    self, context: str, settings: Mapping[str, Any]
  ) -> tuple[str, TokenChoice, continued_prompts.OpenPrompt]:
    values = normalize_gen_kwargs(dict(settings), self._max_new_tokens)
    others = sorted(set(values) - set(_GENERATION))
    if not values['do_sample'] and 'top_k' in others:
      others.remove('top_k')  # Greedy decoding takes the first anyway.
    if others:
      raise errors.UserError(
        f'generation_kwargs of a task: found {errors.several(others)}, '
        f'expected some of {", ".join(_GENERATION)}'
      )
    draw = TokenChoice(
      values['max_gen_toks'],
      float(values.get('temperature', 0.0)) if values['do_sample'] else 0.0,
      float(values.get('top_p', 1.0)),
      self._seed,
    )
    until = tuple(text for text in values['until'] if text)
    prompt = self.encoder.prompt(
      self.encoder.text(context), draw.max_new_tokens
    )
    about = (
      dataclasses.asdict(draw) if draw.temperature else draw.max_new_tokens
    )
    key = self._key('generate_until', prompt.tolist(), until, about)
    return key, draw, continued_prompts.OpenPrompt(key, prompt, until)

  def _key(self, *parts: Any) -> str:
    return response_log.key(*self._about, *parts)

  def _response(self, key: str) -> list[Any] | None:
    if key in self._known or self._log is None:
      return self._known.get(key)
    return self._log.get(key)

  def _keep(self, responses: dict[str, list[Any]]) -> None:
    if self._log is None:
      self._known |= responses
    else:
      self._log.add(responses)


def _side_by_side(
  asked: Mapping[str, tuple[np.ndarray, list[int]]],
) -> tuple[list[continuation_scores.Item], list[list[str]]]:
  """An item for each prompt, and the keys of its options."""
  rows: list[tuple[np.ndarray, list[str]]] = []
  open_rows: dict[bytes, int] = {}
  room: dict[int, int] = {}
  for key, (prompt, ids) in asked.items():
    row = open_rows.get(prompt.tobytes(), -1)
    if room.get(row, 0) < len(ids):
      row = len(rows)
      open_rows[prompt.tobytes()] = row
      room[row] = max(_OPTIONS_OF_A_ROW, len(ids))
      rows.append((prompt, []))
    room[row] -= len(ids)
    rows[row][1].append(key)
  items = [
    continuation_scores.Item(
      prompt, tuple(np.asarray(asked[key][1], np.int32) for key in keys)
    )
    for prompt, keys in rows
  ]
  return items, [keys for _, keys in rows]


def _by_draw(
  asked: Sequence[tuple[TokenChoice, continued_prompts.OpenPrompt]] | Any,
) -> Iterator[tuple[TokenChoice, list[continued_prompts.OpenPrompt]]]:
  found: dict[TokenChoice, list[continued_prompts.OpenPrompt]] = {}
  for draw, task in asked:
    found.setdefault(draw, []).append(task)
  yield from found.items()
