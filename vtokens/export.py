r"""Exports a table of virtual tokens for the programs that serve models.

    python -m vtokens.export --config.workdir=runs/quickstart --to hf \
      --out exported

Formats: vtokens (the table, for vtokens.plug), spring-pt (the file of SPRING's
authors), hf (a checkpoint for transformers and for servers that read the same
files), hf-base (a base in GGUF as such a checkpoint, without the tokens), peft
(adapters), gguf (a file for llama.cpp). An export is first written to a
temporary directory and checked there by the programs that will read it. It is
moved to --out only if it answers like the trained model. Its `gate.json` has
every check. See docs/export.md.
"""

import os

from absl import flags as absl_flags

from vtokens.exports import exporting, trained_table
from vtokens.exports.export_config import Config, validate
from vtokens.exports.formats import formats
from vtokens.host import claimed_directory, errors, writers
from vtokens.settings import flags


def export(cfg: Config, to: str, out: str) -> None:
  """Writes an export that has passed its gate, or none.

  Args:
    cfg: what is exported, and how it is checked; validated.
    to: name of a registered format; see `exports.formats`.
    out: a directory that must not exist.

  Raises:
    errors.UserError: bad input, or a check failed.
  """
  with claimed_directory.new(out) as directory:
    source = trained_table.read(cfg.workdir, cfg.names, cfg.base)
    method = source.table.meta.quantize
    if method != 'none':
      writers.say(
        f'the tokens were trained with base.quantize={method}; the export has, '
        'and is compared with, the base itself, whose answers can differ from '
        'those of the run'
      )
    exporting.make(formats()[to], directory, cfg, source)


def main(cfg: Config) -> None:
  """Entry point."""
  to, out = absl_flags.FLAGS.to, absl_flags.FLAGS.out
  if to not in formats():
    raise errors.UserError(f'--to: expected one of {", ".join(formats())}')
  if not out:
    raise errors.UserError('--out: a directory is needed')
  # Our own model and the program that reads the export run one after the other
  # in this process. By default JAX would keep the GPU memory of our model.
  os.environ.setdefault('XLA_PYTHON_CLIENT_ALLOCATOR', 'platform')
  export(cfg, to, out)
  writers.say(f'written to {out}')


if __name__ == '__main__':
  absl_flags.DEFINE_string('to', None, f'Format: {", ".join(formats())}.')
  flags.define_path('out', None, 'Directory, which must not exist.')
  flags.run_config(main, Config, validate, None)
