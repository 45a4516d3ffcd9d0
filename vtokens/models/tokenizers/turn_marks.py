"""Finds the tokens that a chat template writes to begin and end turns.

Fine-tunes often add such tokens without flagging them special. They must be
treated as special: otherwise the text of a passage could end a turn.
"""

import json
from collections.abc import Callable, Sequence

import tokenizers

# Stands for the content of a message. It has only letters, so that no template
# escapes them.
PLACEHOLDER = 'VTOKENSUSERMESSAGE'

# Renders messages to text. The flags say whether an answer follows and whether
# the model may think first.
Render = Callable[[list[dict[str, str]], bool, bool], str]


def find(
  render: Render, encode: Callable[[str], list[int]], candidates: Sequence[int]
) -> frozenset[int]:
  """The candidates that the template writes to begin and end turns.

  Only tokens that it writes both with and without thinking count: `<think>` of
  Qwen3 and SmolLM3 is no mark.

  Args:
    render: the template; may raise anything.
    encode: encodes trusted text.
    candidates: ids of tokens that are not flagged special.
  """
  system, user, assistant = (
    {'role': role, 'content': PLACEHOLDER}
    for role in ('system', 'user', 'assistant')
  )

  def written(
    messages: list[dict[str, str]], ask: bool, parts: slice
  ) -> set[int]:
    """Ids outside of the messages' contents."""
    found = []
    for think in (False, True):
      try:
        text = render(messages, ask, think)
      except Exception:  # A template is a program of the model's author.
        return set()
      pieces = text.split(PLACEHOLDER)[parts]
      found.append({i for piece in pieces for i in encode(piece)})
    return set.intersection(*found)

  everything, end = slice(None), slice(-1, None)
  marks = written([user, assistant, user], False, everything)
  marks |= written([system, user, assistant, user], False, everything)
  # Qwen3 may write thoughts before the last answer.
  marks |= written([user, assistant], False, end)
  if not marks:
    # The template may accept only a single message.
    marks = written([user], True, everything)
  return frozenset(marks.intersection(candidates))


def flagged(
  backend: tokenizers.Tokenizer, marks: frozenset[int]
) -> tokenizers.Tokenizer:
  """The tokenizer with `marks` flagged special."""
  values = json.loads(backend.to_str())
  for token in values['added_tokens']:
    token['special'] = token['special'] or token['id'] in marks
  return tokenizers.Tokenizer.from_str(json.dumps(values))
