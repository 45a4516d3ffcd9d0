"""Weights from Hugging Face directories: values, placement, refusals."""

import json
import os
import pathlib
import pickle
import shutil

import decoder_cases
import deployed_models
import device_programs
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import tiny_models
import torch
import transformers
from jax.sharding import AxisType

from vtokens.host import errors
from vtokens.models.files import directory_files, fingerprints, hf_directory
from vtokens.models.files import weights as weights_lib

INDEX = 'model.safetensors.index.json'
NORM = 'model.layers.1.input_layernorm.weight'
Q = 'model.layers.2.self_attn.q_proj.weight'


def _mesh():
  return jax.make_mesh(
    (1, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )


def _load(directory, dtype=jnp.float32):
  """Parameter name -> array."""
  model = weights_lib.load_decoder(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
    jnp.dtype(dtype),
    _mesh(),
  )
  return dict(weights_lib.iter_arrays(model))


def _expected(directory):
  """Parameter name -> what the files hold, laid out by hand."""
  config = json.loads((directory / 'config.json').read_text())
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  w = _tensors(directory)

  def layers(name, convert):
    return np.stack(
      [
        convert(w[f'model.layers.{i}.{name}.weight'])
        for i in range(config['num_hidden_layers'])
      ]
    )

  def per_head(count):
    # Rows of head n are n * H, ..., (n + 1) * H - 1; ours are [D, N, H].
    return lambda m: np.stack([h.T for h in np.split(m, count)], axis=1)

  arrays = {
    'embedding': w['model.embed_tokens.weight'],
    'norm.scale': w['model.norm.weight'],
    'layers.attention_norm.scale': layers('input_layernorm', np.array),
    'layers.attention.q': layers('self_attn.q_proj', per_head(heads)),
    'layers.attention.k': layers('self_attn.k_proj', per_head(kv_heads)),
    'layers.attention.v': layers('self_attn.v_proj', per_head(kv_heads)),
    'layers.attention.o': layers(
      'self_attn.o_proj',
      lambda m: np.stack([h.T for h in np.split(m, heads, axis=1)]),
    ),
    'layers.mlp_norm.scale': layers('post_attention_layernorm', np.array),
    'layers.mlp.gate': layers('mlp.gate_proj', np.transpose),
    'layers.mlp.up': layers('mlp.up_proj', np.transpose),
    'layers.mlp.down': layers('mlp.down_proj', np.transpose),
  }
  if not config['tie_word_embeddings']:
    arrays['head'] = w['lm_head.weight'].T
  return arrays


def _tensors(directory):
  return {
    name: tensor
    for path in sorted(directory.glob('*.safetensors'))
    for name, tensor in safetensors.numpy.load_file(path).items()
  }


def _edited(source, directory, edit):
  """A copy of a single-file model with its tensors changed by `edit`."""
  shutil.copytree(source, directory, dirs_exist_ok=True)
  tensors = _tensors(directory)
  edit(tensors)
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
  return directory


def _fingerprint(directory):
  return fingerprints.of_base(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
  )


def _assert_same_bits(arrays, expected):
  assert arrays.keys() == expected.keys()
  for name, array in arrays.items():
    want = np.ascontiguousarray(expected[name])
    assert array.dtype == want.dtype, name
    assert array.shape == want.shape, name
    assert np.asarray(array).tobytes() == want.tobytes(), name


@pytest.fixture(scope='module')
def sharded_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp('sharded')
  tiny_models.save(directory, max_shard_size='100KB')
  assert len(list(directory.glob('*.safetensors'))) > 2
  return directory


@pytest.mark.parametrize('target', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'stored', [torch.float32, torch.bfloat16, torch.float16]
)
def test_weights_are_those_in_the_file_cast(tmp_path, stored, target):
  tiny_models.save(tmp_path, dtype=stored)
  found = {str(w.dtype) for w in _tensors(tmp_path).values()}
  assert found == {str(stored).removeprefix('torch.')}
  expected = _expected(tmp_path)
  _assert_same_bits(
    _load(tmp_path, target),
    {name: w.astype(target) for name, w in expected.items()},
  )


def test_shards_are_read_as_one(tiny_dir, sharded_dir):
  _assert_same_bits(_load(sharded_dir), _expected(tiny_dir))


@pytest.mark.parametrize('head_written', [False, True])
def test_tied_checkpoint(tmp_path, head_written):
  def edit(weights):
    assert 'lm_head.weight' not in weights
    if head_written:
      weights['lm_head.weight'] = weights['model.embed_tokens.weight']

  tiny_models.save(tmp_path / 'tied', tie_word_embeddings=True)
  _edited(tmp_path / 'tied', tmp_path / 'edited', edit)
  _assert_same_bits(_load(tmp_path / 'edited'), _expected(tmp_path / 'tied'))


def test_stored_rotary_frequencies_are_ignored(tmp_path, tiny_dir):
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  _edited(
    tiny_dir, tmp_path, lambda w: w.update({name: np.ones(8, np.float32)})
  )
  _assert_same_bits(_load(tmp_path), _expected(tiny_dir))


# --- fingerprint ---


def test_fingerprint_is_that_of_the_model_not_of_its_files(
  tiny_dir, sharded_dir
):
  first = _fingerprint(tiny_dir)
  assert len(bytes.fromhex(first)) == 32
  assert _fingerprint(tiny_dir) == first
  assert _fingerprint(sharded_dir) == first


@pytest.mark.parametrize('place', [0.0, 0.1, 0.5, 0.73, 1.0])
@pytest.mark.parametrize('name', [NORM, Q])
def test_fingerprint_sees_any_value_of_a_small_tensor(
  tmp_path, tiny_dir, name, place
):
  def edit(weights):
    values = weights[name].reshape(-1)
    values[round(place * (values.size - 1))] += 1e-3

  _edited(tiny_dir, tmp_path, edit)
  assert _fingerprint(tmp_path) != _fingerprint(tiny_dir)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_fingerprint_samples_a_large_tensor(tmp_path, dtype):
  weight = np.random.default_rng(0).normal(size=(3000, 70)).astype(dtype)

  def sample(name, weight):
    (tmp_path / name).mkdir()
    safetensors.numpy.save_file(
      {'w': weight}, tmp_path / name / 'model.safetensors'
    )
    return hf_directory.SafetensorsSource(tmp_path / name).sample('w')

  first = sample('a', weight)
  assert len(first) < weight.nbytes / 10
  assert sample('b', weight) == first
  assert sample('c', weight * dtype(1.1)) != first


@pytest.mark.parametrize(
  ('field', 'value'), [('rope_theta', 5e5), ('rms_norm_eps', 1e-6)]
)
def test_fingerprint_sees_the_config(tmp_path, tiny_dir, field, value):
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  config = json.loads((tiny_dir / 'config.json').read_text())
  config.pop('rope_parameters', None)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert _fingerprint(tmp_path) == _fingerprint(tiny_dir)
  (tmp_path / 'config.json').write_text(json.dumps({**config, field: value}))
  assert _fingerprint(tmp_path) != _fingerprint(tiny_dir)


@pytest.mark.parametrize(
  ('name', 'tensor'),
  [
    ('deepseek_v3', 'model.layers.3.eh_proj.weight'),
    ('qwen3_5', 'mtp.fc.weight'),
  ],
)
def test_layers_that_predict_further_tokens_are_left_out(
  tmp_path, name, tensor
):
  decoder_cases.save(tmp_path / 'without', name)
  _edited(
    tmp_path / 'without',
    tmp_path / 'with',
    lambda weights: weights.update({tensor: np.ones((4, 8), np.float32)}),
  )
  assert _fingerprint(tmp_path / 'with') == _fingerprint(tmp_path / 'without')
  weights_lib.check_shapes(
    hf_directory.SafetensorsSource(tmp_path / 'with'),
    hf_directory.read_config(tmp_path / 'with'),
  )


# --- refusals ---


def test_tensors_that_do_not_fit_are_all_listed(tmp_path, tiny_dir):
  def edit(weights):
    del weights[Q], weights['lm_head.weight']
    weights['model.layers.3.mlp.up_proj.weight'] = np.ones((2, 2), np.float32)
    weights['model.layers.0.self_attn.q_proj.bias'] = np.ones(2, np.float32)
    weights[NORM] = weights[NORM][:63]
    weights['model.embed_tokens.weight'] = np.ascontiguousarray(
      weights['model.embed_tokens.weight'].T
    )

  _edited(tiny_dir, tmp_path, edit)
  with pytest.raises(errors.UserError) as e:
    _load(tmp_path)
  assert str(e.value).splitlines() == [
    f'{tmp_path}: the weights do not fit the config:',
    '  missing: lm_head.weight',
    f'  missing: {Q}',
    '  surplus: model.layers.0.self_attn.q_proj.bias',
    '  surplus: model.layers.3.mlp.up_proj.weight',
    '  model.embed_tokens.weight: shape [64, 320], expected [320, 64]',
    f'  {NORM}: shape [63], expected [64]',
  ]


def _renamed(tiny_dir, directory, rename):
  def edit(tensors):
    renamed = {rename(name): value for name, value in tensors.items()}
    tensors.clear()
    tensors.update(renamed)

  _edited(tiny_dir, directory, edit)
  with pytest.raises(errors.UserError) as e:
    _load(directory)
  return str(e.value).splitlines()


def test_a_prefix_of_all_tensors_is_named_once(tmp_path, tiny_dir):
  """As `torch.compile` leaves it."""
  found = _renamed(tiny_dir, tmp_path, lambda name: f'_orig_mod.{name}')
  number = len(_tensors(tmp_path))
  assert found == [
    f'{tmp_path}: the weights do not fit the config:',
    f'  missing: {number} tensors: lm_head.weight, model.embed_tokens.weight, '
    f'model.layers.0.input_layernorm.weight and {number - 3} more',
    f'  surplus: {number} tensors, all beginning with _orig_mod.: '
    '_orig_mod.lm_head.weight, _orig_mod.model.embed_tokens.weight, '
    f'_orig_mod.model.layers.0.input_layernorm.weight and {number - 3} more',
    'The missing tensors are there with _orig_mod. before their names; rename '
    'them in the files',
  ]


def test_a_model_that_was_saved_without_its_head(tmp_path, tiny_dir):
  found = _renamed(tiny_dir, tmp_path, lambda n: n.removeprefix('model.'))
  assert 'tensors, all beginning with model.: ' in found[1]
  assert found[3].startswith(
    'The surplus tensors are missing ones without model. before their names'
  )
  assert len(found) == 4


def test_an_untied_head_may_not_be_left_out(tmp_path, tiny_dir):
  """An untied config with a tied file would be another model."""
  _edited(tiny_dir, tmp_path, lambda w: w.pop('lm_head.weight'))
  with pytest.raises(errors.UserError, match=r'missing: lm_head\.weight'):
    _load(tmp_path)


@pytest.mark.parametrize(
  'dtype', [np.int8, np.uint8, np.int32, np.float64, ml_dtypes.float8_e4m3fn]
)
def test_other_dtypes_are_refused(tmp_path, tiny_dir, dtype):
  def edit(weights):
    weights[Q] = weights[Q].astype(dtype)

  _edited(tiny_dir, tmp_path, edit)
  with pytest.raises(errors.UserError) as e:
    _load(tmp_path)
  assert 'model.safetensors: tensor ' + Q in str(e.value)
  assert 'expected one of F16, BF16, F32' in str(e.value)


class _Bomb:
  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path('went_off'),)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'consolidated.00.pt'])
def test_pickled_weights_are_refused_unread(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
  with pytest.raises(errors.UserError, match=f'only pickled weights .{name}.'):
    hf_directory.SafetensorsSource(tmp_path)
  assert not (tmp_path / 'went_off').exists()


def test_a_directory_without_weights(tmp_path):
  with pytest.raises(errors.UserError, match='found neither'):
    hf_directory.SafetensorsSource(tmp_path)


@pytest.mark.parametrize('name', ['../x.safetensors', '/x', 'a/b', '..', '.'])
def test_index_may_not_leave_the_directory(tmp_path, tiny_dir, name):
  model = tmp_path / 'model'
  shutil.copytree(tiny_dir, model)
  if name == '../x.safetensors':
    # It must be refused for where it is, not for being absent.
    (model / 'model.safetensors').rename(tmp_path / 'x.safetensors')
  if name == '/x':
    name = str(tmp_path / 'x.safetensors')
  (model / INDEX).write_text(json.dumps({'weight_map': {Q: name}}))
  with pytest.raises(errors.UserError) as e:
    hf_directory.SafetensorsSource(model)
  assert f'{INDEX}: weight_map names {name!r}' in str(e.value)


@pytest.mark.parametrize(
  'text', ['', '{"weight_map"', '[]', '{}', '{"weight_map": ["x"]}', '\udcff']
)
def test_damaged_index(tmp_path, text):
  (tmp_path / INDEX).write_text(text, errors='surrogateescape')
  with pytest.raises(errors.UserError, match=f'{INDEX}: ') as e:
    hf_directory.SafetensorsSource(tmp_path)
  assert str(e.value).endswith('; download or copy it again')


def test_an_index_beside_a_single_file(tmp_path, tiny_dir, sharded_dir):
  """transformers reads the single file, and others what the index names."""
  shutil.copytree(sharded_dir, tmp_path, dirs_exist_ok=True)
  shutil.copyfile(
    tiny_dir / 'model.safetensors', tmp_path / 'model.safetensors'
  )
  with pytest.raises(errors.UserError, match='move one of them away'):
    hf_directory.SafetensorsSource(tmp_path)


@pytest.mark.parametrize('name', ['config.json', INDEX, 'x.safetensors'])
def test_what_is_no_file(name, tmp_path, tiny_dir):
  """A pipe would be read without end."""
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  (tmp_path / name).unlink(missing_ok=True)
  directory_files.check(tmp_path)
  (tmp_path / name).mkdir()
  with pytest.raises(errors.UserError, match=f'{name}: is a directory'):
    directory_files.check(tmp_path)
  (tmp_path / name).rmdir()
  os.mkfifo(tmp_path / name)
  with pytest.raises(errors.UserError, match=f'{name}: is no regular file'):
    directory_files.check(tmp_path)


def _adapter(directory):
  """As PEFT saves it."""
  model = transformers.AutoModelForCausalLM.from_pretrained(directory)
  lora = peft.get_peft_model(
    model,
    peft.LoraConfig(r=2, target_modules=['q_proj'], init_lora_weights=False),
  )
  lora.save_pretrained(directory)
  return lora


def test_an_adapter_beside_the_weights(tmp_path, tiny_dir):
  """transformers puts it on them; only its owner knows whether it should."""
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir)
  lora = _adapter(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  ids = torch.arange(20)[None]
  assert torch.equal(theirs(ids).logits, lora(ids).logits)
  assert not torch.equal(theirs(ids).logits, plain(ids).logits)
  with pytest.raises(errors.UserError) as e:
    hf_directory.SafetensorsSource(tmp_path)
  assert str(e.value).startswith(
    f'{tmp_path / "adapter_config.json"}: a LORA adapter beside the weights'
  )
  # Both of what the message offers.
  merged = tmp_path / 'merged'
  lora.merge_and_unload().save_pretrained(merged)
  q = hf_directory.SafetensorsSource(merged).read(Q)
  (tmp_path / 'adapter_config.json').unlink()
  before = hf_directory.SafetensorsSource(tmp_path).read(Q)
  assert np.array_equal(
    before, hf_directory.SafetensorsSource(tiny_dir).read(Q)
  )
  assert not np.array_equal(before, q)


def test_an_adapter_alone(tmp_path, tiny_dir):
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  _adapter(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  with pytest.raises(errors.UserError) as e:
    hf_directory.SafetensorsSource(tmp_path)
  assert str(e.value).startswith(
    f'{tmp_path}: holds a LORA adapter alone, no model; merge it into '
  )


def test_missing_shards_are_named(tmp_path, sharded_dir):
  shutil.copytree(sharded_dir, tmp_path, dirs_exist_ok=True)
  shards = sorted(tmp_path.glob('*.safetensors'))
  gone = [shards[0], shards[2]]
  for path in gone:
    path.unlink()
  with pytest.raises(errors.UserError) as e:
    hf_directory.SafetensorsSource(tmp_path)
  assert (
    f'2 of {len(shards)} weight files are missing: {gone[0].name}, '
    f'{gone[1].name};'
  ) in str(e.value)


@pytest.mark.parametrize('keep', [0, 5, 300, -1])
def test_truncated_file(tmp_path, tiny_dir, keep):
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(errors.UserError) as e:
    hf_directory.SafetensorsSource(tmp_path)
  assert str(e.value).startswith(f'{path}: not a readable safetensors file')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'config.json: not found'),
    ('{"model_type": ', 'config.json: not JSON'),
    ('[1]', 'config.json: expected an object, got [1]'),
    ('[' * 100_000, 'config.json: not JSON: nested too deeply'),
    ('\udcff{}', 'config.json: not UTF-8'),
    ('', 'config.json: not JSON'),
    ('{"model_type": "gpt2"}', "config.json: model_type is 'gpt2'"),
  ],
)
def test_bad_config_file(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'config.json').write_text(text, errors='surrogateescape')
  with pytest.raises(errors.UserError) as e:
    hf_directory.read_config(tmp_path)
  assert str(e.value).startswith(f'{tmp_path}{os.sep}{message}')


# --- placement ---

_PLACE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from vtokens.devices import partitioning
from vtokens.models.files import hf_directory as hf
from vtokens.models.files import weights as weights_lib

def load(directory, mesh):
  source = hf.SafetensorsSource(directory)
  config = hf.read_config(directory)
  return dict(weights_lib.iter_arrays(
    weights_lib.load_decoder(source, config, jnp.dtype('float32'), mesh)))

one = np.array(jax.devices()[:1]).reshape(1, 1, 1)
report = {}
for directory, shape in (
  (sys.argv[1], (1, 4, 2)), (sys.argv[1], (2, 2, 2)), (sys.argv[2], (2, 2, 2))
):
  single = load(directory, Mesh(one, partitioning.MESH_AXES))
  for name, array in load(directory, partitioning.make_mesh(shape)).items():
    whole = np.asarray(single[name])
    shards = array.addressable_shards
    assert np.array_equal(array, whole), name
    for shard in shards:
      assert np.array_equal(shard.data, whole[shard.index]), name
    shapes = {shard.data.shape for shard in shards}
    devices = {shard.device for shard in shards}
    assert len(shapes) == 1 and len(devices) == 8, name
    if directory == sys.argv[1]:
      report[f'{shape} {name}'] = shapes.pop()
print(json.dumps(report))
"""


def test_every_device_holds_its_part(tiny_dir, tmp_path):
  """Of a plain directory and of one whose files are quantised."""
  deployed_models.save(tmp_path / 'fp8', deployed_models.CASES['fp8'])
  printed = device_programs.run(_PLACE, str(tiny_dir), str(tmp_path / 'fp8'))
  report = json.loads(printed)
  # Vocabulary 320, D 64, H 16, F 96, N 4, K 2, L 3.
  assert {k: v for k, v in report.items() if k.startswith('(1, 4, 2)')} == {
    '(1, 4, 2) embedding': [160, 16],
    '(1, 4, 2) head': [16, 160],
    '(1, 4, 2) norm.scale': [64],
    '(1, 4, 2) layers.attention_norm.scale': [3, 64],
    '(1, 4, 2) layers.attention.q': [3, 16, 2, 16],
    '(1, 4, 2) layers.attention.k': [3, 16, 1, 16],
    '(1, 4, 2) layers.attention.v': [3, 16, 1, 16],
    '(1, 4, 2) layers.attention.o': [3, 2, 16, 16],
    '(1, 4, 2) layers.mlp_norm.scale': [3, 64],
    '(1, 4, 2) layers.mlp.gate': [3, 16, 48],
    '(1, 4, 2) layers.mlp.up': [3, 16, 48],
    '(1, 4, 2) layers.mlp.down': [3, 48, 16],
  }
  assert report['(2, 2, 2) embedding'] == [160, 32]
  assert report['(2, 2, 2) layers.attention.q'] == [3, 32, 2, 16]
  assert report['(2, 2, 2) layers.mlp.down'] == [3, 48, 32]
