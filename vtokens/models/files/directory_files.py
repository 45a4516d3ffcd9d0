"""The files of a Hugging Face directory, before they are read."""

import pathlib
from collections.abc import Callable

from vtokens.host import errors, json_files, paths
from vtokens.models.files.quantised import formats

INDEX_FILE = 'model.safetensors.index.json'
SINGLE_FILE = 'model.safetensors'
# If this file exists, transformers adds an adapter to the weights.
_ADAPTER = 'adapter_config.json'
# Files that are read besides the weights.
_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  INDEX_FILE,
  _ADAPTER,
  *formats.FILES,
)
# Largest size of each of these files, in bytes.
_LARGEST = 1 << 30
AGAIN = 'download or copy it again'


def check(directory: str | pathlib.Path) -> None:
  """Raises if a file of a model cannot be read.

  Raises:
    errors.UserError: a file is a directory, a pipe, a device, or too large.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.UserError(
      f'{directory}: expected a Hugging Face model directory or a .gguf file'
    )
  for path in sorted(directory.iterdir()):
    named = path.suffix == '.safetensors' or path.name in _FILES
    if named and path.exists() and not path.is_file():
      what = 'a directory' if path.is_dir() else 'no regular file'
      raise errors.UserError(f'{path}: is {what}, expected a file; {AGAIN}')
    if path.name in _FILES:
      paths.check_file(path, _LARGEST)


def with_weights(
  directory: pathlib.Path, text_name: Callable[[str], str | None]
) -> list[pathlib.Path]:
  """The files that have a tensor of the text part.

  Args:
    directory: the directory.
    text_name: a stored name -> the tensor's name in the text part; None for a
      tensor of another part.

  Raises:
    errors.UserError: there are no weights or only pickled weights; a file in
      the index is missing or in another directory; there is an adapter next to
      the weights.
  """
  index = directory / INDEX_FILE
  has_single = (directory / SINGLE_FILE).exists()
  _check_adapter(directory, has_single or index.exists())
  if index.exists():
    files = json_files.read(index, {'weight_map': {str: str}}, AGAIN)
    names = sorted(
      {
        file
        for name, file in files['weight_map'].items()
        if text_name(name) is not None
      }
    )
    for name in names:
      if (
        pathlib.PurePath(name).name != name
        or name in ('.', '..')
        or '\0' in name
        or not name.endswith('.safetensors')
      ):
        raise errors.UserError(
          f'{index}: weight_map names {errors.shorten(repr(name))}, expected a '
          'plain name of a .safetensors file inside the directory'
        )
    if not names:
      raise errors.UserError(f'{index}: weight_map is empty; {AGAIN}')
    if has_single and SINGLE_FILE not in names:
      raise errors.UserError(
        f'{directory}: holds {SINGLE_FILE} and {INDEX_FILE}, which names other '
        'files: transformers would read the first, others the second; move '
        'one of them away'
      )
    paths = [directory / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise errors.UserError(
        f'{directory}: {len(missing)} of {len(paths)} weight files are '
        f'missing: {errors.several(missing)}; finish the download'
      )
    return paths
  if has_single:
    return [directory / SINGLE_FILE]
  pickled = [*directory.glob('*.bin'), *directory.glob('*.pt')]
  if pickled:
    raise errors.UserError(
      f'{directory}: only pickled weights ({pickled[0].name}), which can run '
      'code when read; convert them to safetensors with '
      'save_pretrained(..., safe_serialization=True)'
    )
  raise errors.UserError(
    f'{directory}: found neither {SINGLE_FILE} nor {INDEX_FILE}'
  )


def _check_adapter(directory: pathlib.Path, has_weights: bool) -> None:
  """Raises if transformers would add an adapter to the weights.

  Only the owner knows whether the adapter is intended: PEFT leaves such files
  next to merged weights, too.
  """
  path = directory / _ADAPTER
  if not path.exists():
    return
  values = json_files.read(path)
  kind = errors.shorten(values.get('peft_type') or 'PEFT', 40)
  if has_weights:
    raise errors.UserError(
      f'{path}: a {kind} adapter beside the weights, which transformers puts '
      'on them and vtokens does not. If it belongs to the model, merge it '
      '(PeftModel.merge_and_unload, then save_pretrained into a new '
      'directory) and name that directory; if the weights are meant as they '
      f'are, e.g. merged already, move {_ADAPTER} out of the directory'
    )
  base = values.get('base_model_name_or_path') or 'its base'
  raise errors.UserError(
    f'{directory}: holds a {kind} adapter alone, no model; merge it into '
    f'{errors.shorten(base)} (PeftModel.merge_and_unload, then save_pretrained '
    'into a new directory, the tokenizer too) and name that directory'
  )
