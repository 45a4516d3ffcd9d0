"""Answers requests in a running program: one loaded base, several tables.

    engine = Engine.open('runs/quickstart')          # a run, or an export
    engine.add('other', 'exports/other')
    [answer] = engine.answer([Request(question='When?', passages=['...'],
                                      table='other', k=5)])
    for part in engine.stream([Request(prompt='Once upon')]):
      print(part.text, end='')

`requests.py` has what goes in and out: `Request`, `Completion`, `Increment`.
`Engine` (engine.py) checks a request without the device (`prepare`), answers a
list at once (`answer`), or yields text as it comes (`stream`). A `Batch`
(batch.py) is a stream under the caller's control: `start`, then `advance` some
tokens at a time, `cancel` rows. `Run` (run.py) is what `vtokens.load` returns.

Evaluation and this package share the way from text to ids (`Prompter`,
`Assembler`), the program (`method.generate`) and the way back (`AnswerReader`).
A completion depends on its own request alone, except that the last digits of
its log-probabilities depend on the shape of the batch.

All methods may be called from any thread. The device runs one program at a
time; between the rounds of one batch, those of other batches run.
"""

from vtokens.answering.batch import Batch
from vtokens.answering.engine import Engine
from vtokens.answering.requests import (
  Completion,
  Increment,
  Prepared,
  Request,
)

__all__ = [
  'Batch',
  'Completion',
  'Engine',
  'Increment',
  'Prepared',
  'Request',
]
