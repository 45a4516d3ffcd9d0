"""How good the virtual tokens are, against what, and at what cost."""

import typing

if not typing.TYPE_CHECKING:  # Users' config files import earlier names.
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__, {'config': 'vtokens.evaluation.eval_config'}
  )
