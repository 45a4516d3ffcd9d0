"""Directories that are put in their place whole, or not at all."""

import contextlib
import glob
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

import safetensors

from vtokens.host import errors, paths, stopping, writers


@contextlib.contextmanager
def new(out: str) -> Iterator[pathlib.Path]:
  """A directory beside `out` that becomes it, if nothing fails.

  Ctrl-C and SIGTERM end the program, and what is half written goes. Of what a
  killed program has left behind the next one tells.

  Args:
    out: a directory that must not be there.

  Raises:
    errors.UserError: `out` is there already, or cannot be written; or a file
      cannot be read or written meanwhile.
  """
  paths.check_is_new(out)
  target = pathlib.Path(out)
  for left in target.parent.glob(f'{glob.escape(target.name)}.partial-*'):
    writers.say(
      f'{left} is there: unless another export to {out} is running, one was '
      'killed; delete it'
    )
  partial = target.with_name(f'{target.name}.partial-{secrets.token_hex(4)}')
  with stopping.at_once():
    try:
      partial.mkdir(parents=True)
    except OSError as e:
      raise errors.UserError(f'--out: {out} cannot be written: {e}') from None
    try:
      yield partial
      # The exit may have been lost in a library.
      stopping.check()
      # Fails if a directory with content has come there meanwhile.
      os.rename(partial, target)
    # Libraries write as well: safetensors has an exception of its own.
    except (
      OSError,
      errors.NotWrittenError,
      safetensors.SafetensorError,
    ) as e:
      raise errors.UserError(f'--out: {out}: not written: {e}') from e
    finally:
      shutil.rmtree(partial, ignore_errors=True)
