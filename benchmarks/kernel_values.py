r"""Compares what GPUs compute in forms of their own with plain products.

    python benchmarks/kernel_values.py --json kernel_values.json

Values and gradients of the attention kernels, for the heads of many models (see
`kernel_check.compare`), and of products with experts in MXFP4.
`--interpret` runs the kernels without a GPU, slowly, for a trial.
"""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags

from vtokens.host import errors
from vtokens.models import quantize
from vtokens.models.kernels import kernel_check
from vtokens.models.mlps import grouped
from vtokens.settings import flags

_INTERPRET = absl_flags.DEFINE_boolean('interpret', False, 'Without a GPU.')
_FIRST = absl_flags.DEFINE_integer(
  'first', None, 'So many cases; None for all.'
)
_JSON = absl_flags.DEFINE_string('json', None, 'File for what was found.')

# Query heads for each key head, width, soft cap, windows, sinks.
_CASES = {
  'gpt-oss': (8, 64, None, True, True),
  'Mistral 7B, Llama 3': (4, 128, None, False, False),
  'Qwen3 30B-A3B': (8, 128, None, False, False),
  'Gemma 2': (2, 256, 50.0, True, False),
  'SmolLM2': (3, 64, None, False, False),
  'Phi 2': (1, 80, None, False, False),
}


# GPUs may round the factors of float32 products to TF32, by 2 ** -11 each.
_LARGEST_ERROR = 2e-3


def _experts_in_mxfp4() -> dict[str, float]:
  """Relative errors of values and gradient, against products in float64."""
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(4, 96, 64)).astype(np.float32)
  x, toward = (rng.normal(size=(50, n)).astype(np.float32) for n in (96, 64))
  groups = rng.integers(4, size=50)
  values, scales = jax.vmap(lambda w: quantize.quantise(w, 1, 'mxfp4'))(weight)
  matrix = quantize.Matrix(
    values, scales, ('expert', 'a', 'b'), weight.shape, 1, 1
  )
  codes = np.float64(np.asarray(values).astype(np.float32))
  exact = codes * np.repeat(np.asarray(scales).astype(np.float64), 32, axis=1)

  @jax.jit
  def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    order = grouped.sort(jnp.asarray(groups), 4)
    y = grouped.product(
      grouped.dispatch(x, order, 1), matrix, order, jax.default_backend()
    )
    y = grouped.combine(y, order, 1)
    return (y * toward).sum(), y

  (_, y), slope = jax.value_and_grad(run, has_aux=True)(x)
  own = exact[groups]
  found = {
    'values': (y, np.einsum('mc,mco->mo', x, own)),
    'gradient': (slope, np.einsum('mo,mco->mc', toward, own)),
  }
  return {
    name: float(np.abs(a - b).max() / np.abs(b).max())
    for name, (a, b) in found.items()
  }


def main(argv: Sequence[str]) -> None:
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
  experts = _experts_in_mxfp4()
  print('experts in MXFP4, relative errors', experts, flush=True)
  if _JSON.value:
    found |= {'cases': cases, 'experts in MXFP4, relative errors': experts}
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + '\n')
  # NaN fails, too.
  if not all(error <= _LARGEST_ERROR for error in experts.values()):
    raise SystemExit('a product with experts in MXFP4 is wrong')
  if any(case['said'] != 'right' for case in cases.values()):
    raise SystemExit('a kernel is wrong')


if __name__ == '__main__':
  flags.run(main)
