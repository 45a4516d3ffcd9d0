"""Who may use a server: hosts, and the API key."""

import hashlib
import hmac
import ipaddress
import os
import pathlib

from vtokens.host import errors

VARIABLE = 'VTOKENS_API_KEY'
_LEAST_KEY = 8
_MOST_KEY_BYTES = 4096


class Key:
  """The API key of a server; its `repr` does not show it.

  Args:
    text: the key; '' for none.
  """

  def __init__(self, text: str = ''):
    self._digest = _digest(text) if text else b''

  def __bool__(self) -> bool:
    return bool(self._digest)

  def admits(self, header: str) -> bool:
    """Whether an `Authorization` header has the key; takes constant time."""
    kind, _, given = header.partition(' ')
    # Digests have one length, so that nothing tells that of the key.
    same = hmac.compare_digest(self._digest, _digest(given.strip()))
    return not self or (same and kind.lower() == 'bearer')


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()


def read_key(file: str | None) -> Key:
  """Reads the key of a file, or else of the environment.

  Args:
    file: path of the file; None to look at the variable `VARIABLE`.

  Raises:
    errors.UserError: the file cannot be read, or the key is no key.
  """
  if file is None:
    text, where = os.environ.get(VARIABLE, ''), VARIABLE
    if not text:
      return Key()
  else:
    where = f'--key_file={file}'
    try:
      with pathlib.Path(file).open('rb') as opened:
        text = opened.read(_MOST_KEY_BYTES).decode().strip()
    except (OSError, ValueError) as e:
      why = getattr(e, 'strerror', None) or 'it is no text in UTF-8'
      raise errors.UserError(
        f'{where}: the key cannot be read: {why}'
      ) from None
  if (
    len(text) < _LEAST_KEY
    or not text.isascii()
    or not text.isprintable()
    or ' ' in text
  ):
    raise errors.UserError(
      f'{where}: expected one line with a key of at least {_LEAST_KEY} '
      'printable ASCII characters without spaces'
    )
  return Key(text)


def is_loopback(host: str) -> bool:
  """Whether only programs of this machine can reach an address."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def check(host: str, key: Key, allow_no_key: bool) -> None:
  """Refuses to listen to other machines without a key.

  Raises:
    errors.UserError: other machines could ask without a key.
  """
  if not key and not allow_no_key and not is_loopback(host):
    raise errors.UserError(
      f'--host={host}: other machines could use this server, and there is no '
      f'API key: give --key_file FILE or set {VARIABLE}, listen on 127.0.0.1, '
      'or allow it with --allow_no_key'
    )


def names_loopback(header: str) -> bool:
  """Whether a `Host` header names this machine.

  A page of another site can let its own name lead to 127.0.0.1, and would then
  be allowed to read replies (DNS rebinding).
  """
  host = header.strip()
  if host.startswith('['):
    host = host[1:].partition(']')[0]
  else:
    host = host.partition(':')[0]
  return is_loopback(host.lower())
