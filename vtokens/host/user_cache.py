"""The directory of files that vtokens can make or fetch again."""

import os
import pathlib

from vtokens.host import errors


def directory() -> pathlib.Path:
  """Returns `$XDG_CACHE_HOME/vtokens`, by default `~/.cache/vtokens`.

  Raises:
    errors.UserError: the home directory is unknown.
  """
  caches = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  expanded = os.path.expanduser(caches)
  if expanded.startswith('~'):
    raise errors.UserError(
      f'the home directory of {caches} is not known; set XDG_CACHE_HOME to a '
      'directory for files that can be made again'
    )
  return pathlib.Path(expanded, 'vtokens')
