"""Files and configs of bases with latent attention."""

import decoder_cases
import pytest
import safetensors.torch
import torch

from vtokens import config
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.families import registry
from vtokens.models.mixers.latent_attention import LatentAttention
from vtokens.planning import known_models

_V3 = known_models.CONFIGS['deepseek-ai/DeepSeek-V3'][0]
_LITE = known_models.CONFIGS['deepseek-ai/DeepSeek-V2-Lite-Chat'][0]


def test_layers_that_predict_further_tokens_are_not_read(tmp_path):
  decoder_cases.save(tmp_path, 'deepseek_v3', num_hidden_layers=2)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  tensors['model.layers.2.eh_proj.weight'] = torch.ones(4, 8)
  safetensors.torch.save_file(tensors, file, {'format': 'pt'})
  opened = frozen_base.open_base(config.Base(str(tmp_path)))
  assert opened.config.num_layers == 2
  tensors['model.layers.1.other.weight'] = torch.ones(4, 8)
  safetensors.torch.save_file(tensors, file, {'format': 'pt'})
  with pytest.raises(errors.UserError, match=r'surplus: .*1\.other\.weight'):
    frozen_base.open_base(config.Base(str(tmp_path)))


def test_what_is_kept_of_a_token():
  base = registry.from_hf(_V3)
  assert base.cache_widths == (64, 512)
  assert base.num_kv_heads == 1


def test_scores_have_the_temperature_of_yarn():
  """DeepSeek's own code, `DeepseekV3Attention` on the hub."""
  base = registry.from_hf(_V3)
  assert base.attention_scale == pytest.approx(192**-0.5 * 1.3688879**2)
  assert base.layer_pattern[0].rope.attention_factor == 1.0


def test_kimi_is_deepseek():
  assert registry.from_hf({**_V3, 'model_type': 'kimi_k2'}) == (
    registry.from_hf(_V3)
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model_type': 'deepseek_v32'}, 'indexer'),
    ({'model_type': 'glm_moe_dsa'}, 'indexer'),
    ({'model_type': 'deepseek_v4'}, 'indexer'),
    ({**_LITE, 'norm_topk_prob': True}, 'norm_topk_prob is True'),
    ({**_LITE, 'topk_method': 'noaux_tc'}, 'topk_method'),
    ({**_LITE, 'moe_layer_freq': 2}, 'moe_layer_freq is 2'),
    ({**_LITE, 'num_key_value_heads': 8}, 'num_key_value_heads is 8'),
    ({**_V3, 'scoring_func': 'softmax'}, 'scoring_func'),
    ({**_V3, 'head_dim': 128}, 'head_dim is 128, expected 64'),
    ({**_V3, 'num_experts_per_tok': 200}, '200 experts.* 4 groups of 32'),
  ],
)
def test_what_is_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    registry.from_hf(fields)


@pytest.mark.parametrize(
  ('tokens', 'slots', 'absorbed'),
  [(1, 1, True), (150, 550, True), (151, 550, False), (550, 0, False)],
)
def test_the_form_with_fewer_multiplications(tokens, slots, absorbed):
  attention = LatentAttention(rank=512, plain=128, rotated=64, value=128)
  assert attention.is_absorbed(tokens, slots) == absorbed
