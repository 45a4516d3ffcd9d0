"""A full checkpoint in Hugging Face format, with the virtual tokens in it.

What `AutoModelForCausalLM` and `AutoTokenizer` load, and all that read the
same files. The base's files are linked or copied, but for those that change:

- the embedding matrix gets the table's rows, at the ids after the tokenizer's
  last; rows that pad the matrix are used up before it grows;
- the head gets rows as many, each the copy of one that the model never says,
  so that no virtual token can be more likely than that. A head that is the
  embedding matrix itself becomes one of its own, else the tokens' rows would
  be in it, and be said;
- the tokenizer's files get the names of the tokens; they are not written by a
  tokenizer library, whose versions differ in what they write and can read.
"""

import dataclasses
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
from vtokens.exports.json_file import read_json, write_json
from vtokens.models.files.hf_directory import INDEX_FILE, SINGLE_FILE
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Artifact, Tokens

EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
# What belongs to the model besides the files that are written here. Others may
# be weights in another format, or tell of the base's training and of paths.
_COPIED = re.compile(
  r'.*licen[cs]e.*|notice.*|copying.*|use_policy.*'
  r'|.*\.model|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json'
  r'|chat_template\.(jinja|json)|.*\.py',
  re.IGNORECASE,
)
# Names of tokens that no model is trained to say.
_UNSAID = re.compile(
  r'<\|?(pad|unk|unused|reserved|finetune|dummy|placeholder)', re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class CheckpointPlan:
  """Where the virtual tokens go.

  Attributes:
    tokens: their ids in the export.
    num_rows: of its embedding matrix.
    unsaid: ids of rows of the head that hardly ever win; the virtual tokens'
      rows copy the first.
    dtype: of the embedding matrix, of numpy or ml_dtypes.
    end: id that ends an answer.
  """

  tokens: Tokens
  num_rows: int
  unsaid: tuple[int, ...]
  dtype: np.dtype
  end: int

  def stored(self, table: np.ndarray) -> np.ndarray:
    """The table as the export has it, f32: rounded to its dtype."""
    return table.astype(self.dtype).astype(np.float32)


def plan(table: Artifact, opened: OpenBase, directory: str) -> CheckpointPlan:
  """Finds places for the virtual tokens.

  Args:
    table: what is exported.
    opened: the base.
    directory: of the base, in Hugging Face format.

  Raises:
    errors.UserError: the tokenizer has a token of one of the names, or gaps
      between its ids.
  """
  vocabulary = rows.read_vocabulary(directory)
  tokens = rows.after_all(vocabulary, table.meta.tokens)
  return CheckpointPlan(
    tokens=tokens,
    num_rows=max(opened.config.vocab_size, tokens.ids[-1] + 1),
    unsaid=unsaid(vocabulary, opened, tokens.ids[0]),
    dtype=_dtype(pathlib.Path(directory)),
    end=opened.tokenizer.turn_end_id
    if table.meta.prompt.templates.chat
    else opened.tokenizer.eos_id,
  )


def unsaid(
  vocabulary: Mapping[str, int], opened: OpenBase, first: int
) -> tuple[int, ...]:
  """Ids of rows of the head that hardly ever win, ascending.

  Args:
    vocabulary: every token, with its id.
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
  # What begins a text, a turn or the like is not said in an answer; what ends
  # one is, so that it is the last resort.
  for found in (special & named, others, special, tokenizer.end_ids):
    if found:
      return tuple(sorted(found))
  raise AssertionError('every tokenizer has an eos')


def write(
  out: pathlib.Path, table: Artifact, plan: CheckpointPlan, directory: str
) -> None:
  """Writes the checkpoint into an empty directory.

  Args:
    out: the directory.
    table: what is exported.
    plan: where its tokens go.
    directory: of the base.

  Raises:
    errors.UserError: a file of the base is not as expected.
  """
  base = pathlib.Path(directory)
  names = _weight_map(base)
  made = _made(names, table, plan)
  # Of the base a file, in which a head that is tied there comes to lie as well.
  places = {name: names.get(name, names[EMBEDDING]) for name in made}
  for file in sorted(set(names.values())):
    here = {name: made[name] for name in made if places[name] == file}
    if here:
      safetensors_file.rewrite(base / file, out / file, here)
    else:
      _link(base / file, out / file)
  names = {**names, **places}
  # With a single file an index is not looked at.
  if SINGLE_FILE not in names.values():
    size = sum((out / file).stat().st_size for file in set(names.values()))
    write_json(
      out / INDEX_FILE,
      {
        'metadata': {'total_size': size},
        'weight_map': dict(sorted(names.items())),
      },
    )
  _write_config(base, out, plan)
  _write_generation_config(base, out, plan)
  _write_tokenizer(base, out, plan)
  for other in sorted(base.iterdir()):
    target = out / other.name
    if (
      other.is_file() and _COPIED.fullmatch(other.name) and not target.exists()
    ):
      shutil.copyfile(other, target)


def stray_weights(
  out: pathlib.Path, base: str
) -> tuple[list[str], list[str], int]:
  """Compares the weights that a loader without an index finds with the model's.

  vLLM and SGLang read every `*.safetensors` of the directory where there is no
  index, and refuse a tensor that the model has not.

  Args:
    out: directory of the export.
    base: directory of the base.

  Returns:
    Tensors that are not of the model or are there twice, tensors of the model
    that are missing, and how many the model has.
  """
  found: list[str] = []
  for file in sorted(out.glob('*.safetensors')):
    with safetensors.safe_open(file, framework='numpy') as tensors:
      found += tensors.keys()
  expected = {*_weight_map(pathlib.Path(base)), EMBEDDING, HEAD}
  left = list(found)
  for name in expected.intersection(found):
    left.remove(name)
  return left, sorted(expected.difference(found)), len(expected)


def _weight_map(base: pathlib.Path) -> dict[str, str]:
  """The file of each tensor."""
  index = base / INDEX_FILE
  if index.exists():
    return dict(read_json(index)['weight_map'])
  with safetensors.safe_open(base / SINGLE_FILE, framework='numpy') as file:
    return dict.fromkeys(file.keys(), SINGLE_FILE)


def _dtype(base: pathlib.Path) -> np.dtype:
  """Of the embedding matrix."""
  path = base / _weight_map(base)[EMBEDDING]
  with safetensors.safe_open(path, framework='numpy') as file:
    return file.get_slice(EMBEDDING)[0:1].dtype


def _made(
  names: Mapping[str, str], table: Artifact, plan: CheckpointPlan
) -> dict:
  """The matrices that grow.

  Args:
    names: the file of each of the base's tensors.
    table: what is exported.
    plan: where its tokens go.
  """

  def embedding(matrix: np.ndarray) -> np.ndarray:
    matrix = _grown(matrix, plan.num_rows)
    matrix[list(plan.tokens.ids)] = table.table.astype(matrix.dtype)
    return matrix

  # A tied head becomes one of its own: the embedding matrix as it was.
  of = HEAD if HEAD in names else EMBEDDING
  return {
    EMBEDDING: safetensors_file.Made(EMBEDDING, plan.num_rows, embedding),
    HEAD: safetensors_file.Made(
      of, plan.num_rows, lambda matrix: _head(matrix, plan)
    ),
  }


def _head(matrix: np.ndarray, plan: CheckpointPlan) -> np.ndarray:
  unsaid = matrix[plan.unsaid[0]].copy()
  before = len(matrix)
  matrix = _grown(matrix, plan.num_rows)
  matrix[list(plan.tokens.ids)] = unsaid
  # Of tokens of the tokenizer that the base has no rows for.
  matrix[before:] = unsaid
  return matrix


def _grown(matrix: np.ndarray, rows: int) -> np.ndarray:
  grown = np.zeros((rows, matrix.shape[1]), matrix.dtype)
  grown[: len(matrix)] = matrix
  return grown


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """The same file under another name, or a copy on another file system."""
  try:
    os.link(source.resolve(), target)
  except OSError:
    shutil.copyfile(source, target)


def _write_config(
  base: pathlib.Path, out: pathlib.Path, plan: CheckpointPlan
) -> None:
  values = public_names.without_paths(read_json(base / 'config.json'))
  values['vocab_size'] = plan.num_rows
  values['tie_word_embeddings'] = False
  write_json(out / 'config.json', values)


def end_ids(values: Mapping[str, Any]) -> list[int]:
  """Of a generation config: what ends an answer."""
  found = values.get('eos_token_id')
  return [] if found is None else [found] if isinstance(found, int) else found


def _write_generation_config(
  base: pathlib.Path, out: pathlib.Path, plan: CheckpointPlan
) -> None:
  file = base / 'generation_config.json'
  if file.exists():
    values = public_names.without_paths(read_json(file))
  else:
    config = read_json(base / 'config.json')
    names = ('bos_token_id', 'eos_token_id', 'pad_token_id')
    values = {name: config[name] for name in names if name in config}
  before = values.get('suppress_tokens') or []
  values['suppress_tokens'] = [*before, *plan.tokens.ids]
  ends = end_ids(values)
  if plan.end not in ends:
    values['eos_token_id'] = [*ends, plan.end]
  write_json(out / 'generation_config.json', values)


def _write_tokenizer(
  base: pathlib.Path, out: pathlib.Path, plan: CheckpointPlan
) -> None:
  values = read_json(base / 'tokenizer.json')
  # `normalized` would have the text of a name changed before it is looked for,
  # as Llama 2's normaliser does, and none found (tokenizers#1374); what is
  # `special` is left out of decoded text.
  flags = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  entries = {
    i: {'content': name, **flags}
    for i, name in zip(plan.tokens.ids, plan.tokens.names, strict=True)
  }
  values['added_tokens'] = [
    *values.get('added_tokens', []),
    *({'id': i, **entry} for i, entry in entries.items()),
  ]
  write_json(out / 'tokenizer.json', values, indent=None)
  file = base / 'tokenizer_config.json'
  if file.exists():
    settings = public_names.without_paths(read_json(file))
    if 'added_tokens_decoder' in settings:
      settings['added_tokens_decoder'] |= {
        str(i): entry for i, entry in entries.items()
      }
    write_json(out / file.name, settings)
  file = base / 'added_tokens.json'
  if file.exists():
    added = {entry['content']: i for i, entry in entries.items()}
    write_json(out / file.name, read_json(file) | added)
