"""Ends an answer at a text, while it comes in pieces."""

from collections.abc import Sequence


class TextEnd:
  """Passes an answer on up to where it ends.

  What may be the start of a stop text is held back until more is known.

  Args:
    stop: texts that end the answer, and are not part of it.
    newline: whether the first line break after text ends it, too. White space
      around the answer is then left out, as in scores of a run.

  Attributes:
    ended: whether a text has ended the answer.
  """

  def __init__(self, stop: Sequence[str], newline: bool):
    self._stop = tuple(stop)
    self._newline = newline
    self._held = ''
    self._begun = False
    self.ended = False

  def add(self, text: str) -> str:
    """Returns what may be passed on, once more text has come."""
    if self.ended:
      return ''
    self._held += text
    if self._newline and not self._begun:
      self._held = self._held.lstrip()
      self._begun = bool(self._held)
    found = [at for at in map(self._held.find, self._stops()) if at >= 0]
    if found:
      self.ended = True
      return self._pass(min(found), last=True)
    return self._pass(len(self._held) - self._open(), last=False)

  def end(self) -> str:
    """Returns the rest, once all text has come."""
    return '' if self.ended else self._pass(len(self._held), last=True)

  def _stops(self) -> tuple[str, ...]:
    return (*self._stop, '\n') if self._newline else self._stop

  def _open(self) -> int:
    """Characters at the end that may be the start of a stop text."""
    return max(
      (
        size
        for stop in self._stops()
        for size in range(1, min(len(stop), len(self._held) + 1))
        if self._held.endswith(stop[:size])
      ),
      default=0,
    )

  def _pass(self, size: int, *, last: bool) -> str:
    found = self._held[:size]
    if self._newline:
      # White space is left out only at the end of the answer.
      size = len(found.rstrip())
      found = found[:size]
    self._held = '' if last else self._held[size:]
    return found
