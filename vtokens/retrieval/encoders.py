"""Sentence encoders, and the settings that each was trained with."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtokens.host import errors, json_files, paths
from vtokens.retrieval import retrieval_config


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings that a model was trained with.

  Attributes:
    query_prefix: text before each question.
    passage_prefix: text before each passage.
    pooling: cls or mean.
    normalize: yes or no.
    max_length: longest input in tokens.
  """

  query_prefix: str = ''
  passage_prefix: str = ''
  pooling: str = 'mean'
  normalize: str = 'yes'
  max_length: int = 512


# https://huggingface.co/intfloat/e5-large-v2 (the same text for each size):
# prefixes for questions and passages, average_pool, normalised, 512 tokens.
_E5 = Recipe(query_prefix='query: ', passage_prefix='passage: ')
# https://huggingface.co/BAAI/bge-base-en-v1.5: an instruction before questions
# only, the hidden state of the first token, normalised, 512 tokens.
_BGE = Recipe(
  query_prefix='Represent this sentence for searching relevant passages: ',
  pooling='cls',
)
# https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2: mean pooling,
# normalised, 256 word pieces.
_MINILM = Recipe(max_length=256)

# By the last part of the model's name.
KNOWN = {
  'e5-small-v2': _E5,
  'e5-base-v2': _E5,
  'e5-large-v2': _E5,
  'bge-small-en-v1.5': _BGE,
  'bge-base-en-v1.5': _BGE,
  'bge-large-en-v1.5': _BGE,
  'all-MiniLM-L6-v2': _MINILM,
}
_FILES = ('*.json', '*.safetensors', '*.txt', '*.model')
# Files of a local directory.
_LOCAL_FILES = (*_FILES, '*.bin')


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
  """A model with all its settings.

  Attributes:
    name: name of the model, for messages.
    directory: directory of the model's files.
    recipe: prefixes, pooling, normalisation and length.
    sources: where each setting of the recipe comes from, for messages.
    dtype: type of weights and activations.
    batch_size: number of texts encoded together.
    device: auto, or a torch device.
  """

  name: str
  directory: str
  recipe: Recipe
  sources: str
  dtype: str
  batch_size: int
  device: str

  def identity(self) -> dict[str, Any]:
    """The values that decide embeddings, except for their last bits."""
    return {
      'recipe': dataclasses.asdict(self.recipe),
      'dtype': self.dtype,
      'model': hash_model(self.directory),
    }

  def encode_questions(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [len(texts), D]."""
    return self._encode(texts, self.recipe.query_prefix)

  def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [len(texts), D]."""
    return self._encode(texts, self.recipe.passage_prefix)

  def _encode(self, texts: Sequence[str], prefix: str) -> np.ndarray:
    model = _load(self.directory, self.recipe, self.dtype, self.device)
    vectors: np.ndarray = model.encode(
      [prefix + text for text in texts],
      batch_size=self.batch_size,
      show_progress_bar=False,
      convert_to_numpy=True,
    ).astype(np.float32)
    if not np.isfinite(vectors).all():
      raise errors.UserError(
        f'{self.name}: embeddings are not finite in {self.dtype}; try '
        'another config.retrievers[...].dense.dtype'
      )
    return vectors


def settle(settings: retrieval_config.Dense, name: str) -> SentenceEncoder:
  """Finds a model, and fills in settings that the config leaves open.

  Args:
    settings: settings of the retriever.
    name: name of the retriever, for messages.

  Raises:
    errors.UserError: the model is not found, or a setting is unknown.
  """
  directory = _find(settings, name)
  known = KNOWN.get(settings.model.rstrip('/').split('/')[-1])
  own = _own_recipe(directory)
  values: dict[str, Any] = {}
  sources = []
  for field in dataclasses.fields(Recipe):
    value = getattr(settings, field.name)
    if value not in (retrieval_config.AUTO, 0):
      source = 'the config'
    elif known is not None:
      value, source = getattr(known, field.name), 'what is known of it'
    elif field.name in own:
      value, source = own[field.name], "the model's files"
    else:
      raise errors.UserError(
        f'config.retrievers[{name}].dense.{field.name}: {settings.model} is '
        f'not known and its files do not say; set it'
      )
    values[field.name] = value
    sources.append(f'{field.name} {value!r} (from {source})')
  return SentenceEncoder(
    name=settings.model,
    directory=str(directory),
    recipe=Recipe(**values),
    sources=', '.join(sources),
    dtype=settings.dtype,
    batch_size=settings.batch_size,
    device=settings.device,
  )


def _find(settings: retrieval_config.Dense, name: str) -> pathlib.Path:
  field = f'config.retrievers[{name}].dense.model'
  if settings.model.startswith('package:'):
    # `resolve` finds files only.
    return pathlib.Path(paths.resolve(f'{settings.model}/config.json')).parent
  directory = pathlib.Path(settings.model)
  if directory.is_dir():
    return directory
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        settings.model,
        revision=settings.revision,
        allow_patterns=[*_FILES, '*/*.json'],
      )
    )
  # OSError: there is no connection, and the model is not in the cache.
  except (
    hub_errors.HfHubHTTPError,
    hub_errors.HFValidationError,
    OSError,
  ) as e:
    raise errors.UserError(
      f'{field}={settings.model!r}: no such directory, and the hub gives '
      f'{type(e).__name__}: {e}'
    ) from e


def _own_recipe(directory: pathlib.Path) -> dict[str, Any]:
  """Settings in a model's sentence-transformers files; may be empty."""

  def read(name: str) -> Any:
    path = directory / name
    return json_files.read(path, (dict, list)) if path.exists() else {}

  own: dict[str, Any] = {}
  modules = [m['type'].split('.')[-1] for m in read('modules.json') or []]
  if modules:
    own['normalize'] = 'yes' if 'Normalize' in modules else 'no'
  pooling = read('1_Pooling/config.json')
  if pooling.get('pooling_mode_cls_token'):
    own['pooling'] = 'cls'
  elif pooling.get('pooling_mode_mean_tokens'):
    own['pooling'] = 'mean'
  length = read('sentence_bert_config.json').get('max_seq_length')
  if length:
    own['max_length'] = length
  prompts = read('config_sentence_transformers.json').get('prompts')
  if prompts is not None:
    own['query_prefix'] = prompts.get('query', '')
    own['passage_prefix'] = prompts.get('passage', prompts.get('document', ''))
  return own


@functools.cache
def hash_model(directory: str) -> str:
  """SHA-256 of the files that a model is loaded from."""
  digest = hashlib.sha256()
  files = {
    f for pattern in _LOCAL_FILES for f in pathlib.Path(directory).glob(pattern)
  }
  for path in sorted(files):
    digest.update(f'{path.name}\0{path.stat().st_size}\0'.encode())
    with path.open('rb') as file:
      while block := file.read(1 << 22):
        digest.update(block)
  return digest.hexdigest()


@functools.cache
def _load(directory: str, recipe: Recipe, dtype: str, device: str) -> Any:
  """Loads a model by the recipe alone, whatever its own files say."""
  try:
    import sentence_transformers
    import torch
    from sentence_transformers.sentence_transformer import modules
  except ImportError as e:
    raise missing_extra(e) from e
  transformer = modules.Transformer(
    directory,
    max_seq_length=recipe.max_length,
    model_kwargs={'dtype': getattr(torch, dtype)},
  )
  layers: list[Any] = [
    transformer,
    modules.Pooling(
      transformer.get_embedding_dimension(), pooling_mode=recipe.pooling
    ),
  ]
  if recipe.normalize == 'yes':
    layers.append(modules.Normalize())
  return sentence_transformers.SentenceTransformer(
    modules=layers, device=None if device == retrieval_config.AUTO else device
  )


def missing_extra(error: ImportError) -> errors.UserError:
  """Makes the error for a missing package of dense retrieval."""
  return errors.UserError(
    'config.retrievers: kind=dense needs sentence-transformers and faiss, '
    f'not all of which are installed ({error}); try: pip install '
    "'vtokens[dense]'"
  )
