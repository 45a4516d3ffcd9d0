"""The text part of multimodal models against transformers' whole model."""

import copy
import json

import flax.nnx as nnx
import numpy as np
import pytest
import safetensors.torch
import tiny_models
import torch
import transformers
import wrapped_models

from vtokens import config
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.families import registry, wrappers
from vtokens.models.files import directory_files, hf_directory, weights

_IDS = np.random.default_rng(0).integers(256, size=(2, 40)).astype(np.int32)


@nnx.jit
def _run(decoder, ids):
  positions = np.broadcast_to(
    np.arange(ids.shape[1], dtype=np.int32), ids.shape
  )
  return decoder.logits(decoder(decoder.embed(ids), positions, ids=ids)[0])


def _logits(directory):
  """Ours, of the files in a directory."""
  decoder = weights.load_decoder(
    hf_directory.SafetensorsSource(directory),
    hf_directory.read_config(directory),
    np.dtype(np.float32),
    partitioning.make_mesh((-1, 1, 1)),
  )
  return np.asarray(_run(decoder, _IDS))


def _expected(model):
  with torch.no_grad():
    return model(torch.from_numpy(_IDS).long()).logits.numpy()


def _fingerprint(directory):
  base = frozen_base.open_base(config.Base(str(directory)))
  return base.fingerprint, base.config


def _config(directory):
  return json.loads((directory / 'config.json').read_text())


def _write(directory, values):
  (directory / 'config.json').write_text(json.dumps(values))


def _unwrapped(directory, model, name):
  """Saves the text part of a model as a model of its own."""
  values = _config(directory)
  text = wrappers.text_fields(values, '')
  text['model_type'] = name
  text.setdefault('tie_word_embeddings', values['tie_word_embeddings'])
  out = directory.parent / f'{directory.name}_unwrapped'
  plain = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**text)
  )
  part = model.model
  part = getattr(part, 'language_model', getattr(part, 'text_model', part))
  plain.model.load_state_dict(part.state_dict())
  plain.lm_head.load_state_dict(model.lm_head.state_dict())
  plain.save_pretrained(out)
  tiny_models.save_tokenizer(out)
  return out


def test_every_wrapper_has_a_tiny_model():
  assert set(wrapped_models.WRAPPERS) == set(wrappers.WRAPPERS)


# One of each way to name the tensors of the text part.
_SAMPLE = ('gemma3', 'qwen2_5_vl', 'qwen3_vl_moe', 'smolvlm')


@pytest.mark.parametrize(
  'model_type',
  [
    name
    if name in _SAMPLE
    else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in wrappers.WRAPPERS
  ],
)
def test_text_is_as_in_the_whole_model(model_type, tmp_path):
  """Logits, and the fingerprint of the same decoder outside the wrapper."""
  directory = tmp_path / 'wrapped'
  model = wrapped_models.save(directory, model_type)
  expected = _expected(model)
  assert expected.std() > 0.3
  np.testing.assert_allclose(_logits(directory), expected, rtol=0, atol=2e-4)
  found, architecture = _fingerprint(directory)
  plain = _unwrapped(directory, model, architecture.model_type)
  alone = _fingerprint(plain)
  assert architecture == alone[1]
  # Its files have a tensor for all experts, those of the decoder one for each.
  assert (found == alone[0]) == (model_type != 'qwen3_vl_moe')


def test_mistral_small_4(tmp_path):
  """The wrapper of Mistral Small 3 around another text part."""
  directory = tmp_path / 'wrapped'
  model = wrapped_models.save(
    directory, 'mistral3', **wrapped_models.MISTRAL_SMALL_4
  )
  expected = _expected(model)
  assert expected.std() > 0.3
  np.testing.assert_allclose(_logits(directory), expected, rtol=0, atol=2e-4)
  found, architecture = _fingerprint(directory)
  plain = _unwrapped(directory, model, 'mistral4')
  assert (found, architecture) == _fingerprint(plain)


@pytest.mark.parametrize(
  ('model_type', 'pattern', 'name'),
  [
    ('gemma3', r'^language_model\.model\.', 'model.language_model.'),
    ('llava', r'^language_model\.(model|lm_head)', r'\1.language_model'),
    ('qwen2_vl', r'^model\.', 'model.language_model.'),
    ('qwen2_vl', r'^visual\.', 'model.visual.'),
  ],
)
def test_names_of_other_versions_of_transformers(
  model_type, pattern, name, tmp_path
):
  """transformers reads them, and the base is the same."""
  wrapped_models.save(tmp_path, model_type)
  before = _fingerprint(tmp_path)
  if model_type == 'llava':
    wrapped_models.rename(tmp_path, r'^language_model\.lm_head', 'lm_head')
    pattern, name = r'^language_model\.model\.', 'model.language_model.'
  wrapped_models.rename(tmp_path, pattern, name)
  assert _fingerprint(tmp_path) == before
  again = transformers.AutoModelForImageTextToText.from_pretrained(
    tmp_path, attn_implementation='eager'
  )
  np.testing.assert_allclose(
    _logits(tmp_path), _expected(again.eval()), rtol=0, atol=2e-4
  )


def test_the_vision_part_is_never_read(tmp_path):
  """Neither tensors that are not floats, nor files, nor their config."""
  wrapped_models.save(tmp_path, 'smolvlm')
  before = _fingerprint(tmp_path)
  single = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(single)
  vision = {n for n in tensors if 'vision' in n or 'connector' in n}
  for name in vision:
    tensors[name] = torch.zeros(3, dtype=torch.uint8)
  safetensors.torch.save_file(tensors, single)
  values = _config(tmp_path)
  values['vision_config'] = {'model_type': 'of tomorrow'}
  _write(tmp_path, values)
  assert _fingerprint(tmp_path) == before
  # A file that has no tensor of the text part need not be there.
  single.unlink()
  text = {n: x for n, x in tensors.items() if n not in vision}
  safetensors.torch.save_file(text, tmp_path / 'a.safetensors')
  places = {n: 'b' if n in vision else 'a' for n in tensors}
  index = {'weight_map': {n: f'{f}.safetensors' for n, f in places.items()}}
  (tmp_path / directory_files.INDEX_FILE).write_text(json.dumps(index))
  assert _fingerprint(tmp_path) == before


def test_the_first_name_of_a_text_part(tmp_path):
  wrapped_models.save(tmp_path, 'exaone4_5')
  before = _fingerprint(tmp_path)
  values = _config(tmp_path)
  values['text_config']['model_type'] = 'exaone4_5_text'
  _write(tmp_path, values)
  assert _fingerprint(tmp_path) == before


def test_a_flat_config(tmp_path):
  """Published files of Qwen2-VL have the text part's fields outside."""
  wrapped_models.save(tmp_path, 'qwen2_vl')
  before = _fingerprint(tmp_path)
  values = _config(tmp_path)
  text = values.pop('text_config')
  rope = text.pop('rope_parameters')
  del text['model_type']
  values |= text
  values |= {
    'rope_theta': rope['rope_theta'],
    'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 1, 1]},
  }
  _write(tmp_path, values)
  assert _fingerprint(tmp_path) == before
  again = transformers.AutoModelForImageTextToText.from_pretrained(
    tmp_path, attn_implementation='eager'
  )
  np.testing.assert_allclose(
    _logits(tmp_path), _expected(again.eval()), rtol=0, atol=2e-4
  )


# As published: files of transformers 4 omit fields that equal the default.
_GEMMA_3_4B = {
  'architectures': ['Gemma3ForConditionalGeneration'],
  'boi_token_index': 255999,
  'eoi_token_index': 256000,
  'eos_token_id': [1, 106],
  'image_token_index': 262144,
  'initializer_range': 0.02,
  'mm_tokens_per_image': 256,
  'model_type': 'gemma3',
  'text_config': {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.50.0.dev0',
  'vision_config': {'hidden_size': 1152, 'model_type': 'siglip_vision_model'},
}


@pytest.mark.parametrize(
  ('model_type', 'text'),
  [
    ('gemma3', {'model_type': 'gemma3_text', 'final_logit_softcapping': 30.0}),
    ('llava_next', {'model_type': 'granite', 'logits_scaling': 8.0}),
    ('llava', {'model_type': 'cohere2', 'logit_scale': 0.25}),
  ],
)
def test_logits_that_the_wrapper_would_not_scale(model_type, text):
  with pytest.raises(errors.UserError, match='text_config: logits of'):
    registry.from_hf({'model_type': model_type, 'text_config': text})


def test_missing_fields_of_the_text_part():
  found = registry.from_hf(_GEMMA_3_4B)
  assert (found.vocab_size, found.num_heads, found.num_kv_heads) == (
    262208,
    8,
    4,
  )
  assert found.tie_embeddings
  assert [bool(k.window) for k in found.layer_kinds[:7]] == [True] * 5 + [
    False,
    True,
  ]
  full = found.layer_kinds[5].rope
  assert (full.type, full.factor, full.theta) == ('linear', 8.0, 1e6)


@pytest.mark.parametrize(
  ('outer', 'text', 'tied'),
  [
    ({}, {}, True),
    ({'tie_word_embeddings': False}, {}, False),
    ({}, {'tie_word_embeddings': False}, False),
    ({'tie_word_embeddings': False}, {'tie_word_embeddings': True}, True),
  ],
)
def test_tied_heads(outer, text, tied):
  values = {**copy.deepcopy(_GEMMA_3_4B), **outer}
  values['text_config'] |= text
  assert registry.from_hf(values).tie_embeddings == tied


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'text_config': None}, 'text_config is missing, expected an object'),
    ({'text_config': []}, r'text_config is \[\], expected an object'),
    (
      {'text_config': {'model_type': 'gpt2'}},
      "'gemma3' with a text part of type 'gpt2', which is not supported "
      r'\(fused heads, .*\); `vtokens models` lists',
    ),
    (
      {'model_type': 'paligemma'},
      "'paligemma', around a text part of type 'gemma3_text', not supported "
      r'\(sees its prompt in both directions\)',
    ),
    (
      {'quantization_config': {'quant_method': 'gptq'}},
      'text_config: quantization_config is',
    ),
    ({'is_causal': False}, 'text_config: is_causal is False'),
    (
      {'text_config': {**_GEMMA_3_4B['text_config'], 'hidden_size': 'x'}},
      "text_config: hidden_size is 'x', expected a positive int",
    ),
  ],
)
def test_what_is_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    registry.from_hf({**_GEMMA_3_4B, **changes})


def test_the_same_weight_twice(tmp_path):
  wrapped_models.save(tmp_path, 'gemma3')
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.torch.load_file(file)
  name = 'language_model.model.norm.weight'
  tensors['model.language_model.norm.weight'] = tensors[name].clone()
  safetensors.torch.save_file(tensors, file)
  with pytest.raises(errors.UserError, match='are the same weight'):
    hf_directory.SafetensorsSource(tmp_path)
