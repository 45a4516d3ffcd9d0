"""Reading published configs, and refusing what would change the numbers."""

import dataclasses

import pytest
import transformers

from vtokens import errors
from vtokens.models import config as config_lib

LLAMA_2_7B = {
  'architectures': ['LlamaForCausalLM'],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 11008,
  'max_position_embeddings': 4096,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 32,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'float16',
  'transformers_version': '4.31.0.dev0',
  'use_cache': True,
  'vocab_size': 32000,
}
LLAMA_2_13B = {
  **LLAMA_2_7B,
  'hidden_size': 5120,
  'intermediate_size': 13824,
  'num_attention_heads': 40,
  'num_hidden_layers': 40,
  'num_key_value_heads': 40,
}
LLAMA_3_8B = {
  **LLAMA_2_7B,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'intermediate_size': 14336,
  'max_position_embeddings': 8192,
  'num_key_value_heads': 8,
  'rope_theta': 500000.0,
  'vocab_size': 128256,
}
SMOLLM2_135M = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 576,
  'initializer_range': 0.041666666666666664,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pad_token_id': 2,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.42.3',
  'use_cache': True,
  'vocab_size': 49152,
}
# What is left of a config when all that has a default is left out.
LEAST = {
  'model_type': 'llama',
  'hidden_size': 64,
  'intermediate_size': 96,
  'max_position_embeddings': 512,
  'num_attention_heads': 4,
  'num_hidden_layers': 3,
  'rms_norm_eps': 1e-5,
  'vocab_size': 320,
}
ABSENT = object()


def _least(**fields):
  config = {**LEAST, **fields}
  return {key: v for key, v in config.items() if v is not ABSENT}


@pytest.mark.parametrize(
  ('config', 'count'),
  [
    (LLAMA_2_7B, 6_738_415_616),
    (LLAMA_2_13B, 13_015_864_320),
    (LLAMA_3_8B, 8_030_261_248),
    (SMOLLM2_135M, 134_515_008),
  ],
  ids=['llama_2_7b', 'llama_2_13b', 'llama_3_8b', 'smollm2_135m'],
)
def test_published_configs_give_the_published_parameter_counts(config, count):
  assert config_lib.from_hf(config).num_params == count


def test_every_field_is_read():
  assert config_lib.from_hf(SMOLLM2_135M) == config_lib.DecoderConfig(
    vocab_size=49152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    norm_eps=1e-5,
    rope_theta=100_000.0,
    max_positions=8192,
    tie_embeddings=True,
  )


def test_missing_optional_fields_have_the_values_transformers_gives_them():
  ours = config_lib.from_hf(LEAST)
  theirs = transformers.LlamaConfig(**LEAST)
  assert dataclasses.asdict(ours) == {
    'vocab_size': 320,
    'embed_dim': 64,
    'num_layers': 3,
    'num_heads': 4,
    'num_kv_heads': theirs.num_key_value_heads,
    'head_dim': theirs.head_dim,
    'mlp_dim': 96,
    'norm_eps': 1e-5,
    'rope_theta': theirs.rope_parameters['rope_theta'],
    'max_positions': 512,
    'tie_embeddings': theirs.tie_word_embeddings,
  }
  assert ours.num_kv_heads == 4
  assert ours.head_dim == 16


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'head_dim': None}, {'head_dim': 16}),
    ({'head_dim': 32}, {'head_dim': 32}),
    ({'num_key_value_heads': None}, {'num_kv_heads': 4}),
    ({'num_key_value_heads': 1}, {'num_kv_heads': 1}),
    ({'tie_word_embeddings': True}, {'tie_embeddings': True}),
    ({'quantization_config': None}, {}),
    # transformers 4
    ({'rope_theta': 500000}, {'rope_theta': 500_000.0}),
    ({'rope_theta': 5e5, 'rope_scaling': None}, {'rope_theta': 5e5}),
    ({'rope_theta': 5e5, 'rope_scaling': {}}, {'rope_theta': 5e5}),
    (
      {'rope_theta': 5e5, 'rope_scaling': {'type': 'default'}},
      {'rope_theta': 5e5},
    ),
    # transformers 5
    (
      {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
      {'rope_theta': 5e5},
    ),
    ({'rope_parameters': {'rope_theta': 5e5}}, {'rope_theta': 5e5}),
    ({'rope_parameters': None, 'rope_theta': 5e5}, {'rope_theta': 5e5}),
    (
      {'rope_parameters': {'rope_type': 'default'}, 'rope_theta': 5e5},
      {'rope_theta': 5e5},
    ),
    # The inner one counts.
    ({'rope_parameters': {'rope_theta': 5e5}, 'rope_theta': 7.0}, {}),
    ({'rope_scaling': {'rope_theta': 5e5}, 'rope_theta': 7.0}, {}),
  ],
)
def test_forms_of_a_field(fields, expected):
  config = config_lib.from_hf(_least(**fields))
  for field, value in expected.items():
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
  # However it is written, it has to be what transformers makes of it.
  theirs = transformers.LlamaConfig(**_least(**fields))
  assert config.rope_theta == theirs.rope_parameters['rope_theta']
  assert config.head_dim == theirs.head_dim


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('hidden_act', 'gelu', "'gelu', not supported; expected 'silu'"),
    ('attention_bias', True, 'True, not supported; expected False'),
    ('mlp_bias', True, 'True, not supported; expected False'),
    ('pretraining_tp', 2, '2, not supported; expected 1'),
    ('quantization_config', {'quant_method': 'gptq'}, 'not supported'),
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}, 'not supported'),
    ('rope_scaling', {'rope_type': 'llama3', 'factor': 8.0}, 'not supported'),
    ('rope_scaling', {'type': 'default', 'factor': 2.0}, 'not supported'),
    ('rope_scaling', 'linear', "'linear', not supported"),
    ('rope_parameters', {'rope_type': 'yarn', 'factor': 4}, 'not supported'),
    (
      'rope_parameters',
      {'rope_type': 'default', 'partial_rotary_factor': 0.5},
      'not supported',
    ),
    ('rope_theta', 'x', "'x', expected a positive float"),
    ('rope_theta', 0, '0, expected a positive float'),
    ('rope_theta', float('nan'), 'nan, expected a positive float'),
    ('hidden_size', ABSENT, 'missing, expected a positive int'),
    ('hidden_size', 64.0, '64.0, expected a positive int'),
    ('hidden_size', True, 'True, expected a positive int'),
    ('vocab_size', ABSENT, 'missing, expected a positive int'),
    ('vocab_size', '320', "'320', expected a positive int"),
    ('vocab_size', 0, '0, expected a positive int'),
    ('num_hidden_layers', ABSENT, 'missing, expected a positive int'),
    ('num_hidden_layers', -1, '-1, expected a positive int'),
    ('num_attention_heads', ABSENT, 'missing, expected a positive int'),
    ('num_attention_heads', 0, '0, expected a positive int'),
    ('num_attention_heads', True, 'True, expected a positive int'),
    ('num_key_value_heads', '2', "'2', expected a positive int"),
    ('num_key_value_heads', 0, '0, expected a positive int'),
    ('num_key_value_heads', True, 'True, expected a positive int'),
    ('head_dim', 16.0, '16.0, expected a positive int'),
    ('head_dim', True, 'True, expected a positive int'),
    ('intermediate_size', ABSENT, 'missing, expected a positive int'),
    ('max_position_embeddings', ABSENT, 'missing, expected a positive int'),
    ('rms_norm_eps', ABSENT, 'missing, expected a positive float'),
    ('rms_norm_eps', True, 'True, expected a positive float'),
    ('rms_norm_eps', '1e-5', "'1e-5', expected a positive float"),
    ('tie_word_embeddings', 'false', "'false', expected bool"),
    ('tie_word_embeddings', 1, '1, expected bool'),
  ],
)
def test_what_is_not_implemented_or_malformed_is_an_error(
  field, value, message
):
  with pytest.raises(errors.UserError) as e:
    config_lib.from_hf(_least(**{field: value}), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {field} is ')
  assert message in str(e.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'num_attention_heads': 4, 'num_key_value_heads': 3},
      'num_heads=4 is not a multiple of num_kv_heads=3',
    ),
    ({'head_dim': 15}, 'head_dim=15 is odd'),
  ],
)
def test_shapes_that_do_not_fit_together(fields, message):
  with pytest.raises(errors.UserError) as e:
    config_lib.from_hf(_least(**fields), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {message}')


@pytest.mark.parametrize('model_type', ['qwen2', 'mistral', '', None, ABSENT])
def test_other_model_types_name_the_supported_ones(model_type):
  with pytest.raises(errors.UserError) as e:
    config_lib.from_hf(_least(model_type=model_type), 'some/config.json')
  assert str(e.value).startswith('some/config.json: model_type is ')
  for supported in config_lib.SUPPORTED_MODEL_TYPES:
    assert supported in str(e.value)
