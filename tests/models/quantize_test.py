"""Quantised matrices: values, products, gradients and what is kept of them."""

import dataclasses
import functools
import inspect

import device_programs
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quantised
import tiny_models
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.method import steps
from vtokens.models import layers, quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.files import hf_directory
from vtokens.models.files import weights as weights_lib
from vtokens.planning import abstract_step

METHODS = ('int8', 'int4')
CONFIG = DecoderConfig(
  vocab_size=256,
  embed_dim=128,
  num_layers=8,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  mlp_dim=320,
)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
  'shape, inputs',
  [((128, 5, 6), 1), ((96, 7), 1), ((3, 24, 10), 2), ((2, 128, 10), 2)],
)
def test_values_and_scales(shape, inputs, method):
  weight = _random(*shape)
  weight[..., 0] = 0.0  # Of a pruned channel.
  weight[..., 1] = 1e-42  # Denormal.
  values, scales = quantize.quantise(jnp.asarray(weight), inputs, method)
  found = np.asarray(quantize.dequantise(values, scales, jnp.float32))
  rows = int(np.prod(shape[:inputs]))
  flat = weight.reshape(rows, -1)
  expected, each = quantised.quantise(
    np.where(np.abs(flat) < 1e-37, 1e-6, flat).T, method, shape[inputs - 1]
  )
  real = np.abs(flat) > 1e-37
  np.testing.assert_array_equal(
    np.asarray(values).astype(int)[real], expected.T[real]
  )
  # Half a scale, and the rounding of a float32.
  assert (np.abs(found - flat) <= each.T * (0.5 + 1e-6))[real].all()
  assert np.abs(found[~real]).max() <= 1e-37
  largest = {'int8': 127, 'int4': 7}[method]
  assert np.abs(np.asarray(values).astype(int)).max() == largest
  groups = (
    1
    if method == 'int8'
    else rows // quantize.group_size(shape[inputs - 1], method)
  )
  outputs = flat.shape[1]
  assert scales.shape == ((outputs,) if method == 'int8' else (groups, outputs))


def _mxfp4(weight):
  """What is left of a matrix in MXFP4."""
  run = jax.jit(lambda w: quantize.quantise(w, 1, 'mxfp4'))
  values, scales = run(jnp.asarray(weight))
  assert (values.dtype, scales.dtype) == ('float4_e2m1fn', 'float8_e8m0fnu')
  whole = [
    np.float32(quantize.dequantise(values, scales, jnp.dtype(dtype)))
    for dtype in ('float32', 'bfloat16')
  ]
  np.testing.assert_array_equal(*whole)
  return whole[0]


def test_weights_in_mxfp4_stay_as_they_are():
  """Of every largest code and exponent, by transformers' dequantisation."""
  rng = np.random.default_rng(0)
  for largest in range(8):
    # The sign is the fourth bit.
    codes = rng.integers(largest + 1, size=(3, 5, 2, 32)) + 8 * rng.integers(
      2, size=(3, 5, 2, 32)
    )
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    exponents = rng.integers(10, 245, size=(3, 5, 2))
    theirs = convert_moe_packed_tensors(
      torch.from_numpy(blocks.astype(np.uint8)),
      torch.from_numpy(exponents.astype(np.uint8)),
      dtype=torch.float32,
    ).numpy()
    assert theirs.shape == (3, 64, 5)
    for weight in theirs:
      np.testing.assert_array_equal(_mxfp4(weight), weight)


def test_other_weights_become_the_nearest_of_mxfp4():
  weight = _random(96, 50)
  weight[:, 0] = 0.0
  weight[:, 1] = 1e-42
  codes = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
  codes = np.concatenate([-codes[:0:-1], codes])
  for group, found in zip(
    weight.reshape(3, 32, 50), _mxfp4(weight).reshape(3, 32, 50), strict=True
  ):
    largest = np.maximum(np.abs(group).max(axis=0), 1e-30)
    # The least power of 2 with which 6 is enough.
    grid = codes[:, None] * 2 ** np.ceil(np.log2(largest / 6))
    nearest = np.abs(grid[:, None] - group).min(axis=0)
    np.testing.assert_allclose(np.abs(found - group), nearest, rtol=1e-6)
    assert (np.abs(found - group) <= largest / 5).all()


def test_weights_that_are_no_numbers_do_not_become_numbers():
  for wrong in (np.nan, np.inf):
    weight = np.ones((64, 2), np.float32)
    weight[3, 0] = wrong
    found = _mxfp4(weight)
    assert np.isnan(found[:32, 0]).all()
    np.testing.assert_array_equal(found[32:, 0], 1)
    np.testing.assert_array_equal(found[:, 1], 1)


def test_mxfp4_is_for_experts(tmp_path):
  tiny_models.save(tmp_path)
  with pytest.raises(errors.UserError, match='mxfp4 is for experts'):
    weights_lib.load_decoder(
      hf_directory.SafetensorsSource(tmp_path),
      hf_directory.read_config(tmp_path),
      jnp.dtype('float32'),
      partitioning.make_mesh((-1, 1, 1)),
      'mxfp4',
    )


def test_groups_divide():
  sizes = {4096: 64, 128: 64, 80: 40, 60: 60, 96: 48, 576: 64, 7: 7, 67: 1}
  for rows, size in sizes.items():
    assert quantize.group_size(rows, 'int4') == size
  for rows, size in {2880: 32, 48: 24, 20: 20, 67: 1}.items():
    assert quantize.group_size(rows, 'mxfp4') == size


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
  'spec, x_shape, shape, inputs, axes',
  [
    ('btd,dnh->btnh', (2, 3, 64), (64, 2, 16), 1, ('embed', 'heads', 'head')),
    ('btnh,nhd->btd', (2, 3, 2, 16), (2, 16, 48), 2, ('heads', '', 'embed')),
    ('btnh,nhd->btd', (2, 3, 1, 64), (1, 64, 48), 2, ('heads', '', 'embed')),
    ('btf,fd->btd', (2, 3, 64), (64, 48), 1, ('mlp', 'embed')),
  ],
)
def test_product_and_gradient(
  spec, x_shape, shape, inputs, axes, method, dtype
):
  x = jnp.asarray(_random(*x_shape), dtype)
  weight = _random(*shape, seed=1)
  values, scales = quantize.quantise(jnp.asarray(weight), inputs, method)
  matrix = quantize.Matrix(values, scales, axes, shape, inputs)
  whole = np.float64(quantize.dequantise(values, scales, jnp.float32))
  whole = whole.reshape(shape)
  toward = _random(*np.einsum(spec, np.zeros(x_shape), weight).shape, seed=2)

  @jax.jit
  def loss(x, matrix):
    y = layers.product(spec, x, matrix)
    assert y.dtype == x.dtype
    return (y * toward).sum(), y

  (_, y), grad = jax.value_and_grad(loss, has_aux=True)(x, matrix)
  operands, out = spec.split('->')
  a, b = operands.split(',')
  exact = np.einsum(spec, np.float64(x), whole)
  back = np.einsum(f'{out},{b}->{a}', np.float64(toward), whole)
  # bfloat16: products of rounded weights, two or three roundings each.
  tolerance = 1e-5 if dtype == 'float32' else 1e-2
  for found, expected in ((y, exact), (grad, back)):
    assert found.dtype == x.dtype
    np.testing.assert_allclose(
      np.float64(found), expected, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize(
  'spec, x_shape, shape, inputs',
  [
    ('btd,dnh->btnh', (2, 3, 64), (64, 2, 16), 1),
    ('btnh,nhd->btd', (2, 3, 2, 16), (2, 16, 48), 2),
    ('btf,fd->btd', (2, 3, 64), (64, 48), 1),
  ],
)
def test_bfloat16_product_and_gradient(spec, x_shape, shape, inputs):
  """Both factors are rounded, sums are float32, also backwards."""
  x, weight = jnp.asarray(_random(*x_shape)), _random(*shape, seed=1)
  (values,) = quantize.quantise(jnp.asarray(weight), inputs, 'bfloat16')
  matrix = quantize.Matrix(values, None, ('',) * len(shape), shape, inputs)
  toward = _random(*np.einsum(spec, np.zeros(x_shape), weight).shape, seed=2)

  @jax.jit
  def loss(x, matrix):
    y = layers.product(spec, x, matrix)
    return (y * toward).sum(), y

  (_, y), grad = jax.value_and_grad(loss, has_aux=True)(x, matrix)
  operands, out = spec.split('->')
  a, b = operands.split(',')

  def rounded(array):
    return np.float64(np.asarray(array).astype(jnp.bfloat16))

  forward = np.einsum(spec, rounded(x), rounded(weight))
  back = np.einsum(f'{out},{b}->{a}', rounded(toward), rounded(weight))
  for found, expected in ((y, forward), (grad, back)):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
      found, expected, atol=1e-6 * np.abs(expected).max()
    )


def test_bfloat16_matrices(tmp_path):
  """The layers' matrices alone are rounded, while they are loaded."""
  tiny_models.save(tmp_path)
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  config = hf_directory.read_config(tmp_path)
  source = hf_directory.SafetensorsSource(tmp_path)

  def load(method):
    return dict(
      weights_lib.iter_arrays(
        weights_lib.load_decoder(
          source, config, jnp.dtype('float32'), mesh, method
        )
      )
    )

  exact, rounded = load('none'), load('bfloat16')
  assert len(exact) == len(rounded)
  matrices = [name for name in exact if name not in rounded]
  assert len(matrices) == 7
  for name, array in exact.items():
    found, expected = rounded.get(name), array
    if name in matrices:
      bits = rounded[f'{name}.values']
      found = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
      expected = array.astype(jnp.bfloat16).reshape(found.shape)
    np.testing.assert_array_equal(found, expected, err_msg=name)


def test_products_with_float_weights_keep_their_bits(monkeypatch):
  """Those of the model as it was before any could be quantised."""
  model = Decoder(CONFIG, jnp.float32, nnx.Rngs(0))
  graph, params = nnx.split(model)
  ids = np.arange(24, dtype=np.int32).reshape(2, 12)
  positions = np.tile(np.arange(12, dtype=np.int32), (2, 1))

  def run():
    # A new function, to be traced again.
    def loss(x, params):
      model = nnx.merge(graph, params)
      hidden, _ = model(x, positions)
      return model.logits(hidden).sum()

    return jax.jit(jax.value_and_grad(loss))(model.embed(ids), params)

  found = run()
  used = []

  def plain(spec, x, weight):
    used.append(spec)
    if spec in ('btd,df->btf', 'btf,fd->btd'):
      return x @ weight[...]
    return jnp.einsum(spec, x, weight[...])

  monkeypatch.setattr(layers, 'product', plain)
  expected = run()
  assert len(used) == 7
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def _step(method, remat, config=CONFIG):
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  graph, base = abstract_step.base(config, jnp.dtype('float32'), mesh, method)
  optimizer = optax.adam(1e-3)
  state = abstract_step.state(
    optimizer, jax.ShapeDtypeStruct((4, config.embed_dim), jnp.float32), mesh
  )
  batch = abstract_step.batch(2, (16, 8), 4, mesh, per_row=1)
  step = steps.make_train_step(graph, optimizer, remat=remat)
  return step, (state, base, batch)


def _scanned(jaxpr):
  """What each scan of a program stacks up."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'scan':
      carried = eqn.params['num_carry']
      yield [v.aval for v in eqn.outvars[carried:]]
    for sub in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from _scanned(sub)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('method', ['bfloat16', *METHODS])
def test_no_layer_keeps_its_weights_for_the_backward_pass(method, remat):
  step, arguments = _step(method, remat)
  # Of the matrices, the smallest has this size; activations are smaller.
  smallest = 128 * 2 * 32
  stacks = list(_scanned(jax.make_jaxpr(step)(*arguments).jaxpr))
  assert len(stacks) == 3  # Passages, suffix, and back.
  sizes = [np.prod(aval.shape[1:]) for stack in stacks for aval in stack]
  assert sizes
  assert max(sizes) < smallest


def _products(jaxpr):
  return sum(
    (eqn.primitive.name == 'dot_general')
    + sum(map(_products, jax.extend.core.jaxprs_in_params(eqn.params)))
    for eqn in jaxpr.eqns
  )


@pytest.mark.parametrize('method', ['bfloat16', *METHODS])
def test_products_are_not_computed_again(method):
  def count(method, remat):
    step, arguments = _step(method, remat)
    return _products(jax.make_jaxpr(step)(*arguments).jaxpr)

  assert count(method, False) == count('none', False)
  assert count(method, True) == count('none', True) > count('none', False)


@functools.cache
def _temporaries(method, num_layers):
  config = dataclasses.replace(CONFIG, num_layers=num_layers)
  step, arguments = _step(method, False, config)
  compiled = jax.jit(step).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize('method', ['bfloat16', *METHODS])
def test_dequantised_weights_of_one_layer_at_a_time(method):
  """In what XLA makes of it: more layers do not need more."""
  layer = 4 * 128 * (6 * 64 + 3 * 320)  # Bytes of one in float32.
  more = [_temporaries(m, 12) - _temporaries(m, 4) for m in (method, 'none')]
  # Eight layers' activations, as without quantisation; and CPUs, which know
  # nothing smaller, take 4 bits out into bytes of their own.
  allowed = 8 * layer / 4 if method == 'int4' else 0
  assert more[0] - more[1] < allowed + layer


@pytest.mark.parametrize('method', METHODS)
def test_only_matrices_are_quantised(method):
  found = {
    '.'.join(map(str, path)): param
    for path, param in nnx.to_flat_state(
      nnx.state(abstract_decoder(CONFIG, jnp.bfloat16, None, method))
    )
  }
  kept = {
    name
    for name, param in found.items()
    if param.dtype == jnp.bfloat16 and not name.endswith('.scales')
  }
  assert kept == {
    'embedding',
    'head',
    'norm.scale',
    'layers.attention_norm.scale',
    'layers.mlp_norm.scale',
  }
  values = [name for name in found if name.endswith('.values')]
  assert len(values) == 7
  assert {found[name].dtype for name in values} == {jnp.dtype(method)}
  assert len(found) == len(kept) + 14


def test_the_loaded_model_does_not_depend_on_the_dtype(tmp_path):
  """Values and scales are of the files', not of the rounded weights."""
  tiny_models.save(tmp_path)
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])

  def load(dtype):
    return dict(
      weights_lib.iter_arrays(
        weights_lib.load_decoder(
          hf_directory.SafetensorsSource(tmp_path),
          hf_directory.read_config(tmp_path),
          jnp.dtype(dtype),
          mesh,
          'int4',
        )
      )
    )

  exact, rounded = load('float32'), load('bfloat16')
  same = [name for name in exact if name.endswith(('.values', '.scales'))]
  assert len(same) == 14
  for name in same:
    np.testing.assert_array_equal(exact[name], rounded[name], err_msg=name)


# Loads a directory over meshes, and trains a step; see `_run` of sharding_test.
_LOAD = (
  """
import dataclasses, json, sys
import flax.nnx as nnx
import jax, jax.numpy as jnp, numpy as np, optax
from vtokens.data import batch as batch_lib
from vtokens.planning import abstract_step as abstract
from vtokens.host import errors
from vtokens.devices import partitioning
from vtokens.method import steps
from vtokens.models.files import hf_directory as hf, weight_map, weights

# Layer by layer, and a layer in parts.
weights.BLOCK_BYTES = weight_map.BLOCK_BYTES = 1 << 18
directory, method = sys.argv[1:]
config = hf.read_config(directory)
rng = np.random.default_rng(0)
batch = batch_lib.Batch(
  prefix=rng.integers(0, 320, (8, 24), np.int32),
  prefix_positions=np.tile(np.arange(24, dtype=np.int32), (8, 1)),
  prefix_segments=None,
  suffix=np.concatenate([
    np.tile(np.arange(320, 324, dtype=np.int32), (8, 1)),
    rng.integers(0, 320, (8, 12), np.int32)], axis=1),
  suffix_positions=np.tile(np.arange(24, 40, dtype=np.int32), (8, 1)),
  suffix_segments=None,
  suffix_parents=None,
  targets=rng.integers(0, 320, (8, 4), np.int32),
  target_index=np.tile(np.arange(12, 16, dtype=np.int32), (8, 1)),
)
table = rng.normal(size=(4, config.embed_dim)).astype(np.float32)
optimizer = optax.sgd(1.0)

"""
  + inspect.getsource(_scanned)
  + """

def run(shape):
  count = int(np.prod(shape))
  mesh = partitioning.make_mesh(shape, jax.devices()[:count])
  model = weights.load_decoder(
    hf.SafetensorsSource(directory), config, jnp.float32, mesh, method)
  graph, params = nnx.split(model)
  arrays = {
    n: np.asarray(x).astype(np.float32) for n, x in weights.iter_arrays(model)}
  sharded = sum(
    x.addressable_shards[0].data.size < x.size
    for n, x in weights.iter_arrays(model) if n.endswith(('values', 'scales')))
  like = abstract.state(optimizer, jax.eval_shape(lambda: table), mesh)
  state = steps.TrainState(
    trained=jax.device_put(table, like.trained.sharding),
    opt_state=optimizer.init(table),
    step=jax.device_put(jnp.zeros((), jnp.int32), like.step.sharding))
  step = jax.jit(steps.make_train_step(graph, optimizer))
  arguments = state, params, partitioning.shard_rows(batch, mesh, 8)
  # As in test_no_layer_keeps_its_weights_for_the_backward_pass.
  stacks = list(_scanned(jax.make_jaxpr(step)(*arguments).jaxpr))
  assert len(stacks) == 3
  for aval in sum(stacks, []):
    assert np.prod(aval.shape[1:]) < 512 * 512, aval
  new, metrics = step(*arguments)
  return arrays, sharded, np.asarray(new.trained), float(metrics['loss'])

arrays, sharded, trained, loss = run((1, 1, 1))
assert sharded == 0
for shape in ((1, 8, 1), (1, 1, 8), (2, 2, 2)):
  found = run(shape)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[0][name], array, err_msg=name)
  np.testing.assert_allclose(found[3], loss, rtol=1e-5)
  change = np.abs(trained - table).max()
  assert change > 1e-3
  np.testing.assert_allclose(found[2], trained, atol=1e-4 * change)
  print(shape, found[1])
mesh = partitioning.make_mesh((1, 8, 1))
for load in (
  lambda: weights.load_decoder(
    hf.SafetensorsSource(directory + '/few'),
    hf.read_config(directory + '/few'), jnp.float32, mesh, 'int4'),
  lambda: abstract.base(
    hf.read_config(directory + '/few'), jnp.dtype('float32'), mesh, 'int4'),
):
  try:
    load()
  except errors.UserError as e:
    print(e)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', [pytest.param('int8', marks=pytest.mark.exhaustive), 'int4']
)
def test_the_same_over_every_mesh(tmp_path, method):
  sizes = {
    'hidden_size': 512,
    'num_attention_heads': 8,
    'num_key_value_heads': 8,
    'intermediate_size': 1024,
    'num_hidden_layers': 2,
    'scale': 0.05,
  }
  tiny_models.save(tmp_path, **sizes)
  # Two groups of 64 along fsdp, for eight devices.
  tiny_models.save(tmp_path / 'few', **{**sizes, 'hidden_size': 128})
  lines = device_programs.run(_LOAD, str(tmp_path), method).splitlines()
  # Of 14 arrays; int8's scales lie along outputs alone.
  along_fsdp = 14 if method == 'int4' else 9
  assert lines[0] == f'(1, 8, 1) {along_fsdp}'
  along_tensor = 14 if method == 'int4' else 12
  assert lines[1] == f'(1, 1, 8) {along_tensor}'
  assert len(lines) == 5
  assert (
    'quantised to int4: the array of scales has 2 along its axis' in lines[3]
  )
  assert "layers.attention.k.scales has 2 along its axis 'embed'" in lines[4]


def test_meshes_are_refused_as_without(tmp_path):
  """Two key heads for eight devices: quantised, they are 64 columns."""
  mesh = jax.sharding.AbstractMesh((1, 1, 8), partitioning.MESH_AXES)
  for method in ('none', *METHODS):
    with pytest.raises(errors.UserError, match='kv_heads'):
      abstract_step.base(
        dataclasses.replace(CONFIG, num_heads=8),
        jnp.dtype('float32'),
        mesh,
        method,
      )


def test_bytes_of_the_matrices():
  weights = 8 * 128 * (2 * 4 * 32 + 2 * 2 * 32 + 3 * 320)
  outputs = 8 * (4 * 32 + 2 * 2 * 32 + 128 + 2 * 320 + 128)

  def found(method):
    return abstract_step.matrix_bytes(CONFIG, jnp.dtype('bfloat16'), method)

  assert found('none') == 2 * weights
  assert found('bfloat16') == 2 * weights
  assert found('int8') == weights + 4 * outputs
  # 64 rows to a group, but 32 of each head.
  by_head = 8 * 4 * 32 * 128
  assert found('int4') == weights / 2 + 2 * (
    (weights - by_head) / 64 + by_head / 32
  )
