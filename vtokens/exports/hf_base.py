"""A base in GGUF as a directory in Hugging Face format, without the tokens.

For servers that read no GGUF: a table that was trained on the file is sent to
such a server of the unchanged base (`vtokens.vllm_client`).
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors

from vtokens.exports import convert, gate
from vtokens.exports.gate import Check
from vtokens.exports.gguf import llama_consumer
from vtokens.exports.json_file import write_json
from vtokens.host import errors
from vtokens.models.frozen_base import OpenBase
from vtokens.models.tokenizers import gguf_tokenizer

# Tokens of a text; the server's memory grows with it.
_CONTEXT = 512


def require_gguf(path: str) -> None:
  """Raises if a base is a directory already.

  Raises:
    errors.UserError: it is.
  """
  if not path.endswith('.gguf'):
    raise errors.UserError(
      f'--to hf-base: {path} is no GGUF file but a Hugging Face directory '
      'already, which servers read as it is; --to vtokens writes the table for '
      'it'
    )


def write(out: pathlib.Path, opened: OpenBase) -> None:
  """Writes weights in float32, config and tokenizer.

  Args:
    out: the directory.
    opened: the base.
  """
  convert.to_directory(opened, out)
  tokenizer = opened.tokenizer
  # A chat's answers end with the turn, which need not be eos.
  write_json(
    out / 'generation_config.json', {'eos_token_id': sorted(tokenizer.end_ids)}
  )


def same_tensors(out: pathlib.Path, opened: OpenBase) -> Check:
  """Every tensor that a loader finds is the GGUF file's, bit by bit.

  Args:
    out: the directory.
    opened: the base.
  """
  expected = opened.source.shapes()
  found: list[str] = []
  different: list[str] = []
  for file in sorted(out.glob('*.safetensors')):
    with safetensors.safe_open(file, framework='numpy') as tensors:
      names = tensors.keys()
      for name in names:
        found.append(name)
        if name not in expected or not np.array_equal(
          tensors.get_tensor(name), opened.source.read(name)
        ):
          different.append(name)
  missing = sorted(set(expected) - set(found))
  twice = len(found) - len(set(found))
  return Check(
    "tensors in the directory's *.safetensors that are not the GGUF file's",
    not different and not missing and not twice,
    f'{len(different)} differ {different[:3]}, {len(missing)} are missing '
    f'{missing[:3]}, {twice} are there twice, of {len(found)}',
    f'0 of {len(expected)}, bit by bit',
  )


def same_ids(tokenizer: Any, path: str, texts: Sequence[str]) -> list[Check]:
  """The directory's tokenizer gives llama.cpp's ids.

  Args:
    tokenizer: of the directory, as transformers loads it.
    path: the GGUF file.
    texts: ordinary ones; `gate.TEXTS` are tried besides.

  Raises:
    errors.UserError: llama.cpp fails on the file.
  """
  base = gguf_tokenizer.read_tokenizer(path)
  vocabulary, expected = tokenizer.get_vocab(), base.get_vocab()
  different = {*vocabulary.items()} ^ {*expected.items()}
  texts = [*gate.TEXTS, *texts]
  with llama_consumer.serve(pathlib.Path(path), _CONTEXT, 'served') as address:
    same = sum(
      tokenizer(text, add_special_tokens=False)['input_ids']
      == llama_consumer.post(
        address, '/tokenize', {'content': text, 'parse_special': True}
      )['tokens']
      for text in texts
    )
  return [
    Check(
      'tokens with another id than in the GGUF file',
      not different,
      len(different),
      f'0 of {len(expected)}',
    ),
    Check(
      "texts that become llama.cpp's ids",
      same == len(texts),
      same,
      f'{len(texts)}, id by id',
    ),
  ]
