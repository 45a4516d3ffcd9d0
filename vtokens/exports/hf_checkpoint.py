"""A full checkpoint in Hugging Face format, with the virtual tokens in it.

`AutoModelForCausalLM`, `AutoTokenizer` and servers load it. The files of the
base are linked or copied, except these:

- The embedding matrix gets the rows of the table, at the ids after the
  tokenizer's last. Rows that pad the matrix are used before it grows.
- The head gets as many rows. Each is a copy of the row of a token that the
  model never generates, so that no virtual token is more likely than that one.
  A head tied to the embedding matrix becomes a matrix of its own: with the rows
  of the table in it the model would generate virtual tokens.
- A second embedding matrix, for inputs of each layer, gets copies of the row of
  the padding, with which virtual tokens were trained; see `models.per_layer`.
- Of a multimodal model these are the matrices of the text part. Its other
  tensors stay.
- The tokenizer's files get the names of the tokens. No tokenizer library writes
  them: versions differ in what they write and can read.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from vtokens.exports import public_names, safetensors_file
from vtokens.exports import vocabulary_rows as rows
from vtokens.exports.export_format import Placement
from vtokens.host import errors, json_files, writers
from vtokens.models import per_layer
from vtokens.models.families import registry, wrappers
from vtokens.models.files import hf_directory
from vtokens.models.files.directory_files import INDEX_FILE, SINGLE_FILE
from vtokens.models.files.quantised import formats
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Artifact

# Files of the model that are copied. Other files may be weights in another
# format, or tell paths and the training of the base.
_COPIED = re.compile(
  r'.*licen[cs]e.*|notice.*|copying.*|use_policy.*'
  r'|.*\.model|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json'
  r'|chat_template\.(jinja|json)|.*\.py'
  # Older files of quantised weights.
  r'|quant(ize)?_config\.json'
  # How a multimodal model reads images.
  r'|(video_|image_|pre)?(pre)?processor_config\.json',
  re.IGNORECASE,
)
# Field with the rows of the matrix with inputs of each layer.
_SECOND_ROWS = 'vocab_size_per_layer_input'
# Names of tokens that no model is trained to generate.
_UNSAID = re.compile(
  r'<\|?(pad|unk|unused|reserved|finetune|dummy|placeholder)', re.IGNORECASE
)


def matrices(directory: str | pathlib.Path) -> tuple[str, str]:
  """Names of the embedding matrix and of the head in a base's files.

  Args:
    directory: directory of the base, in Hugging Face format.
  """
  config = hf_directory.read_config(directory)
  names = registry.family_of(config).names
  embedding, head = names['embedding'], names['head']
  wrapper = hf_directory.read_wrapper(directory)
  if wrapper is None:
    return embedding, head
  source = hf_directory.SafetensorsSource(directory)
  stored = source.stored_name(embedding)
  if head in source.shapes():
    return stored, source.stored_name(head)
  return stored, wrapper.head_name(embedding, stored, head)


def second_matrix(directory: str | pathlib.Path) -> str | None:
  """Name of the matrix with inputs of each layer in a base's files, if any.

  Args:
    directory: directory of the base, in Hugging Face format.
  """
  config = hf_directory.read_config(directory)
  if not config.per_layer_dim:
    return None
  name = registry.family_of(config).names['per_layer.embedding']
  return hf_directory.SafetensorsSource(directory).stored_name(name)


def place(table: Artifact, opened: OpenBase, directory: str) -> Placement:
  """Finds places for the virtual tokens.

  Args:
    table: the table.
    opened: the base.
    directory: directory of the base, in Hugging Face format.

  Raises:
    errors.UserError: the tokenizer has a token of one of the names, or gaps
      between its ids; the head has a bias; embedding or head are quantised.
  """
  if opened.config.head_bias:
    raise errors.UserError(
      f'--to hf: the head of {directory} has a bias (model_type '
      f'{opened.config.model_type}), which this format does not extend to '
      'virtual tokens; --to vtokens writes the table for the base as it is'
    )
  _check_floats(opened, directory)
  vocabulary = rows.read_vocabulary(directory)
  tokens = rows.after_all(vocabulary, table.meta.tokens)
  return Placement(
    tokens=tokens,
    num_rows=max(opened.config.vocab_size, tokens.ids[-1] + 1),
    unsaid=unsaid(vocabulary, opened, tokens.ids[0]),
    dtype=_dtype(pathlib.Path(directory)),
  )


def _check_floats(opened: OpenBase, directory: str) -> None:
  """Raises if the matrices that get rows are quantised."""
  source = opened.source
  if not isinstance(source, hf_directory.SafetensorsSource):
    return
  names = registry.family_of(opened.config).names
  checked = [names['embedding'], names['head']]
  if opened.config.per_layer_dim:
    checked.append(names['per_layer.embedding'])
  for name in checked:
    if source.is_quantised(name) and source.format is not None:
      raise errors.UserError(
        f'--to hf: tensor {name} of {directory} is quantised '
        f'({source.format.label}), so it cannot hold the rows of virtual '
        'tokens; --to vtokens writes the table for the base as it is'
      )


def answer_end(table: Artifact, opened: OpenBase) -> int:
  """Id that ends an answer: of a turn, or of a text."""
  if table.meta.prompt.templates.chat:
    return opened.tokenizer.turn_end_id
  return opened.tokenizer.eos_id


def unsaid(
  vocabulary: Mapping[str, int], opened: OpenBase, first: int
) -> tuple[int, ...]:
  """Ids whose rows of the head hardly ever win, ascending.

  Args:
    vocabulary: id of every token.
    opened: the base.
    first: id after the last token.
  """
  if first < opened.config.vocab_size:
    # They pad the matrix.
    return tuple(range(first, opened.config.vocab_size))
  tokenizer = opened.tokenizer
  special = set(tokenizer.ids) - set(tokenizer.ordinary_ids)
  special -= tokenizer.end_ids
  named = {i for name, i in vocabulary.items() if _UNSAID.match(name)}
  others = special - set(tokenizer.prefix_ids)
  # An answer never has a token that begins a text or a turn. A token that ends
  # one is the last resort, since every answer has it.
  for found in (special & named, others, special, tokenizer.end_ids):
    if found:
      return tuple(sorted(found))
  raise AssertionError('every tokenizer has an eos')


def write(
  out: pathlib.Path,
  table: Artifact,
  placement: Placement,
  directory: str,
  end: int,
) -> None:
  """Writes the checkpoint into an empty directory.

  Args:
    out: the directory.
    table: the table.
    placement: where its tokens go.
    directory: directory of the base.
    end: id that ends an answer; see `answer_end`.

  Raises:
    errors.UserError: a file of the base is not as expected.
  """
  base = pathlib.Path(directory)
  names = _weight_map(base)
  embedding, head = matrices(base)
  # A tied head starts as the embedding matrix was.
  made = {
    embedding: safetensors_file.ChangedTensor(
      embedding,
      placement.num_rows,
      lambda matrix: _changed_embedding(matrix, table, placement),
    ),
    head: safetensors_file.ChangedTensor(
      head if head in names else embedding,
      placement.num_rows,
      lambda matrix: changed_head(matrix, placement),
    ),
  }
  second = second_matrix(base)
  if second:
    made[second] = safetensors_file.ChangedTensor(
      second,
      placement.num_rows,
      lambda matrix: _changed_second(matrix, placement),
    )
  # A head that the base ties gets into the file of the embedding matrix.
  places = {name: names.get(name, names[embedding]) for name in made}
  for file in sorted(set(names.values())):
    here = {name: made[name] for name in made if places[name] == file}
    if here:
      safetensors_file.rewrite(base / file, out / file, here)
    else:
      _link(base / file, out / file)
  names = {**names, **places}
  # Loaders of a single file read no index.
  if SINGLE_FILE not in names.values():
    size = sum((out / file).stat().st_size for file in set(names.values()))
    writers.write_json(
      out / INDEX_FILE,
      {
        'metadata': {'total_size': size},
        'weight_map': dict(sorted(names.items())),
      },
    )
  _write_config(base, out, placement)
  write_generation_config(base, out, placement, end)
  _write_tokenizer(base, out, placement)
  for other in sorted(base.iterdir()):
    target = out / other.name
    if (
      other.is_file() and _COPIED.fullmatch(other.name) and not target.exists()
    ):
      shutil.copyfile(other, target)


def stray_weights(
  out: pathlib.Path, base: str
) -> tuple[list[str], list[str], int]:
  """Compares the model's tensors with what a loader without an index finds.

  Without an index vLLM and SGLang read every `*.safetensors` of the directory,
  and refuse a tensor that the model does not have.

  Args:
    out: directory of the export.
    base: directory of the base.

  Returns:
    Tensors that the model does not have or that are there twice, tensors that
    are missing, and the number of tensors of the model.
  """
  found: list[str] = []
  for file in sorted(out.glob('*.safetensors')):
    with safetensors.safe_open(file, framework='numpy') as tensors:
      found += tensors.keys()
  expected = {*_weight_map(pathlib.Path(base)), *matrices(base)}
  left = list(found)
  for name in expected.intersection(found):
    left.remove(name)
  return left, sorted(expected.difference(found)), len(expected)


def _weight_map(base: pathlib.Path) -> dict[str, str]:
  """The file of each tensor."""
  index = base / INDEX_FILE
  if index.exists():
    return dict(json_files.read(index)['weight_map'])
  with safetensors.safe_open(base / SINGLE_FILE, framework='numpy') as file:
    return dict.fromkeys(file.keys(), SINGLE_FILE)


def _dtype(base: pathlib.Path) -> np.dtype:
  """Dtype of the embedding matrix."""
  embedding, _ = matrices(base)
  path = base / _weight_map(base)[embedding]
  with safetensors.safe_open(path, framework='numpy') as file:
    row: np.ndarray = file.get_slice(embedding)[0:1]
  return row.dtype


def _changed_embedding(
  matrix: np.ndarray, table: Artifact, placement: Placement
) -> np.ndarray:
  """The embedding matrix with the rows of the table."""
  matrix = with_more_rows(matrix, placement.num_rows)
  matrix[list(placement.tokens.ids)] = table.table.astype(matrix.dtype)
  return matrix


def _changed_second(matrix: np.ndarray, placement: Placement) -> np.ndarray:
  """The matrix with inputs of each layer, with rows for virtual tokens."""
  padding = matrix[per_layer.PADDING].copy()
  before = len(matrix)
  matrix = with_more_rows(matrix, placement.num_rows)
  matrix[list(placement.tokens.ids)] = padding
  matrix[before:] = padding
  return matrix


def changed_head(matrix: np.ndarray, placement: Placement) -> np.ndarray:
  """The head's matrix with rows of a token that is never said.

  Args:
    matrix: the base's head, array of shape [rows, D].
    placement: where virtual tokens stand.

  Returns:
    Array of shape [placement.num_rows, D].
  """
  unsaid = matrix[placement.unsaid[0]].copy()
  before = len(matrix)
  matrix = with_more_rows(matrix, placement.num_rows)
  matrix[list(placement.tokens.ids)] = unsaid
  # Tokens of the tokenizer for which the base has no rows.
  matrix[before:] = unsaid
  return matrix


def with_more_rows(matrix: np.ndarray, rows: int) -> np.ndarray:
  """A copy of a matrix with rows of zeros after its own, `rows` in all."""
  grown = np.zeros((rows, matrix.shape[1]), matrix.dtype)
  grown[: len(matrix)] = matrix
  return grown


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Links a file, or copies it to another file system."""
  try:
    os.link(source.resolve(), target)
  except OSError:
    shutil.copyfile(source, target)


def _write_config(
  base: pathlib.Path, out: pathlib.Path, placement: Placement
) -> None:
  values = public_names.without_paths(json_files.read(base / 'config.json'))
  text = values.get('text_config')
  if wrappers.wrapper_of(values) is not None and isinstance(text, dict):
    text['vocab_size'] = placement.num_rows
    text['tie_word_embeddings'] = False
    if 'vocab_size' in values:
      values['vocab_size'] = placement.num_rows
  else:
    values['vocab_size'] = placement.num_rows
  values['tie_word_embeddings'] = False
  for part in (values, text):
    if isinstance(part, dict):
      _drop_older_names(part)
      if _SECOND_ROWS in part:
        part[_SECOND_ROWS] = placement.num_rows
  if second_matrix(base) is not None:
    inner = text if isinstance(text, dict) else values
    inner[_SECOND_ROWS] = placement.num_rows
  # The head is not quantised, nor was it if it was tied.
  head = matrices(base)[1].removesuffix('.weight')
  for skipped in formats.skipped_lists(values):
    if head not in skipped:
      skipped.append(head)
  writers.write_json(out / 'config.json', values)


def _drop_older_names(values: dict[str, Any]) -> None:
  """Removes older names of fields that were written under their own name."""
  family = registry.families().get(values.get('model_type', ''))
  for older, name in family.aliases.items() if family else ():
    if name in ('tie_word_embeddings', 'vocab_size'):
      values.pop(older, None)


def end_ids(values: Mapping[str, Any]) -> list[int]:
  """The ids of a generation config that end an answer."""
  found = values.get('eos_token_id')
  return [] if found is None else [found] if isinstance(found, int) else found


def write_generation_config(
  base: pathlib.Path, out: pathlib.Path, placement: Placement, end: int
) -> None:
  """Writes generation_config.json: no virtual token is ever sampled.

  Args:
    base: directory of the base, with or without such a file.
    out: directory of the export.
    placement: where virtual tokens stand.
    end: id that ends an answer.
  """
  file = base / 'generation_config.json'
  if file.exists():
    values = public_names.without_paths(json_files.read(file))
  else:
    config = json_files.read(base / 'config.json')
    names = ('bos_token_id', 'eos_token_id', 'pad_token_id')
    values = {name: config[name] for name in names if name in config}
  before = values.get('suppress_tokens') or []
  values['suppress_tokens'] = [*before, *placement.tokens.ids]
  ends = end_ids(values)
  if end not in ends:
    values['eos_token_id'] = [*ends, end]
  writers.write_json(out / 'generation_config.json', values)


def _write_tokenizer(
  base: pathlib.Path, out: pathlib.Path, placement: Placement
) -> None:
  values = json_files.read(base / 'tokenizer.json')
  # With `normalized` the tokenizer would look for the normalised name in the
  # text and find none, with Llama 2's normaliser (tokenizers#1374). Decoded
  # text leaves out tokens that are `special`.
  flags = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  entries = {
    i: {'content': name, **flags}
    for i, name in zip(
      placement.tokens.ids, placement.tokens.names, strict=True
    )
  }
  values['added_tokens'] = [
    *values.get('added_tokens', []),
    *({'id': i, **entry} for i, entry in entries.items()),
  ]
  writers.write_json(out / 'tokenizer.json', values, indent=None)
  file = base / 'tokenizer_config.json'
  if file.exists():
    settings = public_names.without_paths(json_files.read(file))
    if 'added_tokens_decoder' in settings:
      settings['added_tokens_decoder'] |= {
        str(i): entry for i, entry in entries.items()
      }
    writers.write_json(out / file.name, settings)
  file = base / 'added_tokens.json'
  if file.exists():
    added = {entry['content']: i for i, entry in entries.items()}
    writers.write_json(out / file.name, json_files.read(file) | added)
