"""A data format that is added from outside the package."""

import json
import subprocess
import sys

# What a user's config file would hold. Another process, since registering
# changes how the rest of a process reads rows.
_PROGRAM = """
import sys
from vtokens.data import formats
from vtokens.data.formats import drafts, row_formats

print(formats.version())


def exam(fields):
  notes = [one for one, _ in drafts.listed(fields, 'notes', text='body')]
  return drafts.make(fields, 'solution', passages={'given': [*notes]})


row_formats.register(['solution', 'notes'], exam)
print(formats.version())
report = formats.BadRecords('skip')
for record in formats.read_all(sys.argv[1:], report=report):
  print(record.question, record.answers, record.passages['given'][0].text)
print(report.messages)
"""


def test_a_format_from_outside(tmp_path):
  path = tmp_path / 'exam.jsonl'
  rows = [
    {'question': 'Who?', 'solution': ['Ada'], 'notes': [{'body': 'Ada did.'}]},
    {'question': 'Who?', 'solution': 5, 'notes': []},
    # A row of another format, and keys that no format reads.
    {'question': 'Why?', 'answers': ['So'], 'passages': ['It is so.']},
    {'question': 'Why?', 'answers': ['So'], 'evidence': 'It is so.'},
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  output = subprocess.check_output(
    [sys.executable, '-c', _PROGRAM, str(path)], text=True
  )
  version, with_exam, first, second, messages = output.splitlines()
  assert version == '2'
  assert with_exam == "[2, 'solution notes: exam']"
  assert first == "Who? ('Ada',) Ada did."
  assert second == "Why? ('So',) It is so."
  bad = eval(messages)
  assert len(bad) == 2
  assert bad[0].startswith(f'{path}:2: solution: ')
  assert bad[1].startswith(f'{path}:4: evidence: ')
