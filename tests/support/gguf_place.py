"""An export in GGUF that programs of several kinds read."""

import pathlib

import gguf
import gguf_runs

from vtokens import export


def make(root: pathlib.Path) -> None:
  """Writes a base, a run of it and its export, `gguf`.

  In float32: where weights are quantised llama.cpp rounds activations, and
  answers differ from ours now and then.
  """
  gguf_runs.save(
    root,
    'llama_tied_q4_0',
    kind=gguf.GGMLQuantizationType.F32,
    ascii_only=True,
    line_breaks=20.0,
  )
  settings = gguf_runs.settings(root, questions=4, logits=1, sampled=64)
  export.export(settings, 'gguf', str(root / 'gguf'))
