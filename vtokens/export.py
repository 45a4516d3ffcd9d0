r"""Exports a table of virtual tokens to where models are served.

    python -m vtokens.export --config.workdir=runs/quickstart --to hf \
      --out exported

Formats: vtokens (the source of truth, for vtokens.plug), spring-pt (the file of
SPRING's authors), hf (a checkpoint for transformers and what reads the same
files), hf-base (a base in GGUF as such a checkpoint, without the tokens), peft
(adapters), gguf (a file for llama.cpp). An export is first written beside its
place and checked there by the programs that will read it; it is put in its
place only if it does what the trained model does. `gate.json` in it has every
check. See docs/export.md.
"""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from vtokens.exports import card, gate, hf_checkpoint, licence, trained_table
from vtokens.exports.export_config import FORMATS, Config, validate
from vtokens.host import claimed_directory, errors, versions, writers
from vtokens.settings import flags

# Packages of the programs that exports are checked with.
CHECKERS = ('torch', 'peft', 'gguf', 'xllamacpp')


def export(cfg: Config, to: str, out: str) -> None:
  """Writes an export that has passed its gate, or none.

  Args:
    cfg: what, and how it is checked; validated.
    to: one of `FORMATS`.
    out: a directory that must not be there.

  Raises:
    errors.UserError: bad input, or a check failed.
  """
  with claimed_directory.new(out) as directory:
    source = trained_table.read(cfg.workdir, cfg.names, cfg.base)
    method = source.table.meta.quantize
    if method != 'none':
      writers.say(
        f'the tokens were trained with base.quantize={method}; exported and '
        'compared is the base itself, whose answers can differ from those of '
        'the run'
      )
    checks, exported = _makers()[to](directory, cfg, source)
    writers.write_text(
      directory / 'README.md',
      card.render(exported.meta, to, checks, _about_base(source)),
    )
    gate.conclude(
      directory,
      checks,
      {
        'format': to,
        'num_active': source.table.meta.num_trained,
        'trained_with_quantize': method,
        'seed': cfg.seed,
        'versions': versions.packages(*CHECKERS),
      },
    )


def _about_base(source: trained_table.Source) -> card.BaseFacts:
  path = source.base.settings.path
  dtype = 'float32'  # Of what is made of a GGUF file.
  if not path.endswith('.gguf'):
    rows = source.base.source.read(hf_checkpoint.EMBEDDING, slice(0, 1))
    dtype = str(rows.dtype)
  return card.BaseFacts(licence.of_base(path, source.base.source), dtype)


def _makers() -> Mapping[str, Any]:
  """`formats.MAKERS`; the programs that check an export need PyTorch."""
  try:
    from vtokens.exports import export_formats
  except ImportError as e:
    raise errors.UserError(
      f'exports are checked with PyTorch and PEFT ({e}); pip install '
      "'vtokens[export]'"
    ) from None
  return export_formats.MAKERS


def main(cfg: Config) -> None:
  """Entry point."""
  to, out = absl_flags.FLAGS.to, absl_flags.FLAGS.out
  if to not in FORMATS:
    raise errors.UserError(f'--to: expected one of {", ".join(FORMATS)}')
  if not out:
    raise errors.UserError('--out: a directory is needed')
  # Our own model and the program that reads the export run one after the other
  # in this process: on a GPU JAX would keep the memory that it once had.
  os.environ.setdefault('XLA_PYTHON_CLIENT_ALLOCATOR', 'platform')
  export(cfg, to, out)
  writers.say(f'written to {out}')


if __name__ == '__main__':
  absl_flags.DEFINE_string('to', None, f'Format: {", ".join(FORMATS)}.')
  flags.define_path('out', None, 'Directory, which must not be there.')
  flags.run_config(main, Config, validate, None)
