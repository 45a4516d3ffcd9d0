"""The files in configs/: each loads, and its base is what it should be."""

import pathlib

import pytest

from vtokens import config as config_lib
from vtokens.host import errors, paths
from vtokens.models.abstract import num_params
from vtokens.models.families import registry
from vtokens.planning import known_models
from vtokens.settings import config_file

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'

PUBLISHED = known_models.CONFIGS
BASES = sorted(path.stem for path in CONFIGS.glob('*.py'))
BASES.remove('quickstart')
BASES.remove('own_documents')
BASES.remove('refusals')


def _parse(argument):
  return config_file.load(argument, config_lib.Config)


def test_variants_of_the_quickstart(smollm2_path):
  """On the same file as the installed package has."""
  configs = {
    variant: _parse(f'{CONFIGS}/quickstart.py{variant}')
    for variant in ('', ':long', ':kv')
  }
  for variant, cfg in configs.items():
    config_lib.validate(cfg)
    kind = 'kv' if variant == ':kv' else 'table'
    assert cfg.virtual_tokens.kind == kind
    assert paths.resolve(cfg.base.path) == str(smollm2_path)
  assert len({cfg.workdir for cfg in configs.values()}) == 3
  with pytest.raises(errors.UserError, match="no variant 'rows'"):
    _parse(f'{CONFIGS}/quickstart.py:rows')


def test_own_documents_have_the_base_of_the_quickstart():
  own, first = (
    _parse(f'{CONFIGS}/{n}.py') for n in ('own_documents', 'quickstart')
  )
  config_lib.validate(own)
  assert own.base == first.base


@pytest.mark.parametrize('name', BASES)
@pytest.mark.parametrize('variant', ['', ':paper'])
def test_each_config_is_valid(name, variant):
  cfg = _parse(f'{CONFIGS / name}.py{variant}')
  config_lib.validate(cfg)
  assert cfg.base.path in PUBLISHED
  # Only these have no chat template.
  plain = name in ('mistral_7b', 'llama2_7b', 'llama2_13b')
  assert ('chat_prompt' in cfg.eval.conditions) == (not plain)
  longest = registry.from_hf(PUBLISHED[cfg.base.path][0]).longest_sequence
  assert cfg.context_length <= longest
  # Five passages of 100 words at 2 tokens each, with titles, are not cut.
  assert cfg.data.max_prefix_tokens >= 5 * 200
  tokens = cfg.virtual_tokens
  if variant:
    assert tokens == config_lib.VirtualTokens()
  else:
    assert (tokens.draws_per_example, tokens.always_all) == (2, True)


def test_no_two_configs_share_a_base_or_work_directory():
  configs = [
    _parse(f'{CONFIGS / name}.py{variant}')
    for name in BASES
    for variant in ('', ':paper')
  ]
  assert len({cfg.workdir for cfg in configs}) == len(configs)
  assert {cfg.base.path for cfg in configs} <= set(PUBLISHED)


@pytest.mark.parametrize('base', PUBLISHED)
def test_parameter_counts_are_the_published_ones(base):
  config, count = PUBLISHED[base]
  assert num_params(registry.from_hf(config)) == count


@pytest.mark.parametrize(
  ('base', 'active', 'billions', 'within'),
  [
    ('Qwen/Qwen3-30B-A3B-Instruct-2507', 3_353_032_704, 3.3, 0.06),
    ('mistralai/Mixtral-8x7B-Instruct-v0.1', 12_879_925_248, 12.9, 0.06),
    ('google/gemma-4-26B-A4B-it', 3_822_530_560, 3.8, 0.06),
    # The card rounds to billions.
    ('deepseek-ai/DeepSeek-V3', 37_552_282_624, 37, 0.6),
    # The cards leave out the embedding.
    (
      'deepseek-ai/DeepSeek-V2-Lite-Chat',
      2_661_150_208,
      2.4 + 102_400 * 2048 / 1e9,
      0.06,
    ),
    ('openai/gpt-oss-20b', 3_608_307_264 + 201_088 * 2880, 3.61 + 0.58, 0.06),
  ],
)
def test_parameters_that_a_token_uses(base, active, billions, within):
  """To the digit, and as far as the cards tell them."""
  config = registry.from_hf(PUBLISHED[base][0])
  assert num_params(config, active=True) == active
  assert abs(active / 1e9 - billions) < within
  assert num_params(config) > active


@pytest.mark.parametrize('base', PUBLISHED)
def test_published_configs_there_and_back(base):
  config = registry.from_hf(PUBLISHED[base][0])
  assert registry.from_hf(registry.to_hf(config)) == config


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
