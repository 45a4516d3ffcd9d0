"""Experts: the grouped products, training, sharding, and forms of files."""

import dataclasses
import functools
import json

import decoder_cases
import device_programs
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quantised
import safetensors.torch
import tiny_models
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.phimoe import modeling_phimoe

from vtokens import config as config_lib
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models import frozen_base, layer_runs, quantize, rope
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import registry
from vtokens.models.files import hf_directory, weights
from vtokens.models.layer_inputs import LayerInputs
from vtokens.models.mixers.delta_net import DeltaNet
from vtokens.models.mlps import grouped, routing
from vtokens.models.mlps.experts import Experts
from vtokens.models.mlps.routing import Routing
from vtokens.planning import flops, matrices

EXPERTS = Experts(Routing(6, 2, normalised=True), 24, shared=16)
_SPARSE, _DENSE = LayerKind(mlp=EXPERTS), LayerKind()
CONFIG = DecoderConfig(
  vocab_size=50,
  embed_dim=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  layer_pattern=(_DENSE, _SPARSE, _SPARSE),
)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize(
  'method', ['none', 'bfloat16', 'int8', 'int4', 'mxfp4']
)
@pytest.mark.parametrize('rows', [2, 7, 300])
def test_grouped_products_and_their_gradient(rows, method, platform):
  """All ways to compute them, against one product after the other."""
  rng = np.random.default_rng(0)
  groups = rng.choice([-1, 0, 1, 3, 4, 9], size=rows)  # None is of group 2.
  x = rng.normal(size=(rows, 16)).astype(np.float32)
  weight = rng.normal(size=(5, 16, 12)).astype(np.float32)
  toward = rng.normal(size=(rows, 12)).astype(np.float32)
  param = nnx.Param(jnp.asarray(weight))
  tolerance = 1e-5
  if method == 'bfloat16':
    tolerance = 0.03
  if method != 'none':
    quantise = jax.vmap(lambda w: quantize.quantise(w, 1, method))
    values, *scales = quantise(param[...])
    axes, shape = ('expert', 'a', 'b'), weight.shape
    scale = scales[0] if scales else None
    param = quantize.Matrix(values, scale, axes, shape, 1, 1)
    if scales:
      whole = jax.vmap(
        lambda v, s: quantize.dequantise(v, s, jnp.dtype(jnp.float32))
      )
      weight = np.asarray(whole(values, scale))

  @jax.jit
  def run(x):
    order = grouped.sort(jnp.asarray(groups), 5)
    y = grouped.product(grouped.dispatch(x, order, 1), param, order, platform)
    y = grouped.combine(y, order, 1)
    return (y * toward).sum(), y

  (_, found), slope = jax.value_and_grad(run, has_aux=True)(jnp.asarray(x))
  inside = (groups >= 0) & (groups < 5)
  own = weight[np.where(inside, groups, 0)] * inside[:, None, None]
  expected = np.einsum('mc,mco->mo', x, own)
  back = np.einsum('mo,mco->mc', toward, own)
  np.testing.assert_allclose(found, expected, rtol=0, atol=20 * tolerance)
  np.testing.assert_allclose(slope, back, rtol=0, atol=20 * tolerance)
  assert (np.asarray(found)[~inside] == 0).all()


def test_several_groups_for_each_row():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(9, 4)).astype(np.float32)
  groups = np.argsort(rng.normal(size=(9, 5)), axis=1)[:, :3]

  def both(x):
    order = grouped.sort(jnp.asarray(groups).reshape(-1), 5)
    copies = grouped.dispatch(x, order, 3)
    factor = order.groups[:, None].astype(x.dtype)
    return grouped.combine(copies * factor, order, 3)

  factor = groups.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(both(x), x * factor, rtol=1e-6)
  toward = rng.normal(size=x.shape).astype(np.float32)
  slope = jax.grad(lambda x: (both(x) * toward).sum())(x)
  np.testing.assert_allclose(slope, toward * factor, rtol=1e-6)


@pytest.mark.parametrize(
  ('routing', 'message'),
  [
    ({'experts': 4, 'active': 5}, '5 experts'),
    ({'experts': 6, 'active': 2, 'groups': 4}, '4 groups'),
    ({'experts': 6, 'active': 2, 'active_groups': 2}, '2 of 1'),
    ({'experts': 6, 'active': 2, 'groups': 6}, '2 experts or more'),
  ],
)
def test_wrong_numbers(routing, message):
  with pytest.raises(ValueError, match=message):
    Routing(**routing)


def test_settings_are_told_without_defaults():
  """A setting that is added later leaves fingerprints as they are."""
  assert repr(EXPERTS) == (
    'Experts(routing=Routing(experts=6, active=2, normalised=True), width=24, '
    'shared=16)'
  )
  assert repr(Routing(3, 1)) == 'Routing(experts=3, active=1)'


@pytest.mark.parametrize(
  ('layers', 'expected'),
  [
    ('s' * 48, [(0, 1, 48)]),
    ('d' + 's' * 45, [(0, 1, 1), (1, 1, 45)]),
    ('ds' * 12, [(0, 2, 12)]),
    ('ddds' * 12, [(0, 4, 12)]),
    ('sss' + 'd' + 's' * 20, [(0, 1, 3), (3, 1, 1), (4, 1, 20)]),
  ],
)
def test_runs_of_layers(layers, expected):
  pattern = tuple({'s': _SPARSE, 'd': _DENSE}[layer] for layer in layers)
  config = dataclasses.replace(
    CONFIG, num_layers=len(layers), layer_pattern=pattern
  )
  found = layer_runs.runs(config)
  assert [(r.first, r.period, r.repeats) for r in found] == expected
  numbers = [i for stack in layer_runs.stacks(config) for i in stack]
  assert sorted(numbers) == list(range(len(layers)))


_NET = LayerKind(None, mixer=DeltaNet(2, 4, 8, 6, 4))


@pytest.mark.parametrize(
  'pattern, few, many',
  [((_DENSE, _SPARSE), 10, 40), ((_NET, _NET, _NET, _DENSE), 12, 48)],
)
def test_compile_time_does_not_grow_with_the_number_of_layers(
  pattern, few, many
):
  """The program has as many operations for many layers as for few."""
  sizes = []
  for layers in (few, many):
    config = dataclasses.replace(
      CONFIG, num_layers=layers, layer_pattern=pattern
    )
    graph, params = nnx.split(
      nnx.eval_shape(lambda c=config: Decoder(c, jnp.float32, nnx.Rngs(0)))
    )
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)

    def loss(x, params, positions, graph=graph):
      return nnx.merge(graph, params)(x, positions)[0].sum()

    x = jax.ShapeDtypeStruct((2, 8, 32), jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(x, params, ids).as_text()
    sizes.append(program.count('\n'))
  assert sizes[1] <= 1.02 * sizes[0]


def test_arithmetic_counts_active_experts():
  dense = 3 * 32 * 48
  sparse = 3 * 32 * (2 * 24 + 16) + 32 * 6
  attention = 32 * 8 * (4 + 2 + 2 + 4)
  expected = 3 * attention + dense + 2 * sparse
  assert flops.matrix_weights(CONFIG) == expected
  whole = expected + 2 * 3 * 32 * (6 - 2) * 24
  assert flops.matrix_weights(CONFIG, active=False) == whole
  # Between gate, up and down: a dense MLP of 48; two experts of 24, an MLP of
  # 16 for all tokens, and the router's 6 scores.
  layers = matrices.of_layers(CONFIG)
  assert [layer.inner('mlp') for layer in layers] == [
    3 * 48,
    *[3 * (2 * 24 + 16) + 6] * 2,
  ]
  assert [layer.copies for layer in layers] == [0, 2, 2]


def test_padding_changes_nothing():
  """The logits of other tokens do not depend on the ids of padding."""
  decoder = Decoder(CONFIG, jnp.dtype(jnp.float32), nnx.Rngs(0))
  ids = np.random.default_rng(0).integers(50, size=(2, 9)).astype(np.int32)
  positions = np.tile(np.arange(9, dtype=np.int32), (2, 1))
  positions[0, 5:] = -1

  @nnx.jit
  def run(decoder, ids):
    hidden, _ = decoder(decoder.embed(ids), positions)
    return decoder.logits(hidden)

  found = run(decoder, ids)
  other = ids.copy()
  other[0, 5:] = 7
  again = run(decoder, other)
  real = positions >= 0
  np.testing.assert_array_equal(found[real], again[real])


@pytest.mark.parametrize('biases', [False, True])
def test_padding_is_routed_to_no_expert(biases):
  settings = Experts(Routing(6, 2, normalised=True), 24, biases=biases)
  mlp = settings(CONFIG, jnp.dtype(jnp.float32), nnx.Rngs(0))
  if biases:
    for name in ('gate_bias', 'up_bias', 'down_bias'):
      bias = getattr(mlp.experts, name)
      bias[...] = jnp.ones_like(bias[...])
  positions = np.array([[0, 1, 2, -1, -1], [0, -1, -1, -1, -1]], np.int32)
  x = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
  tokens = LayerInputs(
    positions=positions,
    segments=None,
    parents=None,
    mesh=None,
    angles=(np.zeros((2, 5, 1, 4)),) * 2,
    window=None,
  )
  found = np.asarray(mlp(x, tokens))
  assert not found[positions < 0].any()
  assert found[positions >= 0].any(-1).all()


def test_sparsemixer_and_its_gradient():
  """Against transformers' function; some logits are not compared."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(200, 6)).astype(np.float32)
  logits[:20] = -np.abs(logits[:20])
  logits[20:40, 3] = logits[20:40, 1]  # Equal ones.
  toward = rng.normal(size=(200, 2)).astype(np.float32)
  rule = Routing(6, 2, scores='sparsemixer', tolerance=0.6)

  def run(logits):
    experts, weights = routing.choose(rule, logits)
    return (weights * toward).sum(), (experts, weights)

  (_, (experts, weights)), slope = jax.value_and_grad(run, has_aux=True)(
    jnp.asarray(logits)
  )
  scores = torch.from_numpy(logits).requires_grad_()
  expected, chosen = modeling_phimoe.sparsemixer(scores, 0.3, training=False)
  (expected * torch.from_numpy(toward)).sum().backward()
  np.testing.assert_array_equal(experts, chosen.numpy())
  expected = expected.detach().numpy()
  assert 0.1 < (expected == 1).mean() < 0.9
  np.testing.assert_allclose(weights, expected, rtol=1e-5)
  np.testing.assert_allclose(slope, scores.grad.numpy(), rtol=0, atol=1e-6)


def test_rotation_of_phimoe_beyond_the_original_length():
  """The long factors, which transformers has and never takes, by its code."""
  given = {
    'model_type': 'phimoe',
    'vocab_size': 50,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 1,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 512,
    'original_max_position_embeddings': 64,
    'rope_theta': 1e4,
    'rope_scaling': {
      'type': 'longrope',
      'short_factor': [1.0, 1.1, 1.2, 1.3],
      'long_factor': [2.0, 3.0, 4.0, 5.0],
      'short_mscale': 1.2,
      'long_mscale': 1.2,
    },
  }
  places = np.arange(90, dtype=np.int32)[None]
  found = rope.angles(
    places, registry.from_hf(given).layer_pattern[0].rope, 8, 90
  )
  scaling = {**given['rope_scaling'], 'original_max_position_embeddings': 64}
  theirs = modeling_phimoe.PhimoeRotaryEmbedding(
    transformers.AutoConfig.for_model(**{**given, 'rope_scaling': scaling})
  )
  theirs.rope_init_fn = functools.partial(theirs.rope_init_fn, seq_len=90)
  expected = theirs(torch.ones(1), torch.from_numpy(places))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(
      one[:, :, 0], other[..., :4].numpy(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_experts_per_tok': 1}, 'num_experts_per_tok is 1, expected 2'),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}},
      "rope_type is 'linear', expected 'default' or 'longrope'",
    ),
    (
      {
        'rope_scaling': {
          'rope_type': 'longrope',
          'short_factor': [1.0] * 4,
          'long_factor': [2.0] * 4,
          'short_mscale': 1.1,
          'long_mscale': 1.2,
        }
      },
      'long_mscale is 1.2, expected 1.1, the short_mscale',
    ),
  ],
)
def test_what_phimoe_does_not_do(fields, message):
  experts = Experts(Routing(4, 2, scores='sparsemixer', tolerance=0.02), 48)
  config = dataclasses.replace(
    CONFIG,
    model_type='phimoe',
    norm='layer',
    norm_bias=True,
    layer_pattern=(LayerKind(mlp=experts),),
  )
  values = registry.to_hf(config)
  assert registry.from_hf(values) == config
  with pytest.raises(errors.UserError, match=message):
    registry.from_hf({**values, **fields}, 'x')


_MOE = {
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'intermediate_size': 48,
  'head_dim': 8,
  'num_experts': 4,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 64,
  'mlp_only_layers': [0],
}
_IDS = np.random.default_rng(0).integers(256, size=(2, 40)).astype(np.int32)


def _logits(directory, method='none'):
  decoder = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
    jnp.dtype(jnp.float32),
    partitioning.make_mesh((-1, 1, 1)),
    method,
  )
  positions = np.broadcast_to(np.arange(40, dtype=np.int32), _IDS.shape)

  @nnx.jit
  def run(decoder):
    return decoder.logits(decoder(decoder.embed(_IDS), positions)[0])

  return np.asarray(run(decoder)), decoder


def _expected(model):
  with torch.no_grad():
    return model(torch.from_numpy(_IDS).long()).logits.numpy()


@pytest.mark.parametrize(
  'method', ['int8', pytest.param('int4', marks=pytest.mark.exhaustive)]
)
def test_quantised_experts(method, tmp_path):
  """Each expert's matrix like any other; the router is not quantised."""
  reference = tiny_models.save(tmp_path, model_type='qwen3_moe', **_MOE)
  quantised.quantise_model(reference, method)
  found, decoder = _logits(tmp_path, method)
  np.testing.assert_allclose(found, _expected(reference), rtol=0, atol=2e-4)
  mlp = decoder.layers[1].mlp
  assert mlp.experts.down.values.shape == (1, 4, 64, 32)
  assert mlp.router[...].dtype == jnp.float32


@pytest.mark.parametrize(
  'model_type',
  ['qwen3_moe', pytest.param('mixtral', marks=pytest.mark.exhaustive)],
)
def test_experts_in_one_tensor(model_type, tmp_path):
  """The form that transformers has in memory, which it also reads."""
  changes = _MOE if model_type == 'qwen3_moe' else {'num_hidden_layers': 2}
  reference = tiny_models.save(tmp_path, model_type=model_type, **changes)
  safetensors.torch.save_file(
    reference.state_dict(), tmp_path / 'model.safetensors', {'format': 'pt'}
  )
  found, _ = _logits(tmp_path)
  np.testing.assert_allclose(found, _expected(reference), rtol=0, atol=2e-4)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager'
  )
  np.testing.assert_array_equal(_expected(again), _expected(reference))


def test_experts_in_mxfp4(tmp_path):
  """gpt-oss as it is published: the values that transformers computes with."""
  reference = tiny_models.save(
    tmp_path,
    model_type='gpt_oss',
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=64,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    swiglu_limit=0.7,
  )
  rng = np.random.default_rng(0)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  for name, weight in reference.named_parameters():
    if not name.endswith(('gate_up_proj', 'down_proj')):
      continue
    experts, inputs, outputs = weight.shape
    shape = experts, outputs, inputs // 32
    blocks = torch.from_numpy(
      rng.integers(256, size=(*shape, 16)).astype(np.uint8)
    )
    scales = torch.from_numpy(
      rng.integers(121, 125, size=shape).astype(np.uint8)
    )
    with torch.no_grad():
      weight.copy_(
        convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
      )
    del tensors[name]
    tensors |= {f'{name}_blocks': blocks, f'{name}_scales': scales}
  safetensors.torch.save_file(tensors, file, {'format': 'pt'})
  config_file = tmp_path / 'config.json'
  values = json.loads(config_file.read_text())
  values['quantization_config'] = {'quant_method': 'mxfp4'}
  config_file.write_text(json.dumps(values))
  found, _ = _logits(tmp_path)
  np.testing.assert_allclose(found, _expected(reference), rtol=0, atol=2e-4)
  packed, decoder = _logits(tmp_path, 'mxfp4')
  np.testing.assert_allclose(packed, found, rtol=0, atol=1e-6)
  # 4 bits, and 8 for 32 inputs. Attention stays in float32.
  experts = decoder.layers.mlp.experts
  matrices = experts.gate, experts.up, experts.down
  size = sum(
    quantize.num_bytes(part[...])
    for matrix in matrices
    for part in (matrix.values, matrix.scales)
  )
  assert size == 2 * 4 * 3 * 32 * 64 * (4 + 8 / 32) / 8
  assert decoder.layers.attention.q[...].dtype == jnp.float32


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_experts_per_tok': 7}, 'x: 7 experts for each'),
    ({'decoder_sparse_step': 9}, 'x: decoder_sparse_step is 9'),
    ({'mlp_only_layers': [0, 1, 2]}, 'x: decoder_sparse_step is 1, expected'),
  ],
)
def test_a_config_without_enough_experts(fields, message):
  config = dataclasses.replace(
    CONFIG,
    model_type='qwen3_moe',
    qk_norm='head',
    layer_pattern=(LayerKind(mlp=Experts(Routing(6, 2), 24)),),
  )
  values = registry.to_hf(config)
  assert registry.from_hf(values) == config
  with pytest.raises(errors.UserError, match=message):
    registry.from_hf({**values, **fields}, 'x')


def test_a_missing_expert_is_named(tmp_path):
  tiny_models.save(tmp_path, model_type='qwen3_moe', **_MOE)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  name = 'model.layers.1.mlp.experts.3.up_proj.weight'
  del tensors[name]
  safetensors.torch.save_file(tensors, file, {'format': 'pt'})
  with pytest.raises(errors.UserError, match=f'missing: {name}'):
    frozen_base.open_base(config_lib.Base(path=str(tmp_path)))


_SHARDED = """
import json, sys
import flax.nnx as nnx, jax, jax.numpy as jnp, numpy as np
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.method import generate
from vtokens.models.files import hf_directory, weights

directory, method = sys.argv[1:]
ids = np.random.default_rng(0).integers(256, size=(8, 24)).astype(np.int32)
positions = np.tile(np.arange(24, dtype=np.int32), (8, 1))
positions[1, 20:] = -1

def load(mesh):
  return weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
    jnp.dtype(jnp.float32), mesh, method,
  )

def outputs(mesh):
  graph, params = nnx.split(load(mesh))

  @jax.jit
  def run(params, x):
    def loss(x):
      model = nnx.merge(graph, params)
      logits = model.logits(model(x, positions)[0])
      real = (positions >= 0)[..., None]
      return (jnp.sin(logits) * real).sum(), logits
    (_, logits), slope = jax.value_and_grad(loss, has_aux=True)(x)
    return logits, slope

  @jax.jit
  def still(params, x):
    model = nnx.merge(graph, params)
    hidden, _ = model(x, positions, stationary=True)
    return model.logits(hidden, stationary=True)

  x = nnx.merge(graph, params).embed(ids)
  x = partitioning.shard_batch(np.asarray(x), mesh, 8)
  return [np.asarray(y) for y in (*run(params, x), still(params, x))]

single = jax.sharding.Mesh(
  np.array(jax.devices()[:1]).reshape(1, 1, 1), partitioning.MESH_AXES
)
expected = outputs(single)
real = positions >= 0
found = outputs(partitioning.make_mesh((2, 2, 2)))
for one, other in zip(found, expected, strict=True):
  np.testing.assert_allclose(
    one[real], other[real], rtol=0, atol=1e-5 * np.abs(other[real]).max()
  )
try:
  load(partitioning.make_mesh((1, 1, 8)))
except errors.UserError as e:
  print(e)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'model, method',
  [
    ('qwen3_moe', 'none'),
    pytest.param('qwen3_moe', 'int8', marks=pytest.mark.exhaustive),
    pytest.param('qwen3_5_moe', 'none', marks=pytest.mark.exhaustive),
    pytest.param('deepseek_v3', 'int8', marks=pytest.mark.exhaustive),
    pytest.param('gpt_oss', 'mxfp4', marks=pytest.mark.exhaustive),
  ],
)
def test_sharded_over_eight_devices(model, method, tmp_path):
  """Forward, backward, and with weights that stay, as in decoding."""
  fields = {'model_type': 'qwen3_moe', **_MOE}
  if model != 'qwen3_moe':
    model_type, own = decoder_cases.CASES[model]
    fields = {**own, 'model_type': model_type}
  if method == 'mxfp4':
    fields['hidden_size'] = 64  # Two groups, of two devices along fsdp.
  tiny_models.save(tmp_path, **{**fields, 'num_key_value_heads': 4})
  printed = device_programs.run(_SHARDED, str(tmp_path), method)
  assert 'no multiple of the 8 devices along tensor' in printed
