"""Virtual tokens for retrieval-augmented QA on a frozen language model."""

import typing

__version__ = '0.1.0'

if not typing.TYPE_CHECKING:  # Users' config files import earlier names.
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__, {'recipes_data': 'vtokens.recipes.spring_data'}
  )
