"""Which tokens a chat template itself writes to begin and end turns.

Fine-tunes often add such tokens without flagging them special. They are special
all the same: text of a passage that becomes one of them ends a turn.
"""

import json
from collections.abc import Callable, Sequence

import tokenizers

# What stands for the content of a message. Letters only, so that no template's
# escaping changes it.
PLACEHOLDER = 'VTOKENSUSERMESSAGE'

# From messages, whether an answer is to follow and whether the model may think
# first, to text.
Render = Callable[[list[dict[str, str]], bool, bool], str]


def find(
  render: Render, encode: Callable[[str], list[int]], candidates: Sequence[int]
) -> frozenset[int]:
  """The candidates that the template needs to begin and end turns.

  Those that it writes whether the model is to think or not: `<think>` of Qwen3
  and SmolLM3 is no mark.

  Args:
    render: the template; may raise anything.
    encode: from trusted text to ids.
    candidates: ids of tokens that are not flagged special.
  """
  system, user, assistant = (
    {'role': role, 'content': PLACEHOLDER}
    for role in ('system', 'user', 'assistant')
  )

  def written(messages: list[dict[str, str]], ask: bool, parts: slice) -> set:
    """Ids outside of the contents."""
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
  # Before an answer that is the last, Qwen3 may write thoughts.
  marks |= written([user, assistant], False, end)
  if not marks:
    # One that shows a single message alone.
    marks = written([user], True, everything)
  return frozenset(marks.intersection(candidates))


def flagged(
  backend: tokenizers.Tokenizer, marks: frozenset[int]
) -> tokenizers.Tokenizer:
  """The tokenizer with added tokens flagged special."""
  values = json.loads(backend.to_str())
  for token in values['added_tokens']:
    token['special'] = token['special'] or token['id'] in marks
  return tokenizers.Tokenizer.from_str(json.dumps(values))
