r"""Imports a table of virtual tokens as a finished run.

    python -m vtokens.import_table --from spring-pt \
      --path hub:yutaozhu94/SPRING/FILE.pt \
      --base meta-llama/Llama-2-7b-chat-hf --out runs/spring

The run can be evaluated, asked and exported like a run of vtokens.train.
Formats: spring-pt (the file format of SPRING's authors, with their templates),
vtokens (an export of `vtokens.export`, in any format).
"""

import hashlib
import pathlib
from collections.abc import Sequence

import huggingface_hub
import numpy as np
from absl import flags as absl_flags

from vtokens import config
from vtokens.exports import (
  public_names,
  spring_file,
  trained_table,
  vocabulary_rows,
)
from vtokens.exports.export_config import NAMES
from vtokens.host import claimed_directory, errors, writers
from vtokens.models import frozen_base
from vtokens.models.families import registry
from vtokens.run import workdir
from vtokens.serving import artifact, prompt_ids, table_file
from vtokens.serving.artifact import (
  Artifact,
  BaseIdentity,
  Meta,
  Prompt,
  Tokens,
)
from vtokens.settings import flags

_HUB = 'hub:'
FORMATS = ('vtokens', 'spring-pt')


def import_table(kind: str, path: str, base: str, out: str) -> None:
  """Writes a finished run with an imported table.

  Args:
    kind: one of `FORMATS`.
    path: a directory for vtokens, a file for spring-pt, `hub:ORG/NAME/FILE`
      or `hub:ORG/NAME@REVISION/FILE` for one on the Hugging Face hub.
    base: path or hub id of the base, as in `config.base.path`; for vtokens ''
      means the base named in the export.
    out: the run's work directory, which must not exist.

  Raises:
    errors.UserError: bad input, or the base is not the table's base.
  """
  with claimed_directory.new(out) as directory:
    table, settings = _read(kind, path, base)
    trained_table.write(directory, table, settings)
  writers.say(f'{len(table.table)} virtual tokens written to {out}')


def _read(kind: str, path: str, base: str) -> tuple[Artifact, config.Config]:
  """Reads the table and makes its run's config; see `import_table`."""
  if kind == 'vtokens':
    table = artifact.read(path)
    artifact.check_kind(
      table.meta, 'table', f'--path {path}: a table is imported'
    )
    if not base and public_names.is_local(table.meta):
      _check_found(path, table.meta.base)
    settings = _settings(table, base)
    opened = frozen_base.open_base(settings.base)
    workdir.check_base(
      path,
      {
        'fingerprint': table.meta.base.fingerprint,
        'tokenizer_sha256': table.meta.base.tokenizer_sha256,
      },
      opened,
      advice='; give the path of the right one with --base',
    )
  else:
    file = _local(path)
    rows = spring_file.read(file)
    if not base:
      raise errors.UserError('--base: spring-pt does not say which base it is')
    settings = config.Config(base=config.Base(path=base), data=_no_data())
    opened = frozen_base.open_base(settings.base)
    table = _from_spring(rows, path, file, settings, opened)
  table_file.check_width(
    table.table, path, settings.base.path, opened.config.embed_dim
  )
  return table, settings


def _check_found(path: str, base: BaseIdentity) -> None:
  """Raises if the base is not at the path in an earlier version's export."""
  if not pathlib.Path(base.id).exists():
    raise errors.UserError(
      f'--base: the path of {base.id} is needed, on which the table in {path} '
      f'was trained (fingerprint {base.fingerprint}); the export has the '
      'name alone'
    )


def _settings(table: Artifact, base: str) -> config.Config:
  """The run's config, from the table's metadata."""
  prompt = table.meta.prompt
  settings = config.Config(
    base=config.Base(path=base or table.meta.base.id, dtype=_dtype(table)),
    templates=prompt.templates,
    data=_no_data(),
  )
  settings.virtual_tokens.position = prompt.position
  settings.data.max_prefix_tokens = prompt.max_prefix_tokens
  settings.data.max_suffix_tokens = prompt.max_suffix_tokens
  return _with_rows(settings, table.meta.shape[0], table.meta.num_trained)


def _dtype(table: Artifact) -> config.DType:
  """Dtype of training; the default for a table that was itself imported."""
  trained = table.meta.training.get('config', {}).get('base', {})
  dtype: config.DType = trained.get('dtype', config.Base.dtype)
  return dtype


def _no_data() -> config.Data:
  """A placeholder for the training data, which are unknown."""
  return config.Data(train=('imported',))


def _with_rows(
  settings: config.Config, rows: int, trained: int
) -> config.Config:
  tokens = settings.virtual_tokens
  tokens.num_virtual_tokens, tokens.num_active = rows, trained
  if trained < rows:
    tokens.draw = 'fixed'
  settings.eval.num_active = (trained,)
  return settings


def _from_spring(
  rows: np.ndarray,
  path: str,
  file: str,
  settings: config.Config,
  opened: frozen_base.OpenBase,
) -> Artifact:
  _with_rows(settings, len(rows), len(rows))
  prompt = Prompt(
    templates=settings.templates,
    position=settings.virtual_tokens.position,
    max_prefix_tokens=settings.data.max_prefix_tokens,
    max_suffix_tokens=settings.data.max_suffix_tokens,
  )
  first = vocabulary_rows.first_id(opened)
  ids = tuple(range(first, first + len(rows)))
  return Artifact(
    rows,
    Meta(
      format=artifact.FORMATS['table'],
      base=BaseIdentity(
        id=settings.base.path,
        revision=frozen_base.revision(settings.base.path),
        fingerprint=opened.fingerprint,
        tokenizer_sha256=opened.tokenizer.sha256,
        vocab_size=opened.config.vocab_size,
        scales_embeddings=registry.scales_lookup(opened.config),
      ),
      prompt=prompt,
      tokens=Tokens(
        ids=ids,
        names=tuple(NAMES.format(i=i + 1) for i in range(len(rows))),
        probe=prompt_ids.probe(
          prompt_ids.assembler(opened.tokenizer, prompt), ids
        ),
      ),
      table_sha256=table_file.sha256(rows),
      shape=rows.shape,
      num_trained=len(rows),
      metrics={},
      training={
        'imported': {
          'from': path,
          'revision': frozen_base.commit(file),
          'sha256': hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest(),
        }
      },
      versions={},
    ),
  )


def _local(path: str) -> str:
  """The local file; a file on the hub is downloaded first.

  Raises:
    errors.UserError: the hub does not have the file.
  """
  if not path.startswith(_HUB):
    return path
  parts = path.removeprefix(_HUB).split('/', 2)
  if len(parts) != 3:
    raise errors.UserError(
      f'--path {path}: expected {_HUB}ORG/NAME/FILE or '
      f'{_HUB}ORG/NAME@REVISION/FILE'
    )
  organisation, name, file = parts
  name, _, revision = name.partition('@')
  try:
    return huggingface_hub.hf_hub_download(
      f'{organisation}/{name}', file, revision=revision or None
    )
  # Errors of the hub and of its HTTP client.
  except Exception as e:
    raise errors.UserError(f'--path {path}: cannot be had: {e}') from e


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  values = absl_flags.FLAGS
  kind, path, out = values['from'].value, values.path, values.out
  if kind not in FORMATS:
    raise errors.UserError(f'--from: expected one of {", ".join(FORMATS)}')
  for name, value in (('path', path), ('out', out)):
    if not value:
      raise errors.UserError(f'--{name} is needed')
  import_table(kind, path, values.base or '', out)


if __name__ == '__main__':
  absl_flags.DEFINE_string('from', None, f'Format: {", ".join(FORMATS)}.')
  flags.define_path(
    'path', None, 'File, directory or hub:ORG/NAME[@REVISION]/FILE.'
  )
  flags.define_path(
    'base',
    None,
    'The base, as config.base.path; default: the one that the export names.',
  )
  flags.define_path(
    'out', None, 'Work directory of the run, which must not exist.'
  )
  flags.run(main)
