"""The work directory of a training run: its files, and reading them later.

A run writes them in this order:

  config.json, data.json, base.json  what the run is: settings, hashes of its
                                     data, identity of its base (`claim`)
  checkpoints/, best/, metrics.jsonl while it trains
  untrained.json, predictions/       scores, before and after training
  table.safetensors                  the trained table (`write_trained`), or
  keys_values.safetensors            keys and values with kind=kv
  summary.json                       the result; it ends the run (`finish`)

`vtokens.import_table` writes the same files, as far as it has their content.
Reading a finished run needs no JAX.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vtokens import config
from vtokens.host import (
  claimed_directory,
  errors,
  json_files,
  paths,
  writers,
)
from vtokens.serving import trained_file

if typing.TYPE_CHECKING:
  from vtokens.models.frozen_base import OpenBase

_CONFIG, _DATA, _BASE = 'config.json', 'data.json', 'base.json'
_UNTRAINED, _SUMMARY = 'untrained.json', 'summary.json'

_SCORES = {'em': float, 'f1': float, 'n': int}
_SUMMARY_SHAPE = {
  'conditions': {str: _SCORES},
  'k': {str: {'em': float, 'f1': float}},
  'steps': int,
  'train_seconds': float,
  'total_seconds': float,
  'peak_rss_gib': float,
}
_PUT_BACK = (
  'it says what the run is: put it back, or choose another --config.workdir'
)


@dataclasses.dataclass(frozen=True)
class RecordedClaim:
  """What the run in a work directory is, as far as it is recorded.

  Attributes:
    settings: content of config.json; see `run_identity.to_dict`.
    data: content of data.json; see `run_identity.content`.
    base: content of base.json; see `base_identity`.
  """

  settings: dict[str, Any] | None = None
  data: dict[str, Any] | None = None
  base: dict[str, str] | None = None


class RunDir:
  """The work directory of a run.

  Args:
    path: the directory, on a disk or an object store.

  Attributes:
    path: the same.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def read_claim(self) -> dict[str, Any]:
    """Returns the fields of a `RecordedClaim`, as JSON values.

    Raises:
      errors.UserError: a file is damaged.
    """
    return {
      'settings': self._read(_CONFIG, dict, _PUT_BACK),
      'data': self._read(_DATA, dict, _PUT_BACK),
      'base': self._read(_BASE, {str: str}, _PUT_BACK),
    }

  def refuse(self, what: str, lines: Sequence[str]) -> None:
    """Raises if the directory holds another run.

    Args:
      what: what the other run is of, e.g. 'another config'.
      lines: one per difference; none if it is the same run.

    Raises:
      errors.UserError: there are differences.
    """
    message = claimed_directory.difference(self.path, f'a run of {what}', lines)
    if message:
      raise errors.UserError(
        f'{message}\nchoose another --config.workdir, or repeat the same '
        'command to continue that run'
      )

  def claim(self, claim: RecordedClaim) -> None:
    """Writes what the run is; to be called once all inputs are checked.

    Raises:
      errors.NotWrittenError: a file cannot be written.
    """
    for name, content in (
      (_CONFIG, claim.settings),
      (_DATA, claim.data),
      (_BASE, claim.base),
    ):
      if content is not None:
        writers.write_json(self.path / name, content)

  def read_untrained(self) -> dict[str, dict[str, Any]] | None:
    """Returns the scores of the base by condition, or None.

    Raises:
      errors.UserError: the file is damaged.
    """
    advice = 'delete it to have the base scored again'
    scores: dict[str, dict[str, Any]] | None = self._read(
      _UNTRAINED, {str: _SCORES}, advice
    )
    return scores

  def write_untrained(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps the scores of the base, so that a restart reuses them."""
    writers.write_json(self.path / _UNTRAINED, scores)

  def write_trained(
    self,
    kind: config.Kind,
    values: trained_file.Trained,
    metadata: dict[str, Any],
  ) -> None:
    """Writes the trained values, whole or not at all.

    Args:
      kind: what they are.
      values: a table, or keys and values.
      metadata: JSON values, among them the fingerprint of the base.

    Raises:
      errors.NotWrittenError: they cannot be written.
    """
    path = self.path / trained_file.NAMES[kind]
    trained_file.save(path, values, metadata)

  def read_summary(self) -> dict[str, Any] | None:
    """Returns summary.json of a training run, or None if it is not finished.

    Raises:
      errors.UserError: the file is damaged.
    """
    advice = 'delete it to have the virtual tokens scored again'
    summary: dict[str, Any] | None = self._read(
      _SUMMARY, _SUMMARY_SHAPE, advice
    )
    return summary

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, which ends the run."""
    writers.write_json(self.path / _SUMMARY, summary)

  def read(self, field: str, *, scored: bool = False) -> 'FinishedRun':
    """Reads the trained values and what they were trained with.

    Args:
      field: the flag or config field that names the directory, for messages.
      scored: whether the run must have ended. Otherwise its values are enough.

    Raises:
      errors.UserError: there is no such run, or a file of it is damaged.
    """
    self._check_there(field, _CONFIG)
    settings = json_files.read(self.path / _CONFIG)
    cfg = config.from_dict({**settings, 'workdir': str(self.path)})
    kind = cfg.virtual_tokens.kind
    name = trained_file.NAMES[kind]
    for needed in (name, *([_SUMMARY] if scored else [])):
      self._check_there(field, needed)
    values, metadata = trained_file.load(self.path / name, kind)
    bases = [
      {key: str(value) for key, value in recorded.items() if key in _IDENTITY}
      for recorded in (metadata, self._read(_BASE, {str: str}, '') or {})
    ]
    if not any('fingerprint' in recorded for recorded in bases):
      raise errors.UserError(
        f'{field}: {self.path / name} does not say which base it was trained '
        'on; expected a fingerprint in its metadata or in base.json'
      )
    return FinishedRun(
      directory=self,
      field=field,
      settings=settings,
      config=cfg,
      values=values,
      metadata=metadata,
      bases=bases,
    )

  def _check_there(self, field: str, name: str) -> None:
    if not paths.exists(self.path / name):
      raise errors.UserError(
        f'{field}: {self.path} holds no finished run (no {name}); expected '
        'the work directory of vtokens.train or the --out of '
        'vtokens.import_table'
      )

  def _read(self, name: str, shape: Any, advice: str) -> Any:
    path = self.path / name
    if not paths.exists(path):
      return None
    return json_files.read(path, shape, advice)


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
  """A run that has trained virtual tokens.

  Attributes:
    directory: where it is.
    field: the flag or config field that named the directory, for messages.
    settings: content of config.json.
    config: the same as a config.
    values: the trained values: a table, or keys and values.
    metadata: of the values' file.
    bases: identities of the base that they were trained on: of the values' file
      and of base.json, each as far as it is recorded.
  """

  directory: RunDir
  field: str
  settings: Mapping[str, Any]
  config: config.Config
  values: trained_file.Trained
  metadata: Mapping[str, Any]
  bases: Sequence[Mapping[str, str]]

  @property
  def file(self) -> epath.Path:
    """The file of the trained values."""
    kind = self.config.virtual_tokens.kind
    return self.directory.path / trained_file.NAMES[kind]

  @property
  def sha256(self) -> str:
    """SHA-256 of the trained values."""
    return trained_file.sha256(self.values)

  @property
  def count(self) -> int:
    """Number of virtual tokens (n)."""
    return trained_file.count(self.values)

  @property
  def num_trained(self) -> int:
    """Virtual tokens that training has changed: the most to use."""
    tokens = self.config.virtual_tokens
    return tokens.num_active if tokens.draw == 'fixed' else self.count

  @property
  def quantize(self) -> str:
    """How the base's matrices were kept in training; see `config.Base`."""
    return str(self.metadata.get('quantize', 'none'))

  def read_summary(self) -> dict[str, Any]:
    """Returns the content of summary.json.

    Raises:
      errors.UserError: the file is missing or damaged.
    """
    summary: dict[str, Any] = json_files.read(self.directory.path / _SUMMARY)
    return summary

  def read_data(self) -> dict[str, Any]:
    """Returns the content of data.json, the hashes of the run's data.

    Raises:
      errors.UserError: the file is missing or damaged.
    """
    data: dict[str, Any] = json_files.read(self.directory.path / _DATA)
    return data

  def check_base(self, opened: 'OpenBase', *, tokenizer: bool = False) -> None:
    """Raises unless a base is the one that the values were trained on.

    Args:
      opened: the base now.
      tokenizer: whether its tokenizer must be the same too.

    Raises:
      errors.UserError: it is another base, or of another width, or the run does
        not record its tokenizer.
    """
    where = f'{self.field}: {self.directory.path}'
    compared = _IDENTITY if tokenizer else _IDENTITY[:1]
    if not set(compared) <= {name for one in self.bases for name in one}:
      raise errors.UserError(
        f'{where}: the run does not say which tokenizer it was trained with; '
        f'expected tokenizer_sha256 in {_BASE}'
      )
    for recorded in self.bases:
      check_base(
        where,
        {name: recorded[name] for name in compared if name in recorded},
        opened,
      )
    base = opened.config
    trained_file.check_shape(
      self.values,
      f'{self.field}: {self.file}',
      opened.settings.path,
      width=base.embed_dim,
      heads=(base.num_layers, base.num_kv_heads),
      widths=base.cache_widths,
    )


_IDENTITY = ('fingerprint', 'tokenizer_sha256')


def base_identity(opened: 'OpenBase') -> dict[str, str]:
  """Returns what tells a base from any other, as base.json has it."""
  return {
    'fingerprint': opened.fingerprint,
    'tokenizer_sha256': opened.tokenizer.sha256,
  }


def check_base(
  where: str,
  recorded: Mapping[str, str],
  opened: 'OpenBase',
  advice: str = '',
) -> None:
  """Raises unless a base is the one that a table was trained on.

  Args:
    where: where the table is, for messages.
    recorded: the identity at training; see `base_identity`. Missing entries
      are not compared.
    opened: the base now.
    advice: how messages end.

  Raises:
    errors.UserError: it is another base.
  """
  identity = base_identity(opened)
  for name, then in recorded.items():
    if then != identity[name]:
      raise errors.UserError(
        f'{where}: the table was trained on another base than '
        f'{opened.settings.path} is now: {name} {then} there, '
        f'{identity[name]} now{advice}'
      )
