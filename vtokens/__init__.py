"""Virtual tokens for retrieval-augmented QA on a frozen language model."""

import typing

__version__ = '0.1.0'

# Users' config files and the cards of earlier exports import earlier names.
if not typing.TYPE_CHECKING:
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__,
    {
      'paths': 'vtokens.host.paths',
      'recipes_data': 'vtokens.recipes.spring_data',
    },
  )
