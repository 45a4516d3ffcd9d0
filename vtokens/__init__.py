"""Virtual tokens for retrieval-augmented QA on a frozen language model.

    import vtokens

    run = vtokens.load('runs/quickstart')
    run.answer('When was it completed?', passages=['...'], k=5).text

The names are loaded when they are used: `import vtokens` itself imports no JAX.
docs/python.md explains them.
"""

import importlib
import typing

__version__ = '0.1.0'

if typing.TYPE_CHECKING:
  from vtokens.answering.run import Run as Run
  from vtokens.answering.run import load as load
  from vtokens.evaluate import from_program as evaluate
  from vtokens.host.errors import UserError as UserError
  from vtokens.retrieval.open_index import OpenIndex as OpenIndex
  from vtokens.retrieval.open_index import open_index as open_index
  from vtokens.train import from_program as train

  __all__ = ['evaluate', 'train']
else:
  from vtokens.host import old_names

  # Name -> module that has it.
  _NAMES = {
    'OpenIndex': 'vtokens.retrieval.open_index',
    'Run': 'vtokens.answering.run',
    'UserError': 'vtokens.host.errors',
    'load': 'vtokens.answering.run',
    'open_index': 'vtokens.retrieval.open_index',
  }
  # Modules that can be called, and earlier names, which users' config files and
  # the cards of earlier exports import.
  _find_module = old_names.aliases(
    __name__,
    {
      'evaluate': 'vtokens.evaluate',
      'paths': 'vtokens.host.paths',
      'recipes_data': 'vtokens.recipes.spring_data',
      'train': 'vtokens.train',
    },
  )

  def __getattr__(name):
    if name in _NAMES:
      return getattr(importlib.import_module(_NAMES[name]), name)
    return _find_module(name)

  def __dir__():
    return sorted({*globals(), *_NAMES, 'evaluate', 'train'})
