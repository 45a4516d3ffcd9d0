"""Retrieval: passages of a corpus for each question."""

import typing

if not typing.TYPE_CHECKING:  # Users' config files import earlier names.
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__, {'config': 'vtokens.retrieval.retrieval_config'}
  )
