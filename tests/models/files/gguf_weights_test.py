"""GGUF files: every type of tensor, the order of q and k, refusals.

The files are written here with the gguf package and llama.cpp's reordering
spelled out row by row, so a mistake would have to be made twice.
"""

import math
import pathlib
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from jax.sharding import AxisType

from vtokens.host import errors
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import gguf_stored
from vtokens.models.files import fingerprints, gguf_weights
from vtokens.models.files import weights as weights_lib
from vtokens.models.tokenizers import gguf_tokenizer

Type = gguf.GGMLQuantizationType


def _readable_types():
  """Types that the gguf package reads and writes, and those it only reads."""
  both, only_read = [], []
  for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
    try:
      gguf.dequantize(np.zeros((1, size * 256 // block), np.uint8), kind)
    except NotImplementedError:
      continue
    try:
      gguf.quantize(np.ones((1, 256), np.float32), kind)
      both.append(kind)
    except NotImplementedError:
      only_read.append(kind)
  return both, only_read


BOTH, ONLY_READ = _readable_types()

# Rows of every matrix are whole blocks of the largest kind.
SIZES = {
  'hidden_size': 256,
  'intermediate_size': 512,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'vocab_size': tiny_models.VOCAB_SIZE,
}
METADATA = {
  'llama.context_length': 512,
  'llama.embedding_length': 256,
  'llama.block_count': 2,
  'llama.feed_forward_length': 512,
  'llama.attention.head_count': 4,
  'llama.attention.head_count_kv': 2,
  'llama.attention.layer_norm_rms_epsilon': 1e-5,
  'llama.rope.dimension_count': 64,
  'llama.rope.freq_base': 10_000.0,
}
PER_LAYER = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
NAMES = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
  **{
    f'model.layers.{i}.{theirs}.weight': f'blk.{i}.{gguf_name}.weight'
    for i in range(2)
    for theirs, gguf_name in PER_LAYER.items()
  },
}


def _permute(weight, num_heads):
  """What llama.cpp's converter does to q and k: halves of a head in turn."""
  size = len(weight) // num_heads
  order = []
  for head in range(num_heads):
    for i in range(size // 2):
      order += [head * size + i, head * size + size // 2 + i]
  return weight[order]


def _write(path, tensors, metadata=None, architecture='llama', **options):
  """Writes GGUF tensors, each an array or (bytes, type)."""
  writer = gguf.GGUFWriter(path, architecture, **options)
  for key, value in {**METADATA, **(metadata or {})}.items():
    match value:
      case None:
        pass
      case str():
        writer.add_string(key, value)
      case bool():
        writer.add_bool(key, value)
      case int() if value < 0:
        writer.add_int32(key, value)
      case int() if value >> 32:
        writer.add_uint64(key, value)
      case int():
        writer.add_uint32(key, value)
      case float():
        writer.add_float32(key, value)
      case list():
        writer.add_array(key, value)
  for name, tensor in tensors.items():
    data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
    writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _reordered(name, weight):
  """A Hugging Face tensor as llama.cpp stores it."""
  if name.endswith('q_proj.weight'):
    return _permute(weight, SIZES['num_attention_heads'])
  if name.endswith('k_proj.weight'):
    return _permute(weight, SIZES['num_key_value_heads'])
  return weight


def _quantised(weights, kind):
  """GGUF name -> what to write. Norms stay f32, as llama.cpp leaves them."""
  return {
    NAMES[name]: (
      weight
      if weight.ndim == 1
      else (gguf.quantize(_reordered(name, weight), kind), kind)
    )
    for name, weight in weights.items()
  }


def _mesh():
  return jax.make_mesh(
    (1, 1, 1),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )


def _logits(source, ids):
  model = weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = model(model.embed(jnp.asarray(ids)), positions)
  return np.asarray(model.logits(hidden))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A torch model; tests may change its weights, having copied them first."""
  return tiny_models.save(tmp_path_factory.mktemp('model'), scale=0.1, **SIZES)


@pytest.fixture(scope='module')
def weights(model):
  return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


@pytest.fixture(scope='module')
def tensors(weights):
  return _quantised(weights, Type.F32)


def test_the_types_tested_are_those_in_use():
  assert {kind.name for kind in BOTH} >= {
    *('F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0'),
    *('TQ1_0', 'TQ2_0'),
  }
  assert {kind.name for kind in ONLY_READ} >= {
    *('Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ1_S', 'IQ1_M'),
    *('IQ2_XXS', 'IQ2_XS', 'IQ2_S', 'IQ3_XXS', 'IQ3_S', 'IQ4_NL', 'IQ4_XS'),
  }


@pytest.mark.parametrize('kind', BOTH, ids=lambda kind: kind.name)
def test_written_types_load(tmp_path, weights, kind):
  path = _write(tmp_path / 'x.gguf', _quantised(weights, kind))
  source = gguf_weights.GGUFSource(path)
  # Every matrix is read; the decoder is built as from any other source.
  weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())
  assert source.shapes() == {name: w.shape for name, w in weights.items()}
  for name, weight in weights.items():
    found = source.read(name)
    assert found.dtype == np.float32
    if weight.ndim == 1:
      np.testing.assert_array_equal(found, weight)
      continue
    # Blocks lie within rows, so the order of rows changes no value.
    rounded = gguf.dequantize(gguf.quantize(weight, kind), kind)
    np.testing.assert_array_equal(found, rounded, err_msg=name)


@pytest.mark.parametrize('kind', ONLY_READ, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # NaN among the scales.
def test_read_only_types_load(tmp_path, weights, kind):
  rng = np.random.default_rng(0)
  block, size = gguf.GGML_QUANT_SIZES[kind]
  stored = {
    NAMES[name]: (
      weight
      if weight.ndim == 1
      else (
        rng.integers(
          256, size=(len(weight), weight.shape[1] // block * size)
        ).astype(np.uint8),
        kind,
      )
    )
    for name, weight in weights.items()
  }
  source = gguf_weights.GGUFSource(_write(tmp_path / 'x.gguf', stored))
  weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())
  assert source.shapes() == {name: w.shape for name, w in weights.items()}
  for name, weight in weights.items():
    if weight.ndim > 1:
      data, _ = stored[NAMES[name]]
      np.testing.assert_array_equal(
        _reordered(name, source.read(name)),
        gguf.dequantize(data, kind),
        err_msg=name,
      )


@pytest.mark.parametrize('kind', [Type.F32, Type.F16, Type.Q8_0])
@pytest.mark.parametrize('tied', [False, True])
def test_logits_equal_those_of_torch_on_the_same_values(
  tmp_path, weights, kind, tied
):
  weights = dict(weights)
  if tied:
    del weights['lm_head.weight']
  path = _write(tmp_path / 'x.gguf', _quantised(weights, kind))
  rounded = {
    name: torch.from_numpy(
      w if w.ndim == 1 else gguf.dequantize(gguf.quantize(w, kind), kind).copy()
    )
    for name, w in weights.items()
  }
  reference = tiny_models.save(
    tmp_path / 'torch', scale=0.1, tie_word_embeddings=tied, **SIZES
  )
  missing, unexpected = reference.load_state_dict(rounded, strict=False)
  assert missing == (['lm_head.weight'] if tied else [])
  assert not unexpected
  ids = np.random.default_rng(0).integers(320, size=(2, 40))
  with torch.no_grad():
    expected = reference(torch.from_numpy(ids)).logits.numpy()
  found = _logits(gguf_weights.GGUFSource(path), ids)
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_every_field_of_the_config_is_read(tmp_path, weights):
  weights = {
    name: np.ones((4 * 16, 256), np.float32) if 'q_proj' in name else w
    for name, w in weights.items()
  }
  metadata = {
    'llama.context_length': 1234,
    'llama.attention.key_length': 16,
    'llama.attention.layer_norm_rms_epsilon': 0.25,
    'llama.rope.dimension_count': None,
    'llama.rope.freq_base': 500_000.0,
  }
  source = gguf_weights.GGUFSource(
    _write(tmp_path / 'x.gguf', _quantised(weights, Type.F32), metadata)
  )
  assert source.config == DecoderConfig(
    vocab_size=320,
    embed_dim=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=512,
    norm_eps=0.25,
    max_positions=1234,
    tie_embeddings=False,
    layer_pattern=(LayerKind(Rope(theta=500_000.0)),),
  )


def test_defaults_of_the_config(tmp_path, tensors):
  metadata = {
    'llama.attention.head_count': 2,
    'llama.attention.head_count_kv': None,
    'llama.rope.dimension_count': None,
    'llama.rope.freq_base': None,
  }
  del (tensors := dict(tensors))['output.weight']
  path = _write(tmp_path / 'x.gguf', tensors, metadata)
  config = gguf_weights.GGUFSource(path).config
  assert config.num_kv_heads == 2
  assert config.head_dim == 128
  assert config.layer_pattern == (LayerKind(Rope(theta=10_000.0)),)
  assert config.tie_embeddings


@pytest.mark.parametrize(
  ('rows', 'num_heads'), [(8, 1), (8, 4), (12, 3), (48, 4)]
)
def test_stored_rows_undo_the_permutation(rows, num_heads):
  weight = np.arange(rows * 3).reshape(rows, 3)
  stored = _permute(weight, num_heads)
  order = gguf_stored.interleaved_rows(rows, num_heads)
  np.testing.assert_array_equal(stored[order], weight)
  if rows // num_heads > 2:
    assert (stored != weight).any()


def test_fingerprint(tmp_path, weights, tensors):
  def fingerprint(tensors, metadata=None):
    path = _write(tmp_path / 'x.gguf', tensors, metadata)
    source = gguf_weights.GGUFSource(path)
    return fingerprints.of_base(source, source.config)

  first = fingerprint(tensors)
  # Neither the order of tensors nor what else the file says matters.
  same = dict(reversed(tensors.items()))
  assert fingerprint(same, {'general.name': 'another name'}) == first
  assert fingerprint(tensors, {'llama.rope.freq_base': 5e5}) != first
  assert fingerprint(_quantised(weights, Type.F16)) != first
  norm = tensors['output_norm.weight'].copy()
  norm[100] += 1e-3
  assert fingerprint({**tensors, 'output_norm.weight': norm}) != first


# --- refusals ---


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    ({key: None}, f'metadata {key} is missing')
    for key in METADATA
    if key
    not in (
      'llama.attention.head_count_kv',
      'llama.rope.dimension_count',
      'llama.rope.freq_base',
    )
  ]
  + [
    (
      {'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 4.0},
      'metadata llama.rope.scaling.original_context_length is missing',
    ),
    (
      {'llama.rope.scaling.type': 'su'},
      "llama.rope.scaling.type is 'su', not supported; expected 'none'",
    ),
    (
      {'llama.rope.dimension_count': 32},
      'metadata llama.rope.dimension_count is 32, expected 64, all of them',
    ),
    (
      {'llama.vision.block_count': 27},
      'metadata llama.vision.block_count is of a part for images or sound, '
      "which Ollama's files have beside the text model",
    ),
    ({'llama.expert_count': 8}, 'metadata llama.expert_used_count is missing'),
    (
      {'llama.attention.head_count_kv': 3},
      'num_heads=4 is not a multiple of num_kv_heads=3',
    ),
    (
      {'llama.attention.head_count': 0},
      'metadata llama.attention.head_count is 0, expected a positive int',
    ),
    (
      {'llama.feed_forward_length': [512, 256]},
      'metadata llama.feed_forward_length is [512, 256], expected a positive',
    ),
    (
      {'llama.block_count': '2'},
      "metadata llama.block_count is '2', expected a positive int",
    ),
    (
      {'llama.rope.freq_base': False},
      'metadata llama.rope.freq_base is False, expected a positive float',
    ),
  ],
)
def test_unsupported_or_missing_metadata(tmp_path, tensors, metadata, message):
  path = _write(tmp_path / 'x.gguf', tensors, metadata)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value).startswith(f'{path}: {message}')


@pytest.mark.parametrize(
  'metadata',
  [
    {'llama.rope.scaling.type': 'none'},
    {'llama.rope.scaling.factor': 1.0},
    {'llama.rope.scaling.factor': 0.0},
  ],
)
def test_no_scaling_spelled_out(tmp_path, tensors, metadata):
  gguf_weights.GGUFSource(_write(tmp_path / 'x.gguf', tensors, metadata))


_YARN = {
  'llama.rope.scaling.type': 'yarn',
  'llama.rope.scaling.factor': 4.0,
  'llama.rope.scaling.original_context_length': 128,
}


def test_settings_of_yarn(tmp_path, tensors):
  extra = {
    'llama.rope.scaling.yarn_beta_fast': 16.0,
    'llama.rope.scaling.yarn_beta_slow': 2.0,
    'llama.rope.scaling.yarn_ext_factor': 1.0,
  }
  path = _write(tmp_path / 'x.gguf', tensors, {**_YARN, **extra})
  (kind,) = gguf_weights.GGUFSource(path).config.layer_pattern
  assert (kind.rope.beta_fast, kind.rope.beta_slow) == (16.0, 2.0)
  key = 'llama.rope.scaling.yarn_attn_factor'
  path = _write(tmp_path / 'y.gguf', tensors, {**_YARN, key: 0.5})
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value) == (
    f'{path}: {key} is 0.5, not supported; expected 1.0 or 1.138629'
  )
  # What llama.cpp computes itself, spelled out.
  _write(path, tensors, {**_YARN, key: 1 + 0.1 * math.log(4)})
  (kind,) = gguf_weights.GGUFSource(path).config.layer_pattern
  assert kind.rope.attention_factor == 1 + 0.1 * math.log(4)


def test_scaling_given_twice(tmp_path, tensors):
  tensors = {**tensors, 'rope_freqs.weight': np.ones(32, np.float32)}
  path = _write(tmp_path / 'x.gguf', tensors, _YARN)
  with pytest.raises(errors.UserError, match=r'rope_freqs\.weight beside'):
    gguf_weights.GGUFSource(path)


@pytest.mark.parametrize('key', ['scaling.factor', 'scale_linear'])
def test_a_factor_without_a_type_is_linear(tmp_path, tensors, key):
  path = _write(tmp_path / 'x.gguf', tensors, {f'llama.rope.{key}': 4.0})
  (kind,) = gguf_weights.GGUFSource(path).config.layer_pattern
  assert (kind.rope.type, kind.rope.factor) == ('linear', 4.0)


def test_other_architecture(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors, architecture='dbrx')
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value) == (
    f"{path}: general.architecture is 'dbrx', not supported; supported: "
    'llama, qwen2, qwen3, phi3, gemma, gemma2, gemma3, smollm3, olmo2, '
    'seed_oss, mistral3, arcee, granite, command-r, cohere2, chatglm, glm4, '
    'exaone4, ernie4_5, phi2, starcoder2, stablelm, nemotron, gptneox, '
    'falcon, olmo, apertus, hunyuan-dense, exaone, jais2, qwen3moe, '
    'qwen2moe, olmoe, gpt-oss, glm4moe, minimax-m2, granitemoe, qwen35, '
    'qwen35moe, qwen3next, deepseek2, mistral4, minicpm3, gemma4, gemma3n, '
    'lfm2, granitehybrid, nemotron_h, falcon-h1, qwen2vl, qwen3vl, '
    'qwen3vlmoe, nemotron_h_moe'
  )


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    (
      {'llama.logit_scale': 0.5},
      'llama.logit_scale is 0.5, not supported for llama; expected none',
    ),
    (
      {'llama.attention.causal': False},
      'llama.attention.causal is False, not supported for llama; expected True',
    ),
    (
      {'llama.attention.sliding_window_pattern': [True, False]},
      'llama.attention.sliding_window_pattern is [True, False], not supported',
    ),
    (
      {'llama.attention.value_length': 32},
      'llama.attention.value_length is 32, expected 64, as of keys',
    ),
    (
      {'llama.rope.scaling.attn_factor': 0.5},
      'llama.rope.scaling.attn_factor is 0.5, not supported for llama',
    ),
    (
      {'llama.rope.dimension_sections': [2, 1, 1, 0]},
      'llama.rope.dimension_sections is [2, 1, 1, 0], not supported for llama',
    ),
    (
      {'llama.a_new_idea': 1},
      'llama.a_new_idea is 1, not supported for llama; expected none',
    ),
  ],
)
def test_metadata_that_is_not_used(tmp_path, tensors, metadata, message):
  path = _write(tmp_path / 'x.gguf', tensors, metadata)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value).startswith(f'{path}: metadata {message}')


def test_metadata_without_effect(tmp_path, tensors):
  first = gguf_weights.GGUFSource(_write(tmp_path / 'x.gguf', tensors)).config
  more = {
    'llama.vocab_size': 320,
    'llama.tensor_data_layout': 'Meta AI original pth',
    'llama.attention.value_length': 64,
    'llama.attention.causal': True,
    'llama.expert_count': 0,
    'llama.expert_used_count': 0,
    'llama.rope.scaling.original_context_length': 128,
    'other.logit_scale': 0.5,
  }
  path = _write(tmp_path / 'y.gguf', tensors, more)
  assert gguf_weights.GGUFSource(path).config == first


def test_big_endian(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors, endianess=gguf.GGUFEndian.BIG)
  with pytest.raises(errors.UserError, match='big-endian GGUF'):
    gguf_weights.GGUFSource(path)


@pytest.mark.parametrize(
  'name',
  ['blk.0.attn_sinks.weight', 'blk.1.ffn_gate_exps.weight'],
)
def test_unknown_tensor(tmp_path, tensors, name):
  tensors = {**tensors, name: np.ones(32, np.float32)}
  path = _write(tmp_path / 'x.gguf', tensors)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value) == f'{path}: tensor {name} is not supported for llama'


def test_missing_tensors_are_listed(tmp_path, tensors):
  del (tensors := dict(tensors))['blk.1.attn_k.weight']
  del tensors['output_norm.weight']
  source = gguf_weights.GGUFSource(_write(tmp_path / 'x.gguf', tensors))
  with pytest.raises(errors.UserError) as e:
    weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())
  assert str(e.value).splitlines() == [
    f'{tmp_path}/x.gguf: the weights do not fit the config:',
    '  missing: model.layers.1.self_attn.k_proj.weight',
    '  missing: model.norm.weight',
  ]


def test_missing_embedding(tmp_path, tensors):
  del (tensors := dict(tensors))['token_embd.weight']
  path = _write(tmp_path / 'x.gguf', tensors)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value) == f'{path}: tensor token_embd.weight is missing'


def test_more_layers_than_the_metadata_says(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors, {'llama.block_count': 1})
  source = gguf_weights.GGUFSource(path)
  with pytest.raises(
    errors.UserError, match=r'surplus: 9 .* model\.layers\.1\.'
  ):
    weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())


@pytest.mark.parametrize('kind', [Type.Q8_K, Type.F64, Type.I32])
def test_types_that_cannot_be_read(tmp_path, tensors, kind):
  block, size = gguf.GGML_QUANT_SIZES[kind]
  data = np.zeros((256, 256 // block * size), np.uint8)
  tensors = {**tensors, 'blk.0.attn_q.weight': (data, kind)}
  source = gguf_weights.GGUFSource(_write(tmp_path / 'x.gguf', tensors))
  with pytest.raises(errors.UserError) as e:
    weights_lib.load_decoder(source, source.config, jnp.float32, _mesh())
  assert (
    f'{tmp_path}/x.gguf: tensor blk.0.attn_q.weight is quantised as {kind.name}'
  ) in str(e.value)


@pytest.mark.parametrize(
  'content', [b'', b'GGU', b'x' * 1000, b'GGUF' + bytes(1000)]
)
def test_not_gguf(tmp_path, content):
  path = tmp_path / 'x.gguf'
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value).startswith(f'{path}: not a readable GGUF file (')


@pytest.mark.parametrize(
  'key',
  [
    'general.type',
    'llama.block_count',
    'llama.attention.head_count',
    'llama.attention.layer_norm_rms_epsilon',
    'llama.attention.sliding_window',
    'llama.context_length',
    'llama.rope.freq_base',
    'llama.rope.scaling.factor',
    'llama.rope.scaling.type',
    'llama.rope.scale_linear',
    'llama.rope.dimension_count',
  ],
)
def test_metadata_of_a_wrong_type(tmp_path, tensors, key):
  """One error that names the file."""
  path = tmp_path / 'x.gguf'
  for value in ('x', -1, 1 << 63, float('nan'), [1, 2], ['x'], True):
    if value == 1 << 63 and key not in (
      'llama.block_count',
      'llama.attention.head_count',
      'llama.attention.sliding_window',
    ):
      continue  # A large number, but a number.
    _write(path, tensors, {key: value})
    with pytest.raises(errors.UserError) as e:
      source = gguf_weights.GGUFSource(path)
      weights_lib.check_shapes(source, source.config)
    assert str(e.value).startswith(f'{path}: '), value
    assert len(str(e.value)) < 1500


def test_an_architecture_that_is_no_text(tmp_path):
  key = b'general.architecture'
  field = struct.pack('<Q', len(key)) + key + struct.pack('<IIQ', 9, 4, 1)
  path = tmp_path / 'x.gguf'
  path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + field + bytes(100))
  with pytest.raises(errors.UserError, match=r'is \[0\], expected text'):
    gguf_weights.GGUFSource(path)


def test_a_layer_of_an_absurd_number(tmp_path, tensors):
  """No table is made for so many."""
  found = {
    name.replace('blk.1.', 'blk.100000000.'): array
    for name, array in tensors.items()
  }
  path = _write(tmp_path / 'x.gguf', found)
  with pytest.raises(errors.UserError, match=r'tensor blk\.100000000\.\S+ is '):
    gguf_weights.GGUFSource(path)


def test_an_embedding_of_one_dimension(tmp_path, tensors):
  found = {**tensors, 'token_embd.weight': np.zeros(64, np.float32)}
  path = _write(tmp_path / 'x.gguf', found)
  with pytest.raises(errors.UserError, match=r'token_embd\.weight has the dim'):
    gguf_weights.GGUFSource(path)


@pytest.mark.parametrize('at', [8, 16])
@pytest.mark.parametrize('count', [10**6, 1 << 40, (1 << 64) - 1])
def test_absurd_counts(tmp_path, tensors, at, count):
  """Of tensors and of fields; the gguf package would go on without end."""
  path = _write(tmp_path / 'x.gguf', tensors)
  content = bytearray(path.read_bytes())
  content[at : at + 8] = count.to_bytes(8, 'little')
  path.write_bytes(content)
  for read in (gguf_weights.GGUFSource, gguf_tokenizer.read_tokenizer):
    with pytest.raises(errors.UserError, match='not a readable GGUF file'):
      read(path)


@pytest.mark.parametrize(
  'value',
  [
    # An array of so many numbers, of so many texts, and of arrays in arrays.
    struct.pack('<IIQ', 9, 4, 1 << 60),
    struct.pack('<IIQ', 9, 8, 1 << 60),
    struct.pack('<I', 9) + struct.pack('<IQ', 9, 1) * 5000,
    struct.pack('<IQ', 8, 1 << 62),
    struct.pack('<I', 99),
  ],
)
def test_absurd_values(tmp_path, value):
  path = tmp_path / 'x.gguf'
  head = b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + struct.pack('<Q', 1) + b'x'
  path.write_bytes(head + value + bytes(100))
  for read in (gguf_weights.GGUFSource, gguf_tokenizer.read_tokenizer):
    with pytest.raises(errors.UserError, match='not a readable GGUF file'):
      read(path)


def test_metadata_that_is_no_text(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors)
  path.write_bytes(path.read_bytes().replace(b'llama', b'll\xffma', 1))
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert f'{path}: metadata general.architecture is no text' in str(e.value)


def test_text_that_is_damaged_and_not_used(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors, {'llama.note': 'made here'})
  path.write_bytes(path.read_bytes().replace(b'made here', b'made \xffere'))
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert f'{path}: metadata llama.note is no text' in str(e.value)


def test_no_file(tmp_path):
  path = pathlib.Path(tmp_path, 'x.gguf')
  with pytest.raises(errors.UserError) as e:
    gguf_weights.GGUFSource(path)
  assert str(e.value) == f'{path}: not found'


def test_truncated_anywhere(tmp_path, tensors):
  path = _write(tmp_path / 'x.gguf', tensors)
  content = path.read_bytes()
  header = content.index(b'output_norm') + 200
  cuts = [*range(4, header, 37), header, len(content) // 2, len(content) - 4]
  for cut in cuts:
    path.write_bytes(content[:cut])
    with pytest.raises(errors.UserError) as e:
      gguf_weights.GGUFSource(path)
    assert str(e.value).startswith(f'{path}: not a readable GGUF file ('), cut
