"""`--to hf-base`: a base in GGUF as a Hugging Face directory, without tokens.

For servers that read no GGUF: they serve the unchanged base, and
`vtokens.vllm_client` sends them a table that was trained on the file.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors

from vtokens.exports import (
  card_recipes,
  gate,
  gguf_conversion,
  shared_checks,
)
from vtokens.exports.export_format import ExportJob, Format, Placement, Usage
from vtokens.exports.gate import Check
from vtokens.exports.gguf import llama_consumer
from vtokens.exports.trained_table import Source
from vtokens.host import errors, writers
from vtokens.models.files import hf_directory, stored_names
from vtokens.models.files.weight_map import TensorSource, Weight
from vtokens.models.frozen_base import OpenBase
from vtokens.models.tokenizers import gguf_tokenizer
from vtokens.serving import plug
from vtokens.serving.artifact import Meta

# Tokens of a text; the memory of the server grows with it.
_CONTEXT = 512
_RECIPE = """
import torch, transformers
from vtokens import plug

table = plug.load('.')
model = transformers.AutoModelForCausalLM.from_pretrained('.')
tokenizer = transformers.AutoTokenizer.from_pretrained('.')
plug.attach(model, table)
{ids}
{generate}
"""


class HFBaseFormat(Format):
  """The base as a directory, read by transformers and compared to llama.cpp."""

  name = 'hf-base'
  library = 'transformers'
  consumers = ('torch', 'transformers', 'xllamacpp')

  def place(self, source: Source, base_path: str) -> Placement:
    """Ids after all ids of the base, as with `--to vtokens`."""
    if not base_path.endswith('.gguf'):
      raise errors.UserError(
        f'--to hf-base: {base_path} is no GGUF file but a Hugging Face '
        'directory already, which servers read as it is; --to vtokens writes '
        'the table for it'
      )
    return Placement(source.table.meta.tokens)

  def write(self, job: ExportJob) -> None:
    """Weights in float32, configs and tokenizer."""
    write(job.directory, job.source.base)

  def check(self, job: ExportJob) -> list[Check]:
    """The directory in transformers, and its ids next to llama.cpp's."""
    from vtokens.exports import torch_consumer

    opened = job.source.base
    model = torch_consumer.load_model(str(job.directory))
    tokenizer = torch_consumer.load_tokenizer(str(job.directory))
    plug.attach(model, job.exported)
    consumer = torch_consumer.TorchConsumer(
      model, tokenizer, job.exported.meta, sorted(opened.tokenizer.end_ids)
    )
    texts = [one.record.question for one in job.probes]
    texts += [p['text'] for one in job.probes for p in one.passages]
    return [
      same_tensors(job.directory, opened),
      *same_ids(tokenizer, job.base_path, texts),
      *shared_checks.compare(consumer, job),
    ]

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """Transformers with `plug.attach`; vLLM with `vtokens.vllm_client`."""
    recipe = card_recipes.fill(_RECIPE, meta)
    if meta.base.scales_embeddings:
      return Usage(recipe)
    return Usage(recipe, card_recipes.vllm_embeds('.', dtype))


def write(out: pathlib.Path, opened: OpenBase) -> None:
  """Writes weights in float32, configs and tokenizer.

  Args:
    out: the directory.
    opened: the base.
  """
  gguf_conversion.to_directory(opened, out)
  # The answers of a chat end with the turn, whose token need not be eos.
  writers.write_json(
    out / 'generation_config.json',
    {'eos_token_id': sorted(opened.tokenizer.end_ids)},
  )


def same_tensors(out: pathlib.Path, opened: OpenBase) -> Check:
  """Every tensor that a loader finds equals the GGUF file's, bit by bit.

  Args:
    out: the directory.
    opened: the base.
  """
  expected = stored_names.expected_shapes(opened.config)
  found: list[str] = []
  for file in sorted(out.glob('*.safetensors')):
    with safetensors.safe_open(file, framework='numpy') as tensors:
      found += tensors.keys()
  missing = sorted(set(expected) - set(found))
  different = sorted(set(found) - set(expected)) + _different(out, opened)
  twice = len(found) - len(set(found))
  return Check(
    "tensors in the directory's *.safetensors that are not the GGUF file's",
    not different and not missing and not twice,
    f'{len(different)} differ {different[:3]}, {len(missing)} are missing '
    f'{missing[:3]}, {twice} are there twice, of {len(found)}',
    f'0 of {len(expected)}, bit by bit',
  )


def _different(out: pathlib.Path, opened: OpenBase) -> list[str]:
  """Names of tensors whose values are not those of the GGUF file.

  The file may have other tensors for the same parameters, so parameters are
  compared. For experts with tensors of their own the first one's is named.

  Args:
    out: the directory.
    opened: the base.
  """
  config, base = opened.config, opened.source
  directory = hf_directory.SafetensorsSource(out)
  shapes = directory.shapes()
  in_file = stored_names.weights_of(config, base.shapes())
  names: list[str] = []
  for path, (weight, _) in stored_names.weights_of(config).items():
    count = len(weight.names) // weight.layers
    for layer in range(weight.layers):
      own = weight.names[layer * count : (layer + 1) * count]
      if not shapes.keys() >= {*own}:
        continue  # Missing, and named as such.
      if any(shapes[name] != weight.whole_shape() for name in own) or (
        not np.array_equal(
          _values(weight, directory, layer),
          _values(in_file[path][0], base, layer),
        )
      ):
        names.append(own[0])
  # Several parameters may be rows of one tensor.
  return list(dict.fromkeys(names))


def _values(weight: Weight, source: TensorSource, layer: int) -> np.ndarray:
  """The values of one layer's parameter, float32."""
  values = np.empty(weight.shape, np.float32)
  whole = tuple(slice(0, size) for size in weight.shape)
  weight.read(source, layer, whole, values, lambda _: None)
  return values


def same_ids(tokenizer: Any, path: str, texts: Sequence[str]) -> list[Check]:
  """The tokenizer of the directory gives the ids of llama.cpp.

  Args:
    tokenizer: tokenizer of the directory, loaded by transformers.
    path: the GGUF file.
    texts: ordinary texts, tried besides `gate.TEXTS`.

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
