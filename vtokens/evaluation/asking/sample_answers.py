"""One test question with the answers of a run, for the end of its output."""

from typing import Any

from etils import epath

from vtokens.host import json_files, paths

# What the conditions are called, in the order of the lines.
_LABELS = {
  'closed_book': 'without passages',
  'concat': 'with passages',
  'prompt': 'with an instruction',
}
_ROW = {'question': str, 'prediction': str, 'answers': [str]}
_ADVICE = 'delete it: only this list needs it'


def describe(workdir: str, num_active: int) -> str:
  """Shows how the base and the virtual tokens answered one test question.

  It is the first question that the virtual tokens answered right, or the first
  of all if there is none.

  Args:
    workdir: of a finished run.
    num_active: number of virtual tokens (k) whose answers are shown.

  Returns:
    Some lines, or '' if the run has no such predictions.

  Raises:
    errors.UserError: a file of predictions is damaged.
  """
  tokens = _read(workdir, f'tokens_k{num_active}')
  if not tokens:
    return ''
  right = [i for i, row in enumerate(tokens) if row.get('em')]
  chosen = right[0] if right else 0
  lines = {'expected': ' / '.join(tokens[chosen]['answers'])}
  for name, label in _LABELS.items():
    rows = _read(workdir, name)
    if len(rows) == len(tokens):
      lines[label] = rows[chosen]['prediction']
  lines[f'with {num_active} virtual tokens'] = tokens[chosen]['prediction']
  which = (
    f'the first of {len(right)} that the virtual tokens answered right'
    if right
    else 'none was answered right'
  )
  width = max(map(len, lines))
  return '\n'.join(
    [
      f'one of {len(tokens)} test questions, {which}:',
      tokens[chosen]['question'],
      *(
        f'  {label:<{width}}  {text or "(empty)"}'
        for label, text in lines.items()
      ),
    ]
  )


def _read(workdir: str, name: str) -> list[dict[str, Any]]:
  path = epath.Path(workdir) / 'predictions' / f'{name}.jsonl'
  if not paths.exists(path):
    return []
  return [row for _, row in json_files.read_lines(path, _ROW, _ADVICE)]
