"""An interactive session of `vtokens.ask`."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from vtokens.answering import asked_passages, shown_answers
from vtokens.answering.asked_passages import Shown
from vtokens.answering.requests import Request
from vtokens.answering.run import Run
from vtokens.data.records import Passage
from vtokens.host import errors, user_cache, writers
from vtokens.serving import prompt_ids

HELP = """\
a line is a question; a line that begins with / is a command
/k NUMBER        use so many virtual tokens; /k all for all of them
/passages FILE   show the passages of a file: .jsonl, or text with blank lines
/passage TEXT    show this passage, too
/passages        list the passages that are shown
/clear           show none, or those that the index finds
/compare         answer the last question also without virtual tokens
/help            this list
/quit            end; so does the end of the input"""


@dataclasses.dataclass
class Session:
  """Answers lines until the input ends.

  Attributes:
    run: answers.
    shown: which passages are shown.
    k: number of virtual tokens; None for all.
    as_json: write a line of JSON for each answer.
  """

  run: Run
  shown: Shown
  k: int | None = None
  as_json: bool = False
  _last: str = dataclasses.field(default='', init=False)

  def loop(self) -> None:
    """Reads lines from standard input. A wrong line does not end it."""
    if sys.stdin.isatty():
      writers.say(
        f'{self.run.table.count} virtual tokens; /help lists the commands'
      )
    for line in _lines():
      try:
        if not self.take(line):
          return
      except errors.UserError as e:
        print(f'error: {e}', file=sys.stderr, flush=True)

  def take(self, line: str) -> bool:
    """Takes one line; returns whether there may be more.

    Raises:
      errors.UserError: the line is wrong.
    """
    line = line.strip()
    if not line:
      return True
    if not line.startswith('/'):
      self._answer(line)
      return True
    name, _, rest = line.partition(' ')
    rest = rest.strip()
    if name in ('/quit', '/exit') and not rest:
      return False
    if name == '/help':
      writers.say(HELP)
    elif name == '/k':
      self._set_k(rest)
    elif name == '/passage' and rest:
      self._show([*self.shown.given, *prompt_ids.read_passages([rest])])
    elif name == '/passages':
      self._show(asked_passages.read(rest) if rest else self.shown.given)
    elif name == '/clear':
      self.shown.given = ()
    elif name == '/compare':
      self._compare(rest or self._last)
    else:
      raise errors.UserError(
        f'{errors.shorten(line)}: no such command; /help lists them'
      )
    return True

  def _set_k(self, text: str) -> None:
    if text == 'all':
      self.k = None
      return
    most = self.run.table.count
    number = int(text) if text.isascii() and text.isdigit() else text
    self.k = prompt_ids.check_number(number, 1, most, '/k ', ', or all')

  def _show(self, passages: Any) -> None:
    self.shown.given = tuple(passages)
    for number, passage in enumerate(self.shown.given, 1):
      writers.say(f'[{number}] {_beginning(passage)}')

  def _answer(self, question: str) -> None:
    self._last = question
    passages = self.shown.of(question)
    request = Request(
      question=question, passages=passages, table=self.run.name, k=self.k
    )
    if self.as_json:
      [answer] = self.run.engine.answer([request])
      row = {
        'question': question,
        **shown_answers.as_json(answer),
        'passages': shown_answers.passages_as_json(passages),
      }
      writers.say(json.dumps(row, ensure_ascii=False))
      return
    if self.shown.index is not None and not self.shown.given:
      for number, passage in enumerate(passages, 1):
        writers.say(f'[{number}] {_beginning(passage)}')
    for part in self.run.engine.stream([request], every=2):
      print(part.text, end='', flush=True)
      if part.completion is not None:
        details = shown_answers.details(part.completion, len(passages))
        writers.say(f'\n{details}')

  def _compare(self, question: str) -> None:
    if not question:
      raise errors.UserError('/compare: ask a question first')
    self._last = question
    passages = self.shown.of(question)
    found = self.run.compare(question, passages, k=self.k)
    if self.as_json:
      answers = {
        name: shown_answers.as_json(answer) for name, answer in found.items()
      }
      row = {'question': question, 'answers': answers}
      writers.say(json.dumps(row, ensure_ascii=False))
      return
    writers.say(shown_answers.table(found, self.k or self.run.table.count))


def _beginning(passage: Passage) -> str:
  """The first words of a passage, on one line."""
  text = f'{passage.title}: {passage.text}' if passage.title else passage.text
  return errors.shorten(' '.join(text.split()), 70)


def _lines() -> Iterator[str]:
  """Lines of standard input, with a prompt and history at a terminal."""
  if not sys.stdin.isatty():
    yield from sys.stdin
    return
  with _history():
    while True:
      try:
        yield input('> ')
      except EOFError:
        writers.say()
        return


@contextlib.contextmanager
def _history() -> Iterator[None]:
  """Lets the arrow keys bring back earlier lines, also of earlier sessions."""
  try:
    import readline
  except ImportError:  # Not on Windows.
    yield
    return
  path: pathlib.Path | None = None
  # A history that cannot be kept is no reason to refuse answers.
  with contextlib.suppress(OSError, errors.UserError):
    path = user_cache.directory() / 'ask_history'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    readline.read_history_file(path)
  readline.set_history_length(1000)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      if path is not None:
        readline.write_history_file(path)
