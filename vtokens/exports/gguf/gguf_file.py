"""A GGUF file for llama.cpp, with the virtual tokens in it.

The export is the file of the base with these changes:

- The embedding matrix gets the rows of the table, at the ids after the last
  token. Rows that pad the matrix (unused tokens at the end of the list) are
  used before it grows. A quantised matrix cannot hold the table exactly, and a
  matrix has one type: its old rows are dequantised to the numbers that
  llama.cpp computes from them, so that neither they nor the table are rounded.
- The head gets as many rows. Each is a copy of the row of a token that the
  model never generates. A row is a number of whole blocks, so the old rows stay
  bit for bit. A head tied to the embedding matrix becomes a matrix of its own,
  of the type that the embedding matrix had.
- The virtual tokens join the list of tokens that are never sampled. Older
  versions of llama.cpp do not read the list.
- The list of tokens gets their names, as control tokens: text becomes a control
  token only if a program asks for special tokens to be parsed.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from vtokens.exports import hf_checkpoint
from vtokens.exports import vocabulary_rows as rows
from vtokens.exports.export_format import Placement
from vtokens.exports.gguf import gguf_copy
from vtokens.host import errors
from vtokens.models.frozen_base import OpenBase
from vtokens.serving.artifact import Artifact

FILE = 'model.gguf'
EMBEDDING, HEAD = 'token_embd.weight', 'output.weight'
_TOKENS, _TYPES, _SCORES = (
  f'tokenizer.ggml.{name}' for name in ('tokens', 'token_type', 'scores')
)
# Ids that llama.cpp never samples; versions from b9495 (2026) on read them.
SUPPRESS = 'tokenizer.ggml.suppress_tokens'
# Paths of the base's publisher, from its quantisation.
_PLACES = ('quantize.imatrix.file', 'quantize.imatrix.dataset')
# Control tokens are recognised where special tokens are parsed, and left out of
# decoded text.
KIND = gguf.TokenType.CONTROL
# The score that llama.cpp's converter gives to added tokens. The tokenizer does
# not use it.
_SCORE = -1000.0
# Rows dequantised at a time.
_ROWS = 4096

Type = gguf.GGMLQuantizationType


def place(table: Artifact, opened: OpenBase, path: str) -> Placement:
  """Finds places for the virtual tokens.

  Args:
    table: the table.
    opened: the base.
    path: file of the base.

  Raises:
    errors.UserError: the base is no GGUF file, is of an architecture without a
      head of its own, has a head with a bias or inputs of each layer, or has a
      token of one of the names.
  """
  if not path.endswith('.gguf'):
    raise errors.UserError(
      f'--to gguf: the base {path} is no GGUF file, and this format adds to '
      "one. Export with --to hf and convert that with llama.cpp's "
      'convert_hf_to_gguf.py; or convert the base, and train on the file'
    )
  if opened.config.head_bias:
    raise errors.UserError(
      f'--to gguf: the head of {path} has a bias (model_type '
      f'{opened.config.model_type}), which this format does not extend to '
      'virtual tokens; --to vtokens writes the table for the base as it is'
    )
  if opened.config.per_layer_dim:
    raise errors.UserError(
      f'--to gguf: {path} has a second matrix with a row for each id '
      '(per_layer_token_embd), which this format does not extend to virtual '
      'tokens; --to vtokens writes the table for the base as it is'
    )
  reader = gguf.GGUFReader(path)
  architecture = reader.fields[gguf_copy.ARCHITECTURE].contents()
  known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
  if gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[known[architecture]]:
    raise errors.UserError(
      f'--to gguf: {path}: llama.cpp takes the embedding matrix of an '
      f'architecture {architecture} for its head and no other, so that virtual '
      'tokens would be answers; use --to hf'
    )
  names = reader.fields[_TOKENS].contents()
  types = reader.fields[_TYPES].contents()
  first = len(names)
  while first and types[first - 1] == gguf.TokenType.UNUSED:
    first -= 1
  vocabulary = {name: i for i, name in enumerate(names[:first])}
  tokens = rows.after_all(vocabulary, table.meta.tokens)
  (embedding,) = (t for t in reader.tensors if t.name == EMBEDDING)
  return Placement(
    tokens=tokens,
    num_rows=max(opened.config.vocab_size, tokens.ids[-1] + 1),
    unsaid=hf_checkpoint.unsaid(vocabulary, opened, first),
    dtype=_exact_dtype(embedding, table.table),
  )


def _exact_dtype(
  embedding: gguf.ReaderTensor, table: np.ndarray
) -> np.dtype[Any]:
  """The smallest dtype that holds every row of matrix and table exactly."""
  for some in itertools.chain([table], _dequantised(embedding)):
    with np.errstate(over='ignore'):
      half = some.astype(np.float16)
    if (half.astype(np.float32) != some).any():
      return np.dtype(np.float32)
  return np.dtype(np.float16)


def _dequantised(tensor: gguf.ReaderTensor) -> Iterator[np.ndarray]:
  """The rows of a matrix as float32, `_ROWS` at a time."""
  for at in range(0, len(tensor.data), _ROWS):
    yield gguf.dequantize(tensor.data[at : at + _ROWS], tensor.tensor_type)


def write(
  target: pathlib.Path, table: Artifact, placement: Placement, path: str
) -> None:
  """Writes the export, a tensor at a time.

  Args:
    target: the file.
    table: the table.
    placement: where its tokens go.
    path: file of the base.

  Raises:
    errors.UserError: the base's file has metadata that cannot be copied.
  """
  reader = gguf.GGUFReader(path)
  base = {tensor.name: tensor for tensor in reader.tensors}
  ids = list(placement.tokens.ids)
  kind = Type.F16 if placement.dtype == np.float16 else Type.F32
  width = table.table.shape[1]

  def embedding() -> np.ndarray:
    matrix = np.zeros((placement.num_rows, width), placement.dtype)
    at = 0
    for some in _dequantised(base[EMBEDDING]):
      matrix[at : at + len(some)] = some
      at += len(some)
    matrix[ids] = table.table
    return matrix

  # A base without a head uses the embedding matrix as the head.
  head = base.get(HEAD, base[EMBEDDING])

  def grown_head() -> np.ndarray:
    matrix = np.zeros(
      (placement.num_rows, *head.data.shape[1:]), head.data.dtype
    )
    matrix[: len(head.data)] = head.data
    matrix[ids] = head.data[placement.unsaid[0]]
    matrix[len(head.data) :] = head.data[placement.unsaid[0]]
    return matrix

  changed = {
    EMBEDDING: gguf_copy.Tensor(
      EMBEDDING, kind, (placement.num_rows, width), placement.dtype, embedding
    ),
    HEAD: gguf_copy.Tensor(
      HEAD,
      head.tensor_type,
      (placement.num_rows, *head.data.shape[1:]),
      head.data.dtype,
      grown_head,
    ),
  }
  names = dict.fromkeys([*base, HEAD])
  gguf_copy.save(
    target,
    reader,
    changed_fields(gguf_copy.read_fields(reader, path), placement),
    [changed.get(name) or gguf_copy.as_it_is(base[name]) for name in names],
  )


def write_float32(target: pathlib.Path, source: pathlib.Path) -> None:
  """Writes a file with the same numbers as another, all as float32.

  llama.cpp rounds activations before it multiplies them by quantised weights,
  and does not with float32 weights.
  """
  reader = gguf.GGUFReader(source)
  tensors = []
  for tensor in reader.tensors:
    if tensor.tensor_type in (Type.F32, Type.I8, Type.I16, Type.I32, Type.I64):
      tensors.append(gguf_copy.as_it_is(tensor))
      continue
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read(tensor: gguf.ReaderTensor = tensor) -> np.ndarray:
      return gguf.dequantize(tensor.data, tensor.tensor_type)

    dtype: np.dtype = np.dtype(np.float32)
    tensors.append(gguf_copy.Tensor(tensor.name, Type.F32, shape, dtype, read))
  gguf_copy.save(
    target, reader, gguf_copy.read_fields(reader, str(source)), tensors
  )


def differences(
  target: pathlib.Path, placement: Placement, table: np.ndarray, path: str
) -> list[str]:
  """Reads a written file and compares it with what it should hold.

  Args:
    target: the file.
    placement: where its virtual tokens are.
    table: the table that it should hold.
    path: file of the base.

  Returns:
    Names of metadata and tensors that differ.
  """
  base, export = gguf.GGUFReader(path), gguf.GGUFReader(target)
  before = changed_fields(gguf_copy.read_fields(base, path), placement)
  after = gguf_copy.read_fields(export, str(target))
  found = [
    name
    for name in {**before, **after}
    if _bits(before.get(name)) != _bits(after.get(name))
  ]
  theirs = {tensor.name: tensor for tensor in base.tensors}
  ours = {tensor.name: tensor for tensor in export.tensors}
  ids = list(placement.tokens.ids)
  old = np.setdiff1d(np.arange(placement.num_rows), ids)
  for name in {**theirs, HEAD: None, **ours}:
    want, have = theirs.get(name, theirs[EMBEDDING]), ours.get(name)
    if have is None or (name not in theirs and name != HEAD):
      same = False
    elif name == EMBEDDING:
      same = _same_values(have, want, old) and np.array_equal(
        have.data[ids].astype(np.float32), table
      )
    elif name == HEAD:
      same = (
        have.tensor_type == want.tensor_type
        and np.array_equal(have.data[old], want.data[old])
        and bool((have.data[ids] == want.data[placement.unsaid[0]]).all())
      )
    else:
      same = have.tensor_type == want.tensor_type and np.array_equal(
        have.data.view(np.uint8), want.data.view(np.uint8)
      )
    if not same:
      found.append(name)
  return found


def _same_values(
  have: gguf.ReaderTensor, want: gguf.ReaderTensor, rows: np.ndarray
) -> bool:
  return all(
    np.array_equal(
      gguf.dequantize(have.data[some], have.tensor_type),
      gguf.dequantize(want.data[some], want.tensor_type),
    )
    for some in np.array_split(rows, -(-len(rows) // _ROWS))
  )


def _bits(field: gguf_copy.Field | None) -> Any:
  """A value that is equal for equal fields, even with NaN in them."""
  return field and repr(field)


def changed_fields(
  fields: dict[str, gguf_copy.Field], placement: Placement
) -> dict[str, gguf_copy.Field]:
  """Metadata of the export, made from the metadata of the base."""
  grown = {name: fields[name] for name in fields if name not in _PLACES}
  for name, fill, values in (
    (_TOKENS, None, [text.encode() for text in placement.tokens.names]),
    (_TYPES, gguf.TokenType.UNUSED.value, KIND.value),
    (_SCORES, _SCORE, _SCORE),
  ):
    if name not in fields:
      continue
    found = list(fields[name].value)
    # llama.cpp refuses a matrix with more rows than tokens.
    found += [
      f'[PAD{i}]'.encode() if fill is None else fill
      for i in range(len(found), placement.num_rows)
    ]
    for row, i in enumerate(placement.tokens.ids):
      found[i] = values[row] if isinstance(values, list) else values
    grown[name] = dataclasses.replace(fields[name], value=found)
  before = fields[SUPPRESS].value if SUPPRESS in fields else []
  grown[SUPPRESS] = gguf_copy.Field(
    [*before, *placement.tokens.ids],
    gguf.GGUFValueType.ARRAY,
    gguf.GGUFValueType.INT32,
  )
  size = f'{fields[gguf_copy.ARCHITECTURE].value.decode()}.vocab_size'
  if size in fields:
    grown[size] = dataclasses.replace(fields[size], value=placement.num_rows)
  return grown
