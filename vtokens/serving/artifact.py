"""Exported virtual tokens: a file in `virtual_tokens/`, and `vtokens.json`.

All other formats are made of them, and a serving program needs them
(`vtokens.plug`). Needs no JAX. docs/export.md has the fields.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from vtokens import config
from vtokens.host import errors, json_files, paths, writers
from vtokens.serving import trained_file
from vtokens.settings import field_types, schema

# Of `vtokens.json`. Earlier versions read 1 alone, and refuse 2 by its number.
FORMATS: Mapping[config.Kind, int] = {'table': 1, 'kv': 2}
META = 'vtokens.json'
# In a folder of its own: vLLM and SGLang load every `*.safetensors` beside
# `config.json` as weights of the model. The folder cannot be called `vtokens`:
# in a program started here Python would import it in place of the package.
_FOLDER = 'virtual_tokens'
TABLE = f'{_FOLDER}/{trained_file.NAMES["table"]}'
KEYS_VALUES = f'{_FOLDER}/{trained_file.NAMES["kv"]}'
# Where earlier versions wrote the table.
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
    fingerprint: of its weights; see `models.files.fingerprints.of_base`.
    tokenizer_sha256: see `models.tokenizers.tokenizer.Tokenizer.sha256`.
    vocab_size: rows of its embedding matrix.
    scales_embeddings: whether it multiplies what it looks up there by a number
      (Gemma, MiniCPM3).
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
    ids: id of each virtual token, in order.
    names: name of each virtual token in a tokenizer.
    probe: ids of `prompt_ids.PROBE` with the first two virtual tokens. A
      tokenizer that gives other ids is not the base's.
  """

  ids: tuple[int, ...]
  names: tuple[str, ...]
  probe: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Meta:
  """The content of `vtokens.json`.

  Attributes:
    format: format of this file; see `FORMATS`.
    base: see `BaseIdentity`; likewise prompt and tokens.
    table_sha256: SHA-256 of the values; see `trained_file.sha256`.
    shape: shape of the table, [n, D]; or of keys and of values, [L, n, K, H].
    num_trained: virtual tokens that training has changed: the most to use.
    metrics: the run's scores: `conditions` and `k` of its summary.json.
    training: the run's config and the hashes of its data.
    versions: versions of packages in training.
    kind: what a virtual token is: a row of the table, or a key and a value in
      each layer.
  """

  format: int
  base: BaseIdentity
  prompt: Prompt
  tokens: Tokens
  table_sha256: str
  shape: tuple[int, ...]
  num_trained: int
  metrics: Mapping[str, Any]
  training: Mapping[str, Any]
  versions: Mapping[str, str]
  kind: config.Kind = 'table'

  @property
  def count(self) -> int:
    """Number of virtual tokens (n)."""
    return len(self.tokens.ids)

  @property
  def quantize(self) -> str:
    """How the base was kept while the tokens were trained."""
    base = self.training.get('config', {}).get('base', {})
    return str(base.get('quantize', 'none'))

  def as_json(self) -> dict[str, Any]:
    """The JSON values of `vtokens.json`."""
    values = dataclasses.asdict(self)
    values['prompt']['templates'] = templates_json(self.prompt.templates)
    if self.kind == 'table':
      del values['kind']  # Earlier versions do not know the field.
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
  """Virtual tokens and all that is needed to use them.

  Attributes:
    values: a table, array of shape [n, D], float32; or a dict of `keys` (before
      rotation) and `values`, each an array of shape [L, n, K, H], float32.
    meta: metadata.
  """

  values: trained_file.Trained
  meta: Meta

  @property
  def table(self) -> np.ndarray:
    """The table, array of shape [n, D], float32.

    Raises:
      errors.UserError: the virtual tokens are keys and values.
    """
    check_kind(self.meta, 'table', 'a table of embeddings is needed')
    table: np.ndarray = self.values
    return table


def check_kind(meta: Meta, kind: config.Kind, why: str) -> None:
  """Raises unless virtual tokens are of a kind.

  Args:
    meta: metadata of the virtual tokens.
    kind: the kind that is needed.
    why: what needs it, for the message.

  Raises:
    errors.UserError: they are of the other kind.
  """
  if meta.kind == kind:
    return
  if kind == 'table':
    raise errors.UserError(
      f"{why}, and these virtual tokens are keys and values (kind='kv'); "
      'use them with transformers, by plug.generate(model, ids, table) and an '
      'export --to vtokens, or with vtokens ask and vtokens evaluate'
    )
  raise errors.UserError(
    f'{why}, and these virtual tokens are a table of embeddings; use '
    'plug.attach(model, table) and model.generate'
  )


def write(directory: epath.PathLike, artifact: Artifact) -> None:
  """Writes both files; equal artifacts give equal bytes."""
  directory = epath.Path(directory)
  meta = artifact.meta.as_json()
  file = directory / _file(artifact.meta.kind)
  file.parent.mkdir(parents=True, exist_ok=True)
  trained_file.save(
    file,
    artifact.values,
    {'fingerprint': artifact.meta.base.fingerprint},
  )
  writers.write_json(directory / META, meta)


def _file(kind: config.Kind) -> str:
  return {'table': TABLE, 'kv': KEYS_VALUES}[kind]


def read(directory: epath.PathLike) -> Artifact:
  """Reads what `write` wrote, in this version or an earlier one.

  Raises:
    errors.UserError: a file is missing or broken, or `vtokens.json` is of other
      values.
  """
  directory = epath.Path(paths.expand_home(os.fspath(directory)))
  path = directory / META
  meta = read_meta(path)
  file = directory / _file(meta.kind)
  old = directory / _OLD_TABLE
  if meta.kind == 'table' and not paths.exists(file) and paths.exists(old):
    file = old
  values, _ = trained_file.load(file, meta.kind)
  found = trained_file.sha256(values)
  if found != meta.table_sha256:
    raise errors.UserError(
      f'{path}: the SHA-256 of {file} is {found}, expected '
      f'{meta.table_sha256}: it is not the file of the export, or was changed'
    )
  shape = trained_file.shape(values)
  if shape != meta.shape:
    raise errors.UserError(
      f'{path}: {file} holds {trained_file.WORDS[meta.kind]} {list(shape)}, '
      f'expected {list(meta.shape)}'
    )
  return Artifact(values, meta)


def read_meta(path: epath.Path) -> Meta:
  """Reads `vtokens.json` alone.

  Raises:
    errors.UserError: it is missing or broken.
  """
  values = json_files.read(path)
  found = values.get('format')
  kinds = {number: kind for kind, number in FORMATS.items()}
  if type(found) is not int or found not in kinds:
    numbers = ' or '.join(map(str, kinds))
    raise errors.UserError(
      f'{path}: expected "format": {numbers}, which this version reads, got '
      f'{found!r}'
    )
  kind = kinds[found]
  shape = _SHAPE if kind == 'table' else {**_SHAPE, 'kind': str}
  json_files.check(values, str(path), shape, _ADVICE)
  if values.get('kind', 'table') != kind:
    raise errors.UserError(
      f'{path}: kind: expected {kind!r} with "format": {found}, got '
      f'{values["kind"]!r}; {_ADVICE}'
    )
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
  # The axes of the values, and which of them counts the virtual tokens.
  axes, of_tokens = {'table': (2, 0), 'kv': (4, 1)}[kind]
  count = meta.shape[of_tokens] if len(meta.shape) == axes else 0
  if not rows == len(meta.tokens.names) == count:
    raise errors.UserError(
      f'{path}: {rows} ids and {len(meta.tokens.names)} names for '
      f'{trained_file.WORDS[kind]} {list(meta.shape)}'
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
