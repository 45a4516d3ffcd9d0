"""The exported table: `virtual_tokens/table.safetensors` and `vtokens.json`.

The source of truth of which all other formats are made, and what a serving
program needs (`vtokens.plug`). Needs no JAX. docs/export.md has the fields.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vtokens import config
from vtokens.host import errors, json_files, paths, writers
from vtokens.serving import table_file
from vtokens.settings import field_types, schema

FORMAT = 1
META = 'vtokens.json'
# In a folder of its own: vLLM and SGLang load every `*.safetensors` beside
# `config.json` as weights of the model. The folder cannot be called `vtokens`:
# in a program started here Python would import it in place of the package.
TABLE = 'virtual_tokens/table.safetensors'
# Where earlier versions wrote it.
_OLD_TABLE = 'vtokens.safetensors'
_ADVICE = 'it is not as vtokens.export writes it'
# Of `vtokens.json`; see `json_files`.
_SHAPE = {
  'base': {
    'id': str,
    'revision': str,
    'fingerprint': str,
    'tokenizer_sha256': str,
    'vocab_size': int,
    'scales_embeddings': bool,
  },
  'prompt': {
    'templates': dict,
    'position': str,
    'max_prefix_tokens': int,
    'max_suffix_tokens': int,
  },
  'tokens': {'ids': [int], 'names': [str], 'probe': [int]},
  'table_sha256': str,
  'shape': [int],
  'num_trained': int,
  'metrics': {str: {str: {'em': float, 'f1': float}}},
  # Of a run, and of an imported table.
  'training': ({'config': {'base': {str: object}}}, {'imported': dict}),
  'versions': {str: str},
}


@dataclasses.dataclass(frozen=True)
class BaseIdentity:
  """The model that the tokens were trained on.

  Attributes:
    id: as the training config names it: a path or a name on the hub.
    revision: commit on the hub; '' if it was a path.
    fingerprint: of its weights; see `models.files.weights.fingerprint`.
    tokenizer_sha256: see `models.tokenizers.tokenizer.Tokenizer.sha256`.
    vocab_size: rows of its embedding matrix.
    scales_embeddings: whether it multiplies what it looks up there by the
      square root of their width (Gemma).
  """

  id: str
  revision: str
  fingerprint: str
  tokenizer_sha256: str
  vocab_size: int
  scales_embeddings: bool


@dataclasses.dataclass(frozen=True)
class Prompt:
  """How a prompt is put together.

  Attributes:
    templates: the text around the pieces.
    position: of the virtual tokens: first, middle or last.
    max_prefix_tokens: most tokens of the passages, which are cut to it.
    max_suffix_tokens: most tokens of question and virtual tokens, which are
      not.
  """

  templates: config.Templates
  position: config.Position
  max_prefix_tokens: int
  max_suffix_tokens: int


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The virtual tokens in a vocabulary.

  Attributes:
    ids: of each row of the table, in order.
    names: what stands for them in a tokenizer.
    probe: the ids of `prompt_ids.PROBE` with the first two of them: a tokenizer
      that gives others is not the one of the base.
  """

  ids: tuple[int, ...]
  names: tuple[str, ...]
  probe: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Meta:
  """The content of `vtokens.json`.

  Attributes:
    format: of this file; raised when it changes.
    base: see `BaseIdentity`; likewise prompt and tokens.
    table_sha256: of the table's values; see `table_file.sha256`.
    shape: of the table.
    num_trained: rows that training has changed: the most tokens to be used.
    metrics: the run's scores: `conditions` and `k` of its summary.json.
    training: the run's config and the hashes of its data.
    versions: of packages, when it was trained.
  """

  format: int
  base: BaseIdentity
  prompt: Prompt
  tokens: Tokens
  table_sha256: str
  shape: tuple[int, int]
  num_trained: int
  metrics: Mapping[str, Any]
  training: Mapping[str, Any]
  versions: Mapping[str, str]

  @property
  def quantize(self) -> str:
    """How the base was kept while the tokens were trained."""
    base = self.training.get('config', {}).get('base', {})
    return str(base.get('quantize', 'none'))

  def as_json(self) -> dict[str, Any]:
    """The JSON values of `vtokens.json`."""
    values = dataclasses.asdict(self)
    values['prompt']['templates'] = templates_json(self.prompt.templates)
    return values


def templates_json(templates: config.Templates) -> dict[str, Any]:
  """The templates as JSON values.

  The default refusal is left out: earlier versions do not know the field.
  """
  values = dataclasses.asdict(templates)
  if values['refusal'] == config.Templates().refusal:
    del values['refusal']
  return values


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
  """A table and all that is needed to use it.

  Attributes:
    table: `n D` f32.
    meta: about it.
  """

  table: np.ndarray
  meta: Meta


def write(directory: epath.PathLike, artifact: Artifact) -> None:
  """Writes both files; equal artifacts give equal bytes."""
  directory = epath.Path(directory)
  meta = artifact.meta.as_json()
  file = directory / TABLE
  file.parent.mkdir(parents=True, exist_ok=True)
  table_file.save(
    file,
    artifact.table,
    {'fingerprint': artifact.meta.base.fingerprint},
  )
  writers.write_json(directory / META, meta)


def read(directory: epath.PathLike) -> Artifact:
  """Reads what `write` wrote, in this version or an earlier one.

  Raises:
    errors.UserError: a file is missing, broken, or not of this table.
  """
  directory = epath.Path(paths.expand_home(os.fspath(directory)))
  path = directory / META
  meta = read_meta(path)
  file = directory / TABLE
  old = directory / _OLD_TABLE
  if not paths.exists(file) and paths.exists(old):
    file = old
  table, _ = table_file.load(file)
  if table_file.sha256(table) != meta.table_sha256:
    raise errors.UserError(
      f'{path}: the SHA-256 of {file} is {table_file.sha256(table)}, '
      f'expected {meta.table_sha256}: it is another table, or was changed'
    )
  if table.shape != meta.shape:
    raise errors.UserError(
      f'{path}: {file} is a table {list(table.shape)}, expected '
      f'{list(meta.shape)}'
    )
  return Artifact(table, meta)


def read_meta(path: epath.Path) -> Meta:
  """Reads `vtokens.json` alone.

  Raises:
    errors.UserError: it is missing or broken.
  """
  values = json_files.read(path)
  found = values.get('format')
  if found != FORMAT:
    raise errors.UserError(
      f'{path}: expected "format": {FORMAT}, which this version reads, got '
      f'{found!r}'
    )
  json_files.check(values, str(path), _SHAPE, _ADVICE)
  try:
    prompt = dict(values['prompt'])
    templates = schema.build(config.Templates, prompt.pop('templates'))
    _check_prompt(templates, **prompt)
    tokens = dict(values['tokens'])
    meta = Meta(
      **{
        **values,
        'base': BaseIdentity(**values['base']),
        'prompt': Prompt(templates=templates, **prompt),
        'tokens': Tokens(**{k: tuple(v) for k, v in tokens.items()}),
        'shape': tuple(values['shape']),
      }
    )
  # TypeError: of a field that is not known.
  except (TypeError, errors.UserError) as e:
    raise errors.UserError(f'{path}: {e}; {_ADVICE}') from None
  rows = len(meta.tokens.ids)
  if not rows == len(meta.tokens.names) == (*meta.shape, 0)[0]:
    raise errors.UserError(
      f'{path}: {rows} ids and {len(meta.tokens.names)} names for a table '
      f'{list(meta.shape)}'
    )
  for name, value, most in (
    ('num_trained', meta.num_trained, rows),
    ('base.vocab_size', meta.base.vocab_size, field_types.MOST_INT),
  ):
    if not 1 <= value <= most:
      raise errors.UserError(
        f'{path}: {name}: expected a number from 1 to {most}, got {value}'
      )
  ids, names = meta.tokens.ids, meta.tokens.names
  if min(ids) < 0 or len(set(ids)) < rows:
    raise errors.UserError(f'{path}: tokens.ids: one is below 0 or there twice')
  if '' in names or len(set(names)) < rows:
    raise errors.UserError(f'{path}: tokens.names: one is empty or there twice')
  return meta


def _check_prompt(
  templates: config.Templates,
  position: config.Position,
  max_prefix_tokens: int,
  max_suffix_tokens: int,
) -> None:
  """Checks templates and the other fields of `Prompt` as those of a run.

  Raises:
    errors.UserError: a value is not allowed.
  """
  settings = config.Config(templates=templates)
  settings.virtual_tokens.position = position
  settings.data.max_prefix_tokens = max_prefix_tokens
  settings.data.max_suffix_tokens = max_suffix_tokens
  schema.check(settings)
