"""Loading by parts: how much memory it takes, what is read, saving."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_models

from vtokens.devices import partitioning
from vtokens.host import errors, writers
from vtokens.models.families import registry
from vtokens.models.files import (
  directory_files,
  hf_directory,
  saving,
  stored_names,
  weight_map,
  weights,
)

# About 3.2 GB in bfloat16.
LARGE = {
  'model_type': 'llama',
  'vocab_size': 32000,
  'hidden_size': 2048,
  'intermediate_size': 5632,
  'num_hidden_layers': 34,
  'num_attention_heads': 32,
  'num_key_value_heads': 4,
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
}

# About 2 GB in bfloat16, most of it experts; a tensor has those of a layer.
EXPERTS = {
  'vocab_size': 2048,
  'hidden_size': 1024,
  'intermediate_size': 1024,
  'num_hidden_layers': 20,
  'num_attention_heads': 8,
  'num_key_value_heads': 2,
  'head_dim': 64,
  'num_local_experts': 16,
  'num_experts_per_tok': 2,
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
}

# Loads a directory and prints, in bytes: what the process had at its largest
# before and after, and the weights themselves. Not from getrusage, which goes
# on from what the parent had.
_LOAD = """
import sys
import jax, jax.numpy as jnp
from vtokens.host import errors
from vtokens.devices import partitioning
from vtokens.models.files import hf_directory as hf, weights

def peak():
  with open('/proc/self/status') as file:
    (line,) = [line for line in file if line.startswith('VmHWM')]
  return int(line.split()[1]) * 1024

mesh = partitioning.make_mesh((-1, 1, 1))
jax.block_until_ready(jnp.ones(8) + 1)
config = hf.read_config(sys.argv[1])
before = peak()
model = weights.load_decoder(
  hf.SafetensorsSource(sys.argv[1]), config, jnp.bfloat16, mesh, sys.argv[2])
size = sum(x.nbytes for _, x in weights.iter_arrays(model))
print(before, peak(), size)
"""


def _mxfp4(name, shape, rng):
  """All experts of a layer."""
  experts, inputs, outputs = shape
  shape = experts, outputs, inputs // 32
  blocks = rng.integers(256, size=(*shape, 16), dtype=np.uint8)
  scales = rng.integers(121, 125, size=shape, dtype=np.uint8)
  return {f'{name}_blocks': blocks, f'{name}_scales': scales}


def _gptq(name, shape, rng):
  """A matrix whose groups of 128 inputs are anywhere."""
  outputs, inputs = shape
  groups = inputs // 128
  parts = {
    'qweight': rng.integers(1 << 31, size=(inputs // 8, outputs)),
    'qzeros': np.full((groups, outputs // 8), 0x77777777),
    'g_idx': rng.permutation(inputs) // 128,
  }
  parts = {end: part.astype(np.int32) for end, part in parts.items()}
  parts['scales'] = np.full((groups, outputs), 0.01, np.float16)
  return {
    f'{name.removesuffix("weight")}{end}': part for end, part in parts.items()
  }


# `quantization_config`, ends of the names of what is quantised, and a function
# from name, shape and generator to the stored tensors.
MXFP4 = {'quant_method': 'mxfp4'}, ('gate_up_proj', 'down_proj'), _mxfp4
ACT_ORDER = (
  {'quant_method': 'gptq', 'bits': 4, 'group_size': 128, 'desc_act': True},
  ('_proj.weight',),
  _gptq,
)


def _write_large(directory: pathlib.Path, values, quantised=None) -> None:
  """Random weights; `quantised` is one of the above."""
  rng = np.random.default_rng(0)
  shapes = stored_names.expected_shapes(registry.from_hf(values))
  config, ends, convert = quantised or (None, (), None)

  def tensors(name):
    if name.endswith(ends):
      return convert(name, shapes[name], rng)
    numbers = rng.integers(0, 1 << 14, shapes[name], np.uint16)
    return {name: numbers.view(ml_dtypes.bfloat16)}

  file_of = {}
  names = sorted(shapes)
  for number in range(4):
    file = f'model-{number + 1:05d}-of-00004.safetensors'
    part = {}
    for name in names[number::4]:
      part |= tensors(name)
    safetensors.numpy.save_file(part, directory / file)
    file_of.update(dict.fromkeys(part, file))
  (directory / directory_files.INDEX_FILE).write_text(
    json.dumps({'weight_map': file_of})
  )
  if config:
    values = {**values, 'quantization_config': config}
  (directory / 'config.json').write_text(json.dumps(values))


def _load_and_measure(directory, method):
  """Bytes before and after, at the largest, and of the weights."""
  result = subprocess.run(
    [sys.executable, '-c', _LOAD, str(directory), method],
    # Compiled as users' programs are: there is much to quantise.
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return map(int, result.stdout.split())


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('quantised', [None, ACT_ORDER], ids=['bf16', 'gptq'])
def test_peak_memory_of_loading_gigabytes(quantised, tmp_path):
  _write_large(tmp_path, LARGE, quantised)
  largest = LARGE['vocab_size'] * LARGE['hidden_size'] * 2
  for method, least in (('none', 3e9), ('int8', 1.6e9)):
    before, after, size = _load_and_measure(tmp_path, method)
    assert least < size < 1.2 * least
    assert after - before > 0.9 * size  # Else it measures something else.
    assert after - before <= 1.1 * size + largest


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('model_type', ['gpt_oss', 'granitemoe'])
def test_peak_memory_of_loading_experts(model_type, tmp_path):
  """Packed in MXFP4, and as gates and ups of all experts in one tensor."""
  values = {**EXPERTS, 'model_type': model_type}
  _write_large(tmp_path, values, MXFP4 if model_type == 'gpt_oss' else None)
  count = values['num_local_experts'] * values['hidden_size']
  largest = 2 * count * 2 * values['intermediate_size']
  before, after, size = _load_and_measure(tmp_path, 'none')
  assert 2e9 < size < 2.2e9
  assert after - before > 0.9 * size
  assert after - before <= 1.1 * size + largest


class _Recorder:
  """A source that notes what is read of it."""

  def __init__(self, source):
    self._source = source
    self.reads = []

  def __getattr__(self, name):
    return getattr(self._source, name)

  def read(self, name, rows=slice(None), columns=slice(None)):
    block = self._source.read(name, rows, columns)
    self.reads.append((name, block.size))
    return block


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_transposed_in_tiles(dtype):
  rng = np.random.default_rng(0)
  block = rng.integers(-9, 9, (300, 257)).astype(jnp.dtype(dtype))
  out = np.zeros((257, 400), block.dtype)
  # Rows of one block are written into a part of a larger array.
  weight_map.transpose(block, out[:, 50:350])
  np.testing.assert_array_equal(out[:, 50:350], block.T)
  assert not out[:, :50].any() and not out[:, 350:].any()


def test_each_value_is_read_once_and_in_blocks(tmp_path, monkeypatch):
  tiny_models.save(tmp_path)
  source = _Recorder(hf_directory.SafetensorsSource(tmp_path))
  config = hf_directory.read_config(tmp_path)
  monkeypatch.setattr(weights, 'BLOCK_BYTES', 4096)
  monkeypatch.setattr(weight_map, 'BLOCK_BYTES', 4096)  # 1,024 values
  model = weights.load_decoder(
    source, config, jnp.float32, partitioning.make_mesh((-1, 1, 1))
  )
  count = sum(array.size for _, array in weights.iter_arrays(model))
  assert sum(size for _, size in source.reads) == count
  assert max(size for _, size in source.reads) <= 1024
  # The same as read whole.
  monkeypatch.undo()
  whole = weights.load_decoder(
    hf_directory.SafetensorsSource(tmp_path),
    config,
    jnp.float32,
    partitioning.make_mesh((-1, 1, 1)),
  )
  for (name, found), (_, expected) in zip(
    weights.iter_arrays(model), weights.iter_arrays(whole), strict=True
  ):
    np.testing.assert_array_equal(found, expected, err_msg=name)


# One of two processes with a device each: loads its half, compares it with
# the whole that it loads by itself, and prints how many values it read.
_HALF = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from vtokens.devices import partitioning
from vtokens.models.files import hf_directory as hf, weight_map, weights

directory, port, process = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
# Several blocks of each tensor, layer by layer.
weights.BLOCK_BYTES = weight_map.BLOCK_BYTES = 4096
config = hf.read_config(directory)
source = hf.SafetensorsSource(directory)
read, count = source.read, 0

def counted(*arguments):
  global count
  block = read(*arguments)
  count += block.size
  return block

source.read = counted
mesh = partitioning.make_mesh((1, 1, 2))
parts = dict(weights.iter_arrays(
  weights.load_decoder(source, config, jnp.float32, mesh)))
here = Mesh(np.array(jax.local_devices()).reshape(1, 1, 1), mesh.axis_names)
whole = dict(weights.iter_arrays(weights.load_decoder(
  hf.SafetensorsSource(directory), config, jnp.float32, here)))
for name, array in parts.items():
  (shard,) = array.addressable_shards
  expected = np.asarray(whole[name])[shard.index]
  np.testing.assert_array_equal(shard.data, expected)
print(count)
"""


def test_each_process_reads_only_its_part(tmp_path):
  reference = tiny_models.save(tmp_path)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _HALF, str(tmp_path), str(port), str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  counts = []
  for process in processes:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    counts.append(int(out.split()[-1]))
  # Norms are in both; all else is split.
  norms = sum(p.numel() for n, p in reference.named_parameters() if 'norm' in n)
  half = (reference.num_parameters() - norms) // 2
  assert counts == [half + norms] * 2


def test_the_bar_counts_the_bytes_of_the_files(tmp_path, monkeypatch):
  tiny_models.save(tmp_path, model_type='phi3')  # Tensors of several parts.
  source = hf_directory.SafetensorsSource(tmp_path)
  bars = []

  class Bar(writers.tqdm.tqdm):
    def __init__(self, **options):
      super().__init__(**options)
      bars.append(self)

  monkeypatch.setattr(writers.tqdm, 'tqdm', Bar)
  weights.load_decoder(
    source,
    hf_directory.read_config(tmp_path),
    jnp.bfloat16,
    partitioning.make_mesh((-1, 1, 1)),
  )
  (bar,) = bars
  assert bar.n == bar.total == sum(map(source.nbytes, source.shapes()))


@pytest.mark.parametrize('same', [True, False])
def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path, same):
  tiny_models.save(tmp_path, tie_word_embeddings=True)
  path = tmp_path / directory_files.SINGLE_FILE
  tensors = safetensors.numpy.load_file(path)
  head = tensors['model.embed_tokens.weight'].copy()
  head[-1, -1] += 0.0 if same else 1e-3
  safetensors.numpy.save_file({**tensors, 'lm_head.weight': head}, path)

  def load():
    return weights.load_decoder(
      hf_directory.SafetensorsSource(tmp_path),
      hf_directory.read_config(tmp_path),
      jnp.float32,
      partitioning.make_mesh((-1, 1, 1)),
    )

  if same:
    assert load().head is None
    return
  with pytest.raises(errors.UserError, match='tie_word_embeddings is true'):
    load()


def test_saving_in_several_files(tmp_path):
  reference = tiny_models.save(tmp_path / 'a', model_type='phi3')
  mesh = partitioning.make_mesh((-1, 1, 1))
  model = weights.load_decoder(
    hf_directory.SafetensorsSource(tmp_path / 'a'),
    hf_directory.read_config(tmp_path / 'a'),
    jnp.bfloat16,
    mesh,
  )
  saving.save_decoder(model, tmp_path / 'b', {}, max_shard_bytes=50_000)
  assert len(list((tmp_path / 'b').glob('*.safetensors'))) > 2
  source = hf_directory.SafetensorsSource(tmp_path / 'b')
  again = weights.load_decoder(
    source, hf_directory.read_config(tmp_path / 'b'), jnp.bfloat16, mesh
  )
  for (name, found), (_, expected) in zip(
    weights.iter_arrays(again), weights.iter_arrays(model), strict=True
  ):
    np.testing.assert_array_equal(found, expected, err_msg=name)
  index = json.loads((tmp_path / 'b' / directory_files.INDEX_FILE).read_text())
  assert index['metadata']['total_size'] == 2 * reference.num_parameters()
