"""Reads trained virtual tokens: the work directory of a run, or an export."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from etils import epath

from vtokens import config
from vtokens.data.assemble import Assembler, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import paths
from vtokens.method import kinds
from vtokens.models.frozen_base import OpenBase
from vtokens.models.tokenizers.tokenizer import Tokenizer
from vtokens.run.workdir import RunDir, check_base
from vtokens.serving import artifact, trained_file


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedSource:
  """Virtual tokens that were read, before a base is there.

  Attributes:
    directory: where they are.
    values: the trained values, without those that no step has trained.
    settings: `virtual_tokens` of their run.
    base: the base that they were trained on, as their run names it.
    fingerprint: of that base.
    templates: the text around the pieces.
    limits: the sizes that a prompt must keep to.
    decode: how their run generated answers.
    refuses: whether they were trained to refuse.
    sha256: of all values.
    context_length: longest sequence of their run; None if it is not known.
    check_base: raises a `UserError` unless an opened base is theirs.
  """

  directory: str
  values: trained_file.Trained
  settings: config.VirtualTokens
  base: config.Base
  fingerprint: str
  templates: config.Templates
  limits: Limits
  decode: config.Decode
  refuses: bool
  sha256: str
  context_length: int | None
  check_base: Callable[[OpenBase], None]

  @property
  def count(self) -> int:
    """Number of virtual tokens that can be used."""
    return trained_file.count(self.values)

  def assembler(self, tokenizer: Tokenizer) -> Assembler:
    """Puts prompts together as in training."""
    return Assembler(
      encoder=PromptEncoder(tokenizer, self.templates),
      limits=self.limits,
      position=self.settings.position,
      in_suffix=kinds.trainable_of(self.settings).in_suffix,
    )

  def tokens(self, name: str, assembler: Assembler) -> TrainedTokens:
    """The virtual tokens under a name."""
    trainable = kinds.trainable_of(self.settings)
    return TrainedTokens(name, self.values, assembler, trainable, self.refuses)


def read(directory: epath.PathLike, where: str = 'directory') -> TrainedSource:
  """Reads the work directory of a finished run or a `vtokens` export.

  Args:
    directory: the directory; a leading `~` is the home directory.
    where: the flag or argument that names it, for messages.

  Raises:
    errors.UserError: it holds neither, or a file is damaged.
  """
  path = epath.Path(paths.expand_home(os.fspath(directory)))
  if paths.exists(path / artifact.META):
    return _read_export(path, where)
  return _read_run(path, where)


def _read_run(path: epath.Path, where: str) -> TrainedSource:
  finished = RunDir(path).read(where)
  cfg = finished.config
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  recorded = [
    one['fingerprint'] for one in finished.bases if 'fingerprint' in one
  ]
  return TrainedSource(
    directory=str(path),
    values=trainable.first(finished.values, finished.num_trained),
    settings=cfg.virtual_tokens,
    base=cfg.base,
    fingerprint=recorded[0],
    templates=cfg.templates,
    limits=Limits(cfg.data.max_prefix_tokens, cfg.data.max_suffix_tokens),
    decode=cfg.eval,
    refuses=cfg.data.refuses,
    sha256=finished.sha256,
    context_length=cfg.context_length,
    check_base=finished.check_base,
  )


def _read_export(path: epath.Path, where: str) -> TrainedSource:
  found = artifact.read(path)
  meta = found.meta
  # An imported table has no config of a run.
  recorded = meta.training.get('config', {})
  base = config.Base(path=meta.base.id, **_kept(recorded, 'base', _BASE))
  decode = config.Decode(**_kept(recorded, 'eval', _DECODE))
  settings = config.VirtualTokens(
    kind=meta.kind,
    num_virtual_tokens=meta.count,
    position=meta.prompt.position,
  )
  limits = Limits(meta.prompt.max_prefix_tokens, meta.prompt.max_suffix_tokens)

  def check(opened: OpenBase) -> None:
    check_base(
      f'{where}: {path}', {'fingerprint': meta.base.fingerprint}, opened
    )
    trained_file.check_shape(
      found.values,
      f'{where}: {path}',
      opened.settings.path,
      width=opened.config.embed_dim,
      heads=(opened.config.num_layers, opened.config.num_kv_heads),
      widths=opened.config.cache_widths,
    )

  return TrainedSource(
    directory=str(path),
    values=kinds.trainable_of(settings).first(found.values, meta.num_trained),
    settings=settings,
    base=base,
    fingerprint=meta.base.fingerprint,
    templates=meta.prompt.templates,
    limits=limits,
    decode=decode,
    refuses=_kept(recorded, 'data', ('unanswerable',)).get('unanswerable')
    == 'refuse',
    sha256=meta.table_sha256,
    context_length=limits.prefix + limits.suffix + decode.max_new_tokens,
    check_base=check,
  )


# Fields of sections of a run's config that an export keeps.
_BASE = ('dtype', 'quantize', 'attention')
_DECODE = ('max_new_tokens', 'stop_at_newline')


def _kept(
  recorded: object, section: str, names: tuple[str, ...]
) -> dict[str, Any]:
  if not isinstance(recorded, dict):
    return {}
  fields = recorded.get(section, {})
  return {name: fields[name] for name in names if name in fields}
