"""The files in configs/: each loads, and its base is what it should be."""

import pathlib

import pytest

from vtokens import config as config_lib
from vtokens import errors, flags
from vtokens.models import families
from vtokens.models.decoder import num_params

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'

_LLAMA2 = {
  'model_type': 'llama',
  'vocab_size': 32000,
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 32,
  'hidden_act': 'silu',
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
  'pretraining_tp': 1,
  'rope_scaling': None,
  'tie_word_embeddings': False,
}
_LLAMA2_13B = {
  **_LLAMA2,
  'hidden_size': 5120,
  'intermediate_size': 13824,
  'num_hidden_layers': 40,
  'num_attention_heads': 40,
  'num_key_value_heads': 40,
}
_MISTRAL = {
  'model_type': 'mistral',
  'vocab_size': 32000,
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'hidden_act': 'silu',
  'max_position_embeddings': 32768,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
}

# The config.json on the hub, what does not change the numbers left out; and
# the number of parameters that the hub counts in its files.
PUBLISHED = {
  'mistralai/Mistral-7B-v0.1': (_MISTRAL, 7_241_732_096),
  'mistralai/Mistral-7B-Instruct-v0.1': (_MISTRAL, 7_241_732_096),
  'meta-llama/Llama-2-7b-hf': (_LLAMA2, 6_738_415_616),
  'meta-llama/Llama-2-7b-chat-hf': (_LLAMA2, 6_738_415_616),
  'meta-llama/Llama-2-13b-hf': (_LLAMA2_13B, 13_015_864_320),
  'meta-llama/Llama-2-13b-chat-hf': (_LLAMA2_13B, 13_015_864_320),
  'meta-llama/Llama-3.1-8B-Instruct': (
    {
      **_LLAMA2,
      'vocab_size': 128256,
      'intermediate_size': 14336,
      'num_key_value_heads': 8,
      'max_position_embeddings': 131072,
      'rope_theta': 500000.0,
      'rope_scaling': {
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
      'attention_bias': False,
      'mlp_bias': False,
    },
    8_030_261_248,
  ),
  'Qwen/Qwen2.5-7B-Instruct': (
    {
      'model_type': 'qwen2',
      'vocab_size': 152064,
      'hidden_size': 3584,
      'intermediate_size': 18944,
      'num_hidden_layers': 28,
      'num_attention_heads': 28,
      'num_key_value_heads': 4,
      'hidden_act': 'silu',
      'max_position_embeddings': 32768,
      'max_window_layers': 28,
      'rms_norm_eps': 1e-6,
      'rope_theta': 1000000.0,
      'sliding_window': 131072,
      'use_sliding_window': False,
      'tie_word_embeddings': False,
    },
    7_615_616_512,
  ),
  'Qwen/Qwen3-8B': (
    {
      'model_type': 'qwen3',
      'attention_bias': False,
      'vocab_size': 151936,
      'head_dim': 128,
      'hidden_size': 4096,
      'intermediate_size': 12288,
      'num_hidden_layers': 36,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'hidden_act': 'silu',
      'max_position_embeddings': 40960,
      'max_window_layers': 36,
      'rms_norm_eps': 1e-6,
      'rope_theta': 1000000,
      'rope_scaling': None,
      'sliding_window': None,
      'use_sliding_window': False,
      'tie_word_embeddings': False,
    },
    8_190_735_360,
  ),
  'microsoft/Phi-3-mini-4k-instruct': (
    {
      'model_type': 'phi3',
      'vocab_size': 32064,
      'hidden_size': 3072,
      'intermediate_size': 8192,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 32,
      'hidden_act': 'silu',
      'attention_bias': False,
      'max_position_embeddings': 4096,
      'original_max_position_embeddings': 4096,
      'rms_norm_eps': 1e-5,
      'rope_theta': 10000.0,
      'rope_scaling': None,
      'sliding_window': 2047,
      'tie_word_embeddings': False,
    },
    3_821_079_552,
  ),
  'google/gemma-2-9b-it': (
    {
      'model_type': 'gemma2',
      'vocab_size': 256000,
      'hidden_size': 3584,
      'intermediate_size': 14336,
      'num_hidden_layers': 42,
      'num_attention_heads': 16,
      'num_key_value_heads': 8,
      'head_dim': 256,
      'hidden_act': 'gelu_pytorch_tanh',
      'hidden_activation': 'gelu_pytorch_tanh',
      'attention_bias': False,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
      'query_pre_attn_scalar': 256,
      'max_position_embeddings': 8192,
      'rms_norm_eps': 1e-6,
      'rope_theta': 10000.0,
      'sliding_window': 4096,
    },
    9_241_705_984,
  ),
}
BASES = sorted(path.stem for path in CONFIGS.glob('*.py'))
BASES.remove('quickstart')


def _parse(argument):
  return flags._FileParser(config_lib.Config).parse(argument)


@pytest.mark.parametrize('name', BASES)
@pytest.mark.parametrize('variant', ['', ':paper'])
def test_each_config_is_valid(name, variant):
  cfg = _parse(f'{CONFIGS / name}.py{variant}')
  config_lib.validate(cfg)
  assert cfg.base.path in PUBLISHED
  # Only these have no chat template.
  plain = name in ('mistral_7b', 'llama2_7b', 'llama2_13b')
  assert ('chat_prompt' in cfg.eval.conditions) == (not plain)
  longest = families.from_hf(PUBLISHED[cfg.base.path][0]).longest_sequence
  assert cfg.context_length <= longest
  # Five passages of 100 words at 2 tokens each, with titles, are not cut.
  assert cfg.data.max_prefix_tokens >= 5 * 200


def test_no_two_configs_share_a_base_or_work_directory():
  configs = [
    _parse(f'{CONFIGS / name}.py{variant}')
    for name in BASES
    for variant in ('', ':paper')
  ]
  assert len({cfg.workdir for cfg in configs}) == len(configs)
  assert {cfg.base.path for cfg in configs} == set(PUBLISHED)


@pytest.mark.parametrize('base', PUBLISHED)
def test_parameter_counts_are_the_published_ones(base):
  config, count = PUBLISHED[base]
  assert num_params(families.from_hf(config)) == count


@pytest.mark.parametrize('base', PUBLISHED)
def test_published_configs_there_and_back(base):
  config = families.from_hf(PUBLISHED[base][0])
  assert families.from_hf(families.to_hf(config)) == config


def test_hyperparameters_of_the_paper():
  cfg = _parse(f'{CONFIGS / "mistral_7b.py"}:paper')
  assert cfg.data.batch_size == 256
  assert cfg.data.passages == config_lib.Passages(
    number=(1, 5), depth=5, retrievers=('e5-large',)
  )
  assert cfg.eval.retriever == 'e5-large'
  # The eight training sets and twelve test sets that configs/data/ builds.
  assert len(cfg.data.train) == 8 and len(cfg.data.test) == 12
  assert all(s.startswith('records:') for s in cfg.data.train + cfg.data.test)
  assert cfg.eval.num_passages == 3
  assert cfg.optim.learning_rate == 1e-4
  assert cfg.train.num_steps == 5179  # 3 epochs of 441,976 questions.
  assert cfg.optim.warmup_steps == 517
  assert cfg.virtual_tokens.num_virtual_tokens == 50
  assert cfg.virtual_tokens.draw == 'uniform'
  assert cfg.data.mixture == config_lib.Mixture(weighting='size')


def test_unknown_variant():
  with pytest.raises(errors.UserError) as e:
    _parse(f'{CONFIGS / "mistral_7b.py"}:papers')
  assert "no variant 'papers'" in str(e.value)
