"""Programs compiled for TPUs, without any."""

import json
import os
import subprocess
import sys

import pytest
import tiny_run

from vtokens import aot, chips, config, errors, plan
from vtokens.models import known


def _run(tmp_path, topology, *overrides, config_file='tiny.py', timeout=900):
  """Exit status, what was printed, and the figures."""
  out = tmp_path / 'plan.json'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'vtokens.plan', '--config', config_file),
      *('--topology', topology, '--json', str(out), *overrides),
    ],
    cwd=tiny_run.ROOT,
    env={**os.environ, 'PYTHONPATH': str(tiny_run.ROOT)},
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
    ('llama2_13b_chat', '', 'v5e:4x4', (1, 16, 1)),
    (
      'llama2_13b_chat',
      'meta-llama/Llama-2-70b-chat-hf',
      'v5p:2x2x4',
      (1, 16, 1),
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
  _, count = known.CONFIGS[base or found['base']]
  assert 1 <= train['bytes']['arguments'] / (2 * count / 16) < 1.05
  for program in found['programs'].values():
    assert program['bytes']['peak'] < found['memory_bytes']
  assert 0 < found['estimate']['mfu'] < plan.EFFICIENCY
  assert 'fits' in done.stdout.splitlines()[-1]
  # Never the whole model, and each layer in each of the three passes.
  gathered = [c for c in train['collectives'] if c['kind'] == 'all-gather']
  assert max(c['bytes'] for c in gathered) < 2 * count / 20
  total = sum(c['bytes'] * c['times'] for c in gathered)
  assert total == pytest.approx(3 * 2 * count, rel=0.15)


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
  assert found['advice'] == '--config.mesh.shape=(1,16,1)'
  assert done.stdout.splitlines()[-1] == (
    'does not fit; it would with --config.mesh.shape=(1,16,1)'
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('v5e:4x5',), '--topology v5e:4x5: '),
    (('v9:2x2',), '--topology v9:2x2: '),
    (('',), '--topology is needed'),
    (('v5e:2x2', '--config.mesh.shape=(3,1,1)'), 'each of the 4 devices'),
    (('v5e:2x2', '--config.base.path=no/such'), 'no/such is no local path'),
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
  assert plan.row_shape(cfg) == (200, 60)
  cfg.virtual_tokens.position = 'first'
  assert plan.row_shape(cfg) == (2, 260)
  cfg.data.shapes = ((8, 8), (64, 48))
  assert plan.row_shape(cfg) == (64, 48)


def test_architectures(tiny_dir):
  assert plan.read_architecture(str(tiny_dir)).num_layers == 3
  found = plan.read_architecture('meta-llama/Llama-2-70b-hf')
  assert (found.num_layers, found.num_kv_heads) == (80, 8)
  with pytest.raises(errors.UserError, match='among the models known here'):
    plan.read_architecture('no/such')


def test_v4_chips_are_one_device():
  target = aot.find_target('v4:2x2x2')
  assert len(target.devices) == 8
  assert target.chip is chips.CHIPS['TPU v4']
