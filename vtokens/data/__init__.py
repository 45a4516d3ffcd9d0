"""From files of questions to batches of token ids."""

import typing

# Users' config files and programs import earlier names.
if not typing.TYPE_CHECKING:
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__,
    {
      'build_config': 'vtokens.data.build.build_config',
      'store': 'vtokens.data.built_datasets',
    },
  )
