"""The same step over meshes of eight devices, and what these exchange."""

import json

import device_programs
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import tiny_run

from vtokens.run import tracking

_MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))

# Trains on each mesh; a mesh that does not fit is told as an error.
_TRAIN = """
import pathlib, sys
import jax
import tiny_run
from vtokens.host import errors, stopping
from vtokens import train

place = tiny_run.Place(pathlib.Path(sys.argv[1]))
for mesh in eval(sys.argv[2]):
  cfg = place.load(
    place.root / f'run{mesh}',
    mesh={'shape': mesh},
    train={'num_steps': 5, 'checkpoint_every': 5},
    data={
      'test': (), 'validation': (), 'batch_size': 16, 'shapes': ((48, 32),)
    },
    eval={'conditions': ()},
    optim={'learning_rate': 0.01},
  )
  train.train(cfg, stopping.StopRequest())
if jax.device_count() == 1:
  sys.exit()
cfg = place.load(place.root / 'none', mesh={'shape': (1, 1, -1)})
cfg.base.path = str(place.root / 'few')
try:
  train.train(cfg, stopping.StopRequest())
except errors.UserError as e:
  print(e)
"""

# Compiles the training step and that of decoding; see `vtokens.planning.hlo`.
_COMPILE = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from vtokens.planning import abstract_step as abstract, hlo
from vtokens.method import generate, steps
from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=512, embed_dim=64, num_layers=6, num_heads=8, num_kv_heads=8,
  head_dim=16, mlp_dim=160, tie_embeddings=sys.argv[2] == 'tied',
)

def collectives(compiled):
  return [
    dataclasses.asdict(c) for c in hlo.collectives(compiled.as_text())
  ]

found = {}
for shape in eval(sys.argv[1]):
  mesh = partitioning.make_mesh(shape)
  graph, base = abstract.base(CONFIG, jnp.dtype('float32'), mesh)
  optimizer = optax.adam(1e-3)
  state = abstract.state(
    optimizer, jax.ShapeDtypeStruct((16, 64), jnp.float32), mesh
  )
  batch = abstract.batch(16, (128, 48), 8, mesh, per_row=2)
  programs = {
    f'train {remat}': jax.jit(
      steps.make_train_step(graph, optimizer, remat=remat)
    ).lower(state, base, batch).compile()
    for remat in (False, True)
  }
  encoded = generate.encode_prefix.lower(
    base, batch.prefix, batch.prefix, graph=graph
  )
  cache = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    encoded.out_info,
    encoded.compile().output_shardings,
  )
  ids = batch.suffix
  flags = jax.ShapeDtypeStruct((CONFIG.vocab_size,), bool)
  programs['generate'] = generate.generate.lower(
    base,
    jax.ShapeDtypeStruct((16, 64), jnp.float32),
    cache,
    generate.Suffixes(ids, ids, ids, abstract.batch(
      16, (128, 48), 2, mesh, per_row=2
    ).targets),
    generate.Endings(jax.ShapeDtypeStruct((), jnp.int32), flags, flags, flags),
    graph=graph,
    max_new_tokens=4,
  ).compile()
  found[str(shape)] = {
    'devices': np.vectorize(lambda d: d.id)(mesh.devices).tolist(),
    'sizes': {
      jax.tree_util.keystr(path): x.size * x.dtype.itemsize
      for path, x in jax.tree.leaves_with_path(base)
    },
    'memory': {
      name: program.memory_analysis().temp_size_in_bytes
      for name, program in programs.items()
    },
    **{name: collectives(program) for name, program in programs.items()},
  }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_training_is_the_same(tmp_path):
  place = tiny_run.make_place(
    tmp_path,
    hidden_size=64,
    num_attention_heads=8,
    num_key_value_heads=8,
    intermediate_size=96,
  )
  tiny_models.save(
    tmp_path / 'few', num_attention_heads=8, num_key_value_heads=2
  )
  device_programs.run(_TRAIN, str(tmp_path), '[(1, 1, 1)]', devices=1)
  out = device_programs.run(_TRAIN, str(tmp_path), str(_MESHES))
  # Key heads over more devices than there are heads.
  assert "k_proj.weight has 2 along its axis 'kv_heads'" in out

  def result(mesh):
    workdir = place.root / f'run{mesh}'
    table = safetensors.numpy.load_file(workdir / 'table.safetensors')
    rows = tracking.read_metrics(workdir / 'metrics.jsonl')
    return table['virtual_tokens'], [row['loss'] for row in rows]

  table, losses = result((1, 1, 1))
  assert len(losses) == 5
  for mesh in _MESHES:
    found, found_losses = result(mesh)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(
      found, table, rtol=1e-5, atol=1e-5 * np.abs(table).max()
    )


@pytest.fixture(scope='module', params=['tied', 'untied'])
def compiled(request):
  printed = device_programs.run(_COMPILE, str(_MESHES), request.param)
  return json.loads(printed)


def _axes(devices: np.ndarray, groups: list[list[int]]) -> set[str]:
  """Mesh axes along which the devices of a group differ."""
  found = set()
  for group in groups or [devices.ravel().tolist()]:
    places = np.array([np.argwhere(devices == i)[0] for i in group])
    for axis, name in enumerate(('data', 'fsdp', 'tensor')):
      if len(set(places[:, axis])) > 1:
        found.add(name)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('program', ['train False', 'train True', 'generate'])
@pytest.mark.parametrize('mesh', _MESHES)
def test_what_devices_exchange(compiled, mesh, program):
  found = compiled[str(mesh)]
  devices = np.array(found['devices'])
  table = 16 * 64 * 4
  whole = sum(found['sizes'].values())
  stacked = {
    name: size for name, size in found['sizes'].items() if 'layers' in name
  }
  # Of one layer, on one device along tensor.
  layer = sum(stacked.values()) / 6 / mesh[2]
  largest = max(found['sizes'].values()) / mesh[2]
  gathered = last = 0
  for c in found[program]:
    axes = _axes(devices, c['groups'])
    if c['kind'] == 'all-gather':
      # A weight of one layer or, outside the loops, embedding or head.
      assert max(c['arrays']) <= largest < whole / 4
      if axes == {'fsdp'} and c['times'] > 1:
        # The passages' pass has a loop over all layers but the last.
        assert c['times'] in (5, 6)
        assert sum(c['arrays']) <= layer
        if not c['in_loop_of_unknown_length']:
          gathered += sum(c['arrays']) * c['times']
      elif axes == {'fsdp'} and not c['in_loop_of_unknown_length']:
        last += sum(c['arrays'])
    if c['kind'] == 'all-reduce' and axes - {'tensor'} and 'train' in program:
      assert max(c['arrays']) <= table, c
  # Passages forward, suffix forward, suffix backward; or the suffix forward,
  # after which weights stay where they are.
  layers = 6 if program == 'generate' else 5 + 6 + 6
  matrices = sum(s for name, s in stacked.items() if 'norm' not in name)
  if mesh[1] > 1:
    assert gathered == layers / 6 * matrices / mesh[2]
  else:
    assert gathered == 0
  # Of the last layer the passages need keys and values alone; embedding or head
  # besides.
  keys = sum(stacked[f"['layers']['attention']['{x}'].value"] for x in 'kv')
  outside = found['sizes'].get("['head'].value", 0)
  outside = max(outside, found['sizes']["['embedding'].value"])
  assert last <= (keys / 6 + 2 * outside) / mesh[2]
  if mesh[1] > 1 and program != 'generate':
    assert last >= keys / 6 / mesh[2]


@pytest.mark.slow
def test_decoding_moves_no_weights(compiled):
  for mesh in _MESHES:
    found = compiled[str(mesh)]
    # The smallest matrix of a layer.
    matrix = min(
      size / 6 / mesh[2]
      for name, size in found['sizes'].items()
      if 'layers' in name and 'norm' not in name
    )
    decoding = [c for c in found['generate'] if c['in_loop_of_unknown_length']]
    assert decoding
    for c in decoding:
      if c['kind'] == 'all-gather':
        assert max(c['arrays']) < matrix
      # Rows, branches, and at most the logits of each.
      assert max(c['arrays']) <= 16 * 2 * 512 * 4


@pytest.mark.slow
def test_gathered_weights_are_not_kept(compiled):
  """They would be the whole model on every device."""
  memory = {mesh: compiled[str(mesh)]['memory'] for mesh in _MESHES}
  model = sum(compiled['(1, 8, 1)']['sizes'].values())
  extra = memory[1, 8, 1]['train False'] - memory[8, 1, 1]['train False']
  assert extra < model / 2
