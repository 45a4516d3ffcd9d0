"""Reading published configs, and refusing what would change the numbers."""

import dataclasses

import pytest
import transformers

from vtokens.host import errors
from vtokens.models.abstract import num_params
from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import registry

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
  assert num_params(registry.from_hf(config)) == count


def test_every_field_is_read():
  assert registry.from_hf(SMOLLM2_135M) == DecoderConfig(
    vocab_size=49152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    model_type='llama',
    norm_eps=1e-5,
    max_positions=8192,
    tie_embeddings=True,
    layer_pattern=(LayerKind(Rope(theta=100_000.0)),),
  )


def test_missing_optional_fields_have_the_values_transformers_gives_them():
  ours = registry.from_hf(LEAST)
  theirs = transformers.LlamaConfig(**LEAST)
  assert ours == DecoderConfig(
    vocab_size=320,
    embed_dim=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=theirs.num_key_value_heads,
    head_dim=theirs.head_dim,
    mlp_dim=96,
    norm_eps=1e-5,
    max_positions=512,
    tie_embeddings=theirs.tie_word_embeddings,
    qkv_bias=theirs.attention_bias,
    out_bias=theirs.attention_bias,
    layer_pattern=(LayerKind(Rope(theirs.rope_parameters['rope_theta'])),),
  )
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
  config = registry.from_hf(_least(**fields))
  (kind,) = config.layer_pattern
  values = {**dataclasses.asdict(config), 'rope_theta': kind.rope.theta}
  for field, value in expected.items():
    assert values[field] == value
    assert type(values[field]) is type(value)
  # However it is written, it has to be what transformers makes of it.
  theirs = transformers.LlamaConfig(**_least(**fields))
  assert kind.rope.theta == theirs.rope_parameters['rope_theta']
  assert config.head_dim == theirs.head_dim


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('hidden_act', 'gelu', "'gelu', expected 'silu' (others: not supported)"),
    ('mlp_bias', True, 'True, expected False (others: not supported)'),
    ('pretraining_tp', 2, '2, expected 1 (others: not supported)'),
    ('quantization_config', {'quant_method': 'gptq'}, 'not supported'),
    ('attention_bias', 1, '1, expected true or false'),
    ('rope_scaling', 'linear', "'linear', expected an object"),
    ('rope_scaling', {'rope_type': 'mrope'}, "'mrope', expected rope_type "),
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
    ('tie_word_embeddings', 'false', "'false', expected true or false"),
    ('tie_word_embeddings', 1, '1, expected true or false'),
    ('num_hidden_layers', 10**9, 'expected a positive int of at most 10000'),
    ('hidden_size', 10**9, 'expected a positive int of at most 1048576'),
    ('vocab_size', 1 << 31, 'expected a positive int of at most 2147483647'),
    ('num_attention_heads', -4, '-4, expected a positive int'),
    ('hidden_size', 0, '0, expected a positive int'),
    ('rms_norm_eps', 1e39, 'expected a positive float of at most'),
    ('vocab_size', ['x'] * 1000, '(5,000 characters) ...'),
  ],
)
def test_what_is_not_implemented_or_malformed_is_an_error(
  field, value, message
):
  with pytest.raises(errors.UserError) as e:
    registry.from_hf(_least(**{field: value}), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {field} is ')
  assert message in str(e.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'num_attention_heads': 4, 'num_key_value_heads': 3},
      'num_heads=4 is not a multiple of num_kv_heads=3',
    ),
    ({'head_dim': 15}, '15 of the 15 values of a head would be rotated'),
  ],
)
def test_shapes_that_do_not_fit_together(fields, message):
  with pytest.raises(errors.UserError) as e:
    registry.from_hf(_least(**fields), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {message}')


@pytest.mark.parametrize(
  ('model_type', 'why'),
  [
    ('dbrx', ' (a mixture of experts that is not implemented)'),
    ('qwen4', '; the nearest supported: qwen3, qwen2, '),
    ('deepseek-v3', '; the nearest supported: deepseek_v3, '),
    *[(other, '') for other in ('', None, ['a', 'list'], ABSENT)],
  ],
)
def test_other_model_types(model_type, why):
  with pytest.raises(errors.UserError) as e:
    registry.from_hf(_least(model_type=model_type), 'some/config.json')
  found = None if model_type is ABSENT else model_type
  start = f'some/config.json: model_type is {found!r}, not supported{why}'
  assert str(e.value).startswith(start)
  assert str(e.value).endswith('; `vtokens models` lists all that are')
  assert len(str(e.value)) < 200


# --- rotary embeddings ---

LLAMA_3_1 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
  'rope_type': 'llama3',
}


def test_rope_of_both_versions_of_transformers():
  old = registry.from_hf(_least(rope_scaling=LLAMA_3_1, rope_theta=5e5))
  new = registry.from_hf(
    _least(rope_parameters={**LLAMA_3_1, 'rope_theta': 5e5})
  )
  assert old == new
  (kind,) = old.layer_pattern
  assert kind.rope == Rope(
    theta=5e5,
    type='llama3',
    factor=8.0,
    original_max_positions=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )


@pytest.mark.parametrize(
  ('scaling', 'message'),
  [
    ({'type': 'default', 'factor': 2.0}, 'factor, not supported for rope_type'),
    ({'type': 'linear'}, 'factor is missing, expected a positive float'),
    ({'type': 'linear', 'factor': 'x'}, "factor is 'x', expected a positive"),
    ({'type': 'dynamic', 'factor': 0}, 'factor is 0, expected a positive'),
    (
      {'type': 'linear', 'factor': 2.0, 'alpha': 1000},
      "alpha, not supported for rope_type 'linear'",
    ),
    (
      {**LLAMA_3_1, 'low_freq_factor': None},
      'low_freq_factor is missing, expected a positive float',
    ),
    (
      {'type': 'longrope', 'short_factor': [1.0] * 8},
      'long_factor is missing, expected a list of 8 positive numbers',
    ),
    (
      {
        'type': 'longrope',
        'short_factor': [1.0] * 7,
        'long_factor': [1.0] * 8,
      },
      'expected a list of 8 positive numbers',
    ),
    (
      {'type': 'yarn', 'factor': 2.0, 'rope_theta': 1.0},
      "rope_type 'yarn' gives no finite frequencies (float division by zero) "
      'with theta=1.0, factor=2.0',
    ),
    ({'type': 'linear', 'factor': 1e-45}, 'gives no finite frequencies'),
    ({'type': 'linear', 'factor': 10**400}, 'expected a positive float of at'),
    ({'type': 'yarn', 'factor': float('inf')}, 'factor is inf, expected a'),
    ({'type': 'yarn', 'factor': float('nan')}, 'factor is nan, expected a'),
    ({'type': 'yarn', 'beta_fast': -1.0}, 'beta_fast is -1.0, expected a'),
    (
      {'type': 'yarn', 'original_max_position_embeddings': 0},
      'original_max_position_embeddings is 0, expected a positive int',
    ),
    (
      {'type': 'yarn', 'truncate': 'false'},
      "truncate is 'false', expected true or false",
    ),
    (
      {
        'type': 'longrope',
        'factor': 2.0,
        'original_max_position_embeddings': 1,
        'short_factor': [1.0] * 8,
        'long_factor': [1.0] * 8,
      },
      'original_max_position_embeddings is 1, expected more than 1',
    ),
    (
      {
        'type': 'longrope',
        'short_factor': [1e-45] * 8,
        'long_factor': [1.0] * 8,
      },
      'gives no finite frequencies',
    ),
    (
      {'type': 'default', 'partial_rotary_factor': 0.5},
      'partial_rotary_factor is 8, expected 1 for llama',
    ),
  ],
)
def test_malformed_rope(scaling, message):
  for field in ('rope_scaling', 'rope_parameters'):
    with pytest.raises(errors.UserError) as e:
      registry.from_hf(_least(**{field: scaling}), 'some/config.json')
    assert str(e.value).startswith('some/config.json: ')
    assert message in str(e.value)


@pytest.mark.parametrize(
  ('scaling', 'length'),
  [
    (None, 512),
    ({'type': 'linear', 'factor': 4.0}, 2048),
    ({'type': 'dynamic', 'factor': 2.0}, 1024),
    (
      {
        'type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 512,
      },
      2048,
    ),
    (
      {
        'type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 64,
      },
      512,
    ),
    ({**LLAMA_3_1, 'original_max_position_embeddings': 64}, 512),
  ],
)
def test_longest_sequence(scaling, length):
  config = registry.from_hf(_least(rope_scaling=scaling))
  assert config.longest_sequence == length


def test_longest_sequence_of_mixed_layers():
  """Layers without positions or with a window do not limit it."""
  yarn = {'type': 'yarn', 'factor': 4.0}
  config = registry.from_hf(
    _least(model_type='smollm3', num_hidden_layers=8, rope_scaling=yarn)
  )
  assert config.longest_sequence == 4 * 512


# --- other families ---


@pytest.mark.parametrize(
  ('model_type', 'field', 'value'),
  [
    ('mistral', 'hidden_act', 'gelu'),
    ('mistral', 'layer_types', ['full_attention'] * 3),
    ('mistral', 'sliding_window', 0),
    ('mistral', 'sliding_window', '4096'),
    ('ministral', 'layer_types', ['full_attention'] * 2),
    ('ministral', 'layer_types', ['full_attention', 'chunked', 'chunked']),
    ('qwen2', 'use_sliding_window', 'yes'),
    ('qwen2', 'max_window_layers', None),
    ('qwen3', 'max_window_layers', '28'),
    ('qwen2', 'attention_bias', False),
    ('qwen3', 'hidden_act', 'gelu'),
    ('phi3', 'hidden_act', 'gelu'),
    ('phi3', 'partial_rotary_factor', 1.5),
    ('gemma', 'hidden_act', 'silu'),
    ('gemma', 'hidden_activation', 'gelu'),
    ('gemma2', 'hidden_activation', 'gelu'),
    ('gemma2', 'use_bidirectional_attention', True),
    ('gemma2', 'attn_logit_softcapping', -1.0),
    ('gemma2', 'query_pre_attn_scalar', 'x'),
    ('gemma3_text', 'attn_logit_softcapping', 50.0),
    ('smollm3', 'no_rope_layers', [1, 1]),
    ('smollm3', 'no_rope_layers', [1, 1, 2]),
    ('smollm3', 'mlp_bias', True),
    ('olmo2', 'clip_qkv', 8.0),
    ('falcon', 'alibi', True),
    # transformers' model has no norms of the names that it then asks for.
    ('falcon', 'num_ln_in_parallel_attn', 2),
    ('falcon', 'head_dim', 8),
    ('gpt_neox', 'hidden_act', 'relu'),
    ('gpt_neox', 'num_key_value_heads', 2),
    ('apertus', 'hidden_act', 'silu'),
    # transformers reads `rotary_emb_base` and its own default.
    ('gpt_neox', 'rope_theta', 5e5),
    ('apertus', 'rope_theta', 5e5),
    ('exaone', 'rope_parameters', []),
    ('exaone', 'rope_scaling', 0),
    ('olmo3', 'hidden_act', 'gelu'),
    ('olmo3', 'rope_theta', 1e4),
    # transformers cuts its cache to it, and not its mask.
    ('llama', 'sliding_window', 64),
    ('gemma', 'sliding_window', 64),
    ('olmo2', 'sliding_window', 64),
    ('llama', 'layer_types', ['sliding_attention'] * 3),
    # Layers with windows of no size.
    ('smollm3', 'layer_types', ['sliding_attention'] * 3),
    ('qwen2', 'layer_types', ['sliding_attention'] * 3),
    *(
      (model_type, 'is_causal', value)
      for model_type in registry.families()
      for value in (False, None, 0)
    ),
  ],
)
def test_what_a_family_does_not_do_is_an_error(model_type, field, value):
  changes = {'model_type': model_type, field: value}
  if model_type == 'gemma' and field != 'hidden_act':
    changes['hidden_act'] = 'gelu'
  if model_type == 'gpt_neox':
    changes['layer_norm_eps'] = 1e-5
  with pytest.raises(errors.UserError) as e:
    registry.from_hf(_least(**changes), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {field} is ')


# Fields whose default has no meaning for a model of this size.
_SIZES = {
  'helium': {'num_key_value_heads': 4},
  'ministral': {'head_dim': 16},
  'qwen3_5_moe_text': {'moe_intermediate_size': 64},
  'gemma4_text': {'vocab_size_per_layer_input': LEAST['vocab_size']},
  'gemma3n_text': {'num_kv_shared_layers': 2},
  'deepseek_v2': {'num_experts_per_tok': 2},
  **{
    model_type: {'num_key_value_heads': 32}
    for model_type in ('deepseek_v3', 'glm4_moe_lite', 'minicpm3', 'youtu')
  },
}


@pytest.mark.parametrize('model_type', registry.families())
def test_defaults_are_those_of_transformers(model_type):
  """A config that says least, by us and as transformers completes it."""
  gelu = {'hidden_act': 'gelu_pytorch_tanh'} if 'gemma' in model_type else {}
  least = _least(model_type=model_type, num_hidden_layers=8, **gelu)
  least['num_attention_heads'] = 32  # Which every default divides.
  least['hidden_size'] = 512
  least[registry.families()[model_type].norm_eps] = 1e-5
  least |= _SIZES.get(model_type, {})
  theirs = transformers.AutoConfig.for_model(**least).to_dict()
  assert registry.from_hf(least) == registry.from_hf(theirs)


def test_rope_of_one_type_of_layers():
  """What is not given for a type has the type's default."""
  sliding = {'sliding_attention': {'rope_type': 'default'}}
  full = {'full_attention': {'rope_type': 'default', 'rope_theta': 5e5}}
  fields = _least(
    model_type='gemma3_text',
    num_hidden_layers=6,
    rope_theta=3e6,
    rope_parameters={**sliding, **full},
  )
  config = registry.from_hf(fields)
  assert config.layer_kinds[0].rope.theta == 1e4
  assert config.layer_kinds[5].rope.theta == 5e5


@pytest.mark.parametrize('model_type', ['gemma3_text', 'olmo3'])
def test_one_rope_for_layers_of_two_types_is_an_error(model_type):
  """transformers would ignore it."""
  with pytest.raises(errors.UserError, match='to have full_attention'):
    registry.from_hf(
      _least(model_type=model_type, rope_parameters={'rope_theta': 5e5})
    )


def test_longrope_without_an_original_length():
  """It is 4096 for Phi-3, whatever stands inside."""
  fields = _least(
    model_type='phi3',
    max_position_embeddings=8192,
    rope_scaling={
      'type': 'longrope',
      'short_factor': [1.0] * 8,
      'long_factor': [2.0] * 8,
      'original_max_position_embeddings': 64,
    },
  )
  (kind,) = registry.from_hf(fields).layer_pattern
  assert kind.rope.original_max_positions == 4096


def test_old_names_of_longrope():
  """Phi-3's first files called it su, and later yarn."""
  factors = {'short_factor': [1.0] * 8, 'long_factor': [2.0] * 8}
  first, *others = [
    registry.from_hf(
      _least(
        model_type='phi3',
        rope_scaling={'type': name, **factors},
        original_max_position_embeddings=128,
      )
    )
    for name in ('longrope', 'su', 'yarn')
  ]
  assert first.layer_pattern[0].rope.type == 'longrope'
  assert first.layer_pattern[0].rope.original_max_positions == 128
  assert others == [first, first]


def test_parameters_of_old_falcon_and_neox():
  """As published files have them: without fields that have defaults."""
  neox = registry.from_hf(
    _least(
      model_type='gpt_neox',
      layer_norm_eps=1e-5,
      rotary_pct=0.5,
      rotary_emb_base=500,
    )
  )
  assert (neox.rotary_dim, neox.num_kv_heads) == (8, 4)
  assert neox.layer_pattern[0].rope.theta == 500
  falcon = registry.from_hf(_least(model_type='falcon'))
  assert (falcon.num_kv_heads, falcon.mlp_dim) == (1, 256)
  assert falcon.tie_embeddings and falcon.parallel


def test_older_names_of_fields():
  names = {
    'num_hidden_layers': 'num_layers',
    'rms_norm_eps': 'layer_norm_epsilon',
    'hidden_act': 'activation_function',
  }
  new = _least(model_type='exaone', num_key_value_heads=2, hidden_act='silu')
  old = {names.get(field, field): value for field, value in new.items()}
  assert registry.from_hf(old) == registry.from_hf(new)
  with pytest.raises(errors.UserError, match='num_layers is 4, expected 3'):
    registry.from_hf({**new, 'num_layers': 4})


def test_alpha_of_hunyuan_stretches_the_base():
  scaling = {'type': 'dynamic', 'alpha': 1000.0, 'factor': 1.0}
  config = registry.from_hf(
    _least(model_type='hunyuan_v1_dense', rope_scaling=scaling)
  )
  (kind,) = config.layer_pattern
  assert kind.rope == Rope(theta=1e4 * 1000 ** (16 / 14))
  with pytest.raises(errors.UserError, match='long_factor'):
    registry.from_hf(
      _least(
        model_type='hunyuan_v1_dense',
        rope_scaling={**scaling, 'long_factor': [1.0]},
      )
    )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {
        'model_type': 'apertus',
        'rope_scaling': None,
        'rope_theta': 5e5,
      },
      'rope_theta is 500000.0, expected 12000000.0',
    ),
    (
      {'model_type': 'gpt_neox', 'layer_norm_eps': 1e-5, 'rotary_pct': 'x'},
      "partial_rotary_factor is 'x', expected a positive float",
    ),
    (
      {
        'model_type': 'hunyuan_v1_dense',
        'head_dim': 2,
        'rope_scaling': {'type': 'dynamic', 'alpha': 1000.0},
      },
      'head_dim is 2, expected more than 2 beside alpha',
    ),
    (
      {'model_type': 'mixtral', 'num_experts_per_tok': 9},
      '9 experts for each token are more than all 8 experts',
    ),
  ],
)
def test_fields_that_do_not_fit_together_in_one_family(changes, message):
  with pytest.raises(errors.UserError) as e:
    registry.from_hf(_least(**changes), 'some/config.json')
  assert str(e.value).startswith(f'some/config.json: {message}')


def test_old_form_of_gemma_3():
  """sliding_window_pattern and two bases, before layer_types was written."""
  config = registry.from_hf(
    _least(
      model_type='gemma3_text',
      num_hidden_layers=8,
      sliding_window=64,
      sliding_window_pattern=3,
      rope_theta=1e6,
      rope_local_base_freq=1e4,
      rope_scaling={'rope_type': 'linear', 'factor': 8.0},
    )
  )
  local = LayerKind(Rope(theta=1e4), 64)
  whole = LayerKind(
    Rope(theta=1e6, type='linear', factor=8.0, original_max_positions=512)
  )
  assert config.layer_kinds == (
    *(local, local, whole),
    *(local, local, whole),
    *(local, local),
  )


def test_more_active_experts_than_experts():
  config = _least(
    model_type='mixtral', num_local_experts=2, num_experts_per_tok=3
  )
  with pytest.raises(errors.UserError, match=r'^a\.json: 3 experts for each'):
    registry.from_hf(config, 'a.json')
