r"""Compares the GPU's attention kernels with matrix products on this machine.

    python benchmarks/kernel_values.py --json kernel_values.json

Values and gradients, for the heads of many models; see `kernel_check.compare`.
`--interpret` runs the kernels without a GPU, slowly, for a trial.
"""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from vtokens.host import errors
from vtokens.models.kernels import kernel_check

_INTERPRET = flags.DEFINE_boolean('interpret', False, 'Without a GPU.')
_FIRST = flags.DEFINE_integer('first', None, 'So many cases; None for all.')
_JSON = flags.DEFINE_string('json', None, 'File for what was found.')

# Query heads for each key head, width, soft cap, windows, sinks.
_CASES = {
  'gpt-oss': (8, 64, None, True, True),
  'Mistral 7B, Llama 3': (4, 128, None, False, False),
  'Qwen3 30B-A3B': (8, 128, None, False, False),
  'Gemma 2': (2, 256, 50.0, True, False),
  'SmolLM2': (3, 64, None, False, False),
  'Phi 2': (1, 80, None, False, False),
}


def main(argv: list[str]) -> None:
  del argv
  device = jax.devices()[0]
  found: dict[str, Any] = {'device': device.device_kind, 'jax': jax.__version__}
  cases: dict[str, Any] = {}
  for name, case in list(_CASES.items())[: _FIRST.value]:
    began = time.perf_counter()
    try:
      kernel_check.compare(
        *case, jnp.dtype(jnp.bfloat16), device, interpret=_INTERPRET.value
      )
      said = 'right'
    except errors.UserError as e:
      said = str(e)
    cases[name] = {'said': said, 'seconds': time.perf_counter() - began}
    print(name, cases[name], flush=True)
    if _JSON.value:
      text = json.dumps({**found, 'cases': cases}, indent=2)
      pathlib.Path(_JSON.value).write_text(text + '\n')
  if any(case['said'] != 'right' for case in cases.values()):
    raise SystemExit('a kernel is wrong')


if __name__ == '__main__':
  app.run(main)
