"""Tests of vtokens.server.access."""

import pytest

from vtokens.host import errors
from vtokens.server import access


@pytest.mark.parametrize(
  'host, expected',
  [
    ('127.0.0.1', True),
    ('127.8.0.1', True),
    ('::1', True),
    ('localhost', True),
    ('0.0.0.0', False),
    ('::', False),
    ('10.0.0.1', False),
    ('localhost.example.org', False),
    ('', False),
  ],
)
def test_loopback(host, expected):
  assert access.is_loopback(host) is expected
  key, none = access.Key('a secret'), access.Key()
  access.check(host, key, allow_no_key=False)
  access.check(host, none, allow_no_key=True)
  if expected:
    access.check(host, none, allow_no_key=False)
  else:
    with pytest.raises(errors.UserError, match=r'--host=.*--key_file'):
      access.check(host, none, allow_no_key=False)


@pytest.mark.parametrize(
  'header, expected',
  [
    ('127.0.0.1:8000', True),
    ('LOCALHOST', True),
    ('[::1]:8000', True),
    ('evil.example:8000', False),
    ('127.0.0.1.evil.example', False),
    ('', False),
  ],
)
def test_host_header(header, expected):
  assert access.names_loopback(header) is expected


def test_key():
  key = access.Key('a-secret-key')
  assert key and key.admits('Bearer a-secret-key')
  for header in ('', 'a-secret-key', 'Basic a-secret-key', 'Bearer a-secret'):
    assert not key.admits(header)
  assert not key.admits('Bearer ä\udcff')
  assert 'secret' not in repr(key) + str(vars(key))
  assert not access.Key() and access.Key().admits('')


def test_key_of_a_file_or_the_environment(tmp_path, monkeypatch):
  monkeypatch.delenv(access.VARIABLE, raising=False)
  assert not access.read_key(None)
  monkeypatch.setenv(access.VARIABLE, 'of-the-environment')
  assert access.read_key(None).admits('Bearer of-the-environment')
  file = tmp_path / 'key'
  file.write_text('of-the-file\n')
  assert access.read_key(str(file)).admits('Bearer of-the-file')


@pytest.mark.parametrize(
  'content',
  [b'', b'short\n', b'two words here', b'line\nbreaks\n', b'\xff' * 9],
)
def test_bad_key(content, tmp_path):
  file = tmp_path / 'key'
  file.write_bytes(content)
  with pytest.raises(errors.UserError, match='--key_file') as caught:
    access.read_key(str(file))
  # The name of the directory has them, too.
  message = str(caught.value).replace(str(file), '')
  assert not any(word in message for word in ('short', 'two', 'breaks'))


def test_no_key_file(tmp_path):
  with pytest.raises(errors.UserError, match='No such file'):
    access.read_key(str(tmp_path / 'none'))
