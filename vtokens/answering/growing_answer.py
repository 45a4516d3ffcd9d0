"""The answer to one request while its tokens come."""

import time
from collections.abc import Sequence

import numpy as np

from vtokens.answering.requests import Completion, Increment, Prepared
from vtokens.evaluation.asking.endings import AnswerReader, tidy

# What a decoder writes for a character whose bytes are not all there.
_INCOMPLETE = '\ufffd'

_Top = tuple[tuple[int, float], ...]


class GrowingAnswer:
  """Collects tokens, finds the end, and gives out text that is final.

  Args:
    number: number of the request in its list.
    prepared: the request.
    reader: reads tokens of the base.
    began: when its batch began, by `time.perf_counter`.

  Attributes:
    completion: the answer once it has ended, None before.
  """

  def __init__(
    self,
    number: int,
    prepared: Prepared,
    reader: AnswerReader,
    began: float,
  ):
    self.completion: Completion | None = None
    self._number = number
    self._prepared = prepared
    self._reader = reader
    self._began = began
    # With the token that ends the answer.
    self._tokens: list[int] = []
    self._log_probs: list[float] = []
    self._top: list[_Top] = []
    self._told_ids = 0
    self._told = ''

  def add(
    self,
    tokens: Sequence[int],
    log_probs: Sequence[float],
    top: Sequence[_Top] = (),
  ) -> Increment | None:
    """Adds tokens; those after the end are ignored.

    Args:
      tokens: the next tokens.
      log_probs: log-probability of each.
      top: most likely tokens at each place, if they were asked for.

    Returns:
      What is new; None if nothing is.
    """
    if self.completion is not None:
      return None
    room = self._prepared.max_new_tokens - len(self._tokens)
    self._tokens += tokens[:room]
    self._log_probs += log_probs[:room]
    self._top += top[:room]
    prepared = self._prepared
    ending = self._reader.find_end(self._tokens, at_newline=prepared.at_newline)
    text = self._reader.decode(self._tokens[: ending.shown])
    size, scored, stop = ending.size, ending.scored, ending.stop
    cut = self._find_stop(text)
    if cut is not None:
      stop = 'stop'
      text = text[:cut]
      size = scored = self._tokens_to_stop(ending.shown)
    elif stop == 'length' and len(self._tokens) < prepared.max_new_tokens:
      return self._tell(self._visible(text, final=False), size)
    return self._end(text, size, scored, stop)

  def cancel(self) -> Increment | None:
    """Ends the answer where it is."""
    if self.completion is not None:
      return None
    size = len(self._tokens)
    text = self._reader.decode(self._tokens)
    return self._end(text, size, size, 'cancelled')

  def _end(self, text: str, size: int, scored: int, stop: str) -> Increment:
    example = self._prepared.example
    text = self._visible(text, final=True)
    told = self._log_probs[:scored]
    self.completion = Completion(
      text=text,
      ids=tuple(self._tokens[:size]),
      log_probs=tuple(self._log_probs[:size]),
      top=tuple(self._top[:size]),
      confidence=float(np.mean(told, dtype=np.float64)) if told else 0.0,
      stop=stop,
      prompt_tokens=self._prepared.prompt_tokens,
      shown=example.shown,
      passages_dropped=example.passages_dropped,
      passages_cut=example.passages_cut,
      seconds=time.perf_counter() - self._began,
    )
    last = self._tell(text, size)
    assert last is not None
    return last

  def _tell(self, text: str, size: int) -> Increment | None:
    """The increment up to a text and a number of tokens."""
    # Some tokenizers change earlier text when more follows.
    new = text[len(self._told) :] if text.startswith(self._told) else ''
    start, self._told_ids = self._told_ids, max(self._told_ids, size)
    if not new and self._told_ids == start and self.completion is None:
      return None
    self._told += new
    return Increment(
      number=self._number,
      text=new,
      ids=tuple(self._tokens[start:size]),
      log_probs=tuple(self._log_probs[start:size]),
      top=tuple(self._top[start:size]),
      completion=self.completion,
    )

  def _visible(self, text: str, *, final: bool) -> str:
    """The part of a text that no later token changes."""
    at_newline = self._prepared.at_newline
    if not final:
      held = max(
        (
          size
          for stop in self._prepared.request.stop
          for size in range(1, len(stop))
          if text.endswith(stop[:size])
        ),
        default=0,
      )
      text = text[: len(text) - held].rstrip(_INCOMPLETE)
    # Without `final` this holds back white space that may be the last.
    return tidy(text, at_newline=at_newline) if self._prepared.tidy else text

  def _find_stop(self, text: str) -> int | None:
    """Where the first stop text begins; None without one."""
    found = [text.find(stop) for stop in self._prepared.request.stop]
    return min((at for at in found if at >= 0), default=None)

  def _tokens_to_stop(self, size: int) -> int:
    """Number of tokens up to the first stop text."""
    while size > 1:
      if self._find_stop(self._reader.decode(self._tokens[: size - 1])) is None:
        break
      size -= 1
    return size
