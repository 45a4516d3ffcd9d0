"""Modules that can be called: `vtokens.train(config)`."""

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
  """Makes a module call a function when it is called.

  The name of a command's module is also the name of what programs call. An
  import of the module sets the package's attribute of that name to the module,
  whatever was there, so the module itself must be what is called.

  Args:
    name: name of the module in `sys.modules`.
    function: what it calls; its documentation becomes that of the call.
  """

  class CallableModule(types.ModuleType):
    """See `make_callable`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
      return function(*args, **kwargs)

  CallableModule.__call__.__doc__ = function.__doc__
  # `runpy` may run a module under a name that is no module's.
  if name in sys.modules:
    sys.modules[name].__class__ = CallableModule
