"""How far our logits are from transformers', for every family.

Runs the tiny models of `tests/support/decoder_cases.py` in float32 over ragged
rows in one pass, by us and by transformers' model in PyTorch, and prints the
largest difference of a logit for each `model_type`:

    python benchmarks/parity.py [--write] [MODEL_TYPE ...]

It compares the figures with those that `vtokens models` states, which are in
each family's `About`. They depend on the processor, so it fails if one is more
than twice as large as stated. With `--write` it puts the measured figures into
the source; then copy the table that `vtokens models --markdown` prints into
`docs/models.md`.
"""

import argparse
import ast
import inspect
import os
import pathlib
import sys
import tempfile

_ROOT = pathlib.Path(__file__).parents[1]
# Largest measured figure, as a multiple of the stated one.
_MOST = 2.0


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--write', action='store_true')
  parser.add_argument('types', nargs='*', metavar='MODEL_TYPE')
  arguments = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.path.insert(0, str(_ROOT / 'tests' / 'support'))

  from vtokens.models.families import registry

  families = registry.families()
  unknown = sorted({*arguments.types} - families.keys())
  if unknown:
    parser.error(f'not supported: {", ".join(unknown)}')
  worse = []
  for model_type in arguments.types or families:
    family = families[model_type]
    stated = family.about.difference
    found = float(f'{difference(model_type):.1e}')
    print(f'{model_type:20} {found:.1e}  stated {stated:.1e}', flush=True)
    if arguments.write:
      if found != stated:
        write(type(family), found)
    elif found > _MOST * stated:
      worse.append(model_type)
  if worse:
    print(f'more than {_MOST:g} times as stated: {", ".join(worse)}')
  return bool(worse)


def difference(model_type: str) -> float:
  """The largest difference of a logit, of all cases of a family."""
  import decoder_cases
  import flax.nnx as nnx
  import jax
  import numpy as np

  rows = decoder_cases.rows_of_ids()
  ids = decoder_cases.padded(rows, 96)
  places = decoder_cases.positions_of([0] * 4, [len(r) for r in rows], 96)
  largest = 0.0
  for name, (of, _) in decoder_cases.CASES.items():
    if of != model_type:
      continue
    with tempfile.TemporaryDirectory() as directory:
      reference = decoder_cases.save(pathlib.Path(directory), name)
      graph, params = decoder_cases.load(directory)
    expected = decoder_cases.torch_logits(reference, rows)

    @jax.jit
    def run(params, graph=graph):
      model = nnx.merge(graph, params)
      return model.logits(model(model.embed(ids), places, ids=ids)[0])

    found = np.asarray(run(params))
    for row, logits in zip(found, expected, strict=True):
      worst = float(np.abs(row[: len(logits)] - logits).max())
      largest = max(largest, worst)
  return largest


def write(family: type, value: float) -> None:
  """Puts a figure into the source of a family."""
  path = pathlib.Path(inspect.getfile(family))
  source = path.read_text()
  (found,) = (
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef) and node.name == family.__name__
  )
  (about,) = (
    node.value
    for node in found.body
    if isinstance(node, ast.Assign)
    and isinstance(node.targets[0], ast.Name)
    and node.targets[0].id == 'about'
  )
  assert isinstance(about, ast.Call)
  named = {word.arg: word.value for word in about.keywords}
  figure = named.get('difference') or about.args[2]
  lines = source.splitlines(keepends=True)
  line = lines[figure.lineno - 1]
  lines[figure.lineno - 1] = (
    line[: figure.col_offset] + f'{value:.1e}' + line[figure.end_col_offset :]
  )
  path.write_text(''.join(lines))


if __name__ == '__main__':
  sys.exit(main())
