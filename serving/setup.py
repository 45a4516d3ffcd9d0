"""Packaging of vtokens-serving: `vtokens.plug` and `vtokens.vllm_client`.

    pip install ./serving

The wheel has these modules of ../vtokens and what they import. It has the same
files as the package vtokens: install one of both into an environment.
"""

import modulefinder
import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

_HERE = pathlib.Path(__file__).resolve().parent
_PACKAGE = _HERE.parent / 'vtokens'
_SERVED = ['vtokens.plug', 'vtokens.vllm_client']
# A program that chat_template.py runs.
_RUN = ['vtokens.models.tokenizers.template_child']
# vtokens/__init__.py names them for type checkers alone; they need JAX.
_LEFT_OUT = [
  'vtokens.answering',
  'vtokens.evaluate',
  'vtokens.retrieval',
  'vtokens.train',
]


def modules() -> list[str]:
  """The modules of vtokens that serving needs; packages are left out."""
  finder = modulefinder.ModuleFinder(
    path=[str(_PACKAGE.parent)], excludes=_LEFT_OUT
  )
  for name in _SERVED + _RUN:
    finder.import_hook(name)
  return [
    name
    for name, module in finder.modules.items()
    if name.startswith('vtokens.') and not module.__path__
  ]


def version() -> str:
  """The version of vtokens."""
  text = (_PACKAGE / '__init__.py').read_text(encoding='utf-8')
  return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


class BuildAnew(build_py.build_py):
  """Drops the modules of an earlier build, which may no longer exist."""

  def run(self) -> None:
    """Empties the directory first."""
    shutil.rmtree(pathlib.Path(self.build_lib, 'vtokens'), ignore_errors=True)
    super().run()


setuptools.setup(
  name='vtokens-serving',
  version=version(),
  description='Serves the virtual tokens that vtokens trained; without JAX',
  long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  py_modules=modules(),
  package_dir={'vtokens': '../vtokens'},
  cmdclass={'build_py': BuildAnew},
  # The ranges of ../setup.py. PyTorch comes with the models that are served.
  install_requires=[
    'annotated-types>=0.7,<0.9',
    'etils[epath]>=1.12,<2',
    'jaxtyping>=0.3.3,<0.4',  # It does not need JAX.
    'jinja2>=3.1.6,<4',
    'numpy>=2.0,<3',
    'pydantic>=2.11,<3',
    'safetensors>=0.6,<0.9',
    'tokenizers>=0.22,<0.24',
    'tqdm>=4.66,<5',
    'transformers>=5.3,<6',
  ],
)
