"""From files of questions to batches of token ids."""

import typing

if not typing.TYPE_CHECKING:  # Users' config files import earlier names.
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__, {'build_config': 'vtokens.data.build.build_config'}
  )
