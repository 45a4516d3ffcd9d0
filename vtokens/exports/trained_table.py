"""Reads a finished training run for an export; writes imported tables."""

import dataclasses
import pathlib
from typing import Any

from vtokens import config
from vtokens.exports import public_names, vocabulary_rows
from vtokens.exports.export_config import NAMES
from vtokens.host import errors, paths, writers
from vtokens.models import frozen_base
from vtokens.models.families import registry
from vtokens.run import run_identity
from vtokens.run.workdir import RecordedClaim, RunDir
from vtokens.serving import artifact, prompt_ids, trained_file
from vtokens.serving.artifact import (
  Artifact,
  BaseIdentity,
  Meta,
  Prompt,
  Tokens,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A finished run.

  Attributes:
    table: the virtual tokens, with ids from `vocabulary_rows.first_id` on.
    base: the base of the run; its weights are not loaded.
    config: the run's config.
  """

  table: Artifact
  base: frozen_base.OpenBase
  config: config.Config


def read(workdir: str, names: str = '', base: str = '') -> Source:
  """The virtual tokens of a finished or imported run, and their base.

  Args:
    workdir: work directory of the run.
    names: names of the virtual tokens, {i} being 1, 2, ...; '' for the names
      that an imported table had, or else `NAMES`.
    base: where the base is now; '' for where the run's config says.

  Raises:
    errors.UserError: there is no finished run, the base or its tokenizer is not
      what the run was trained with, or two names are equal.
  """
  finished = RunDir(workdir).read('config.workdir', scored=True)
  cfg = finished.config
  trained_on = cfg.base.path
  if base:
    cfg = dataclasses.replace(
      cfg, base=dataclasses.replace(cfg.base, path=base)
    )
  opened = frozen_base.open_base(cfg.base, cfg.context_length)
  finished.check_base(opened, tokenizer=True)
  values, kind = finished.values, cfg.virtual_tokens.kind
  count, first = finished.count, vocabulary_rows.first_id(opened)
  ids = tuple(range(first, first + count))
  prompt = Prompt(
    templates=cfg.templates,
    position=cfg.virtual_tokens.position,
    max_prefix_tokens=cfg.data.max_prefix_tokens,
    max_suffix_tokens=cfg.data.max_suffix_tokens,
  )
  imported = finished.directory.path / artifact.META
  # What it was imported from knows more than this directory.
  known = artifact.read_meta(imported) if paths.exists(imported) else None
  own = known and min(known.tokens.ids) > opened.tokenizer.max_id
  tokens = Tokens(
    ids=ids,
    names=known.tokens.names
    if known and own and not names
    else tuple((names or NAMES).format(i=i + 1) for i in range(count)),
    probe=prompt_ids.probe(prompt_ids.assembler(opened.tokenizer, prompt), ids),
  )
  if len(set(tokens.names)) < count:
    raise errors.UserError(
      f'config.names: {names} gives two of the {count} virtual tokens one name'
    )
  if known:
    meta = public_names.meta(dataclasses.replace(known, tokens=tokens))
    return Source(Artifact(values, meta), opened, cfg)
  # Where it was then, unless the hub has a name for it now.
  revision = frozen_base.revision(cfg.base.path)
  name = cfg.base.path if revision else trained_on
  summary = finished.read_summary()
  return Source(
    Artifact(
      values,
      public_names.meta(
        Meta(
          format=artifact.FORMATS[kind],
          base=BaseIdentity(
            id=name,
            revision=revision,
            fingerprint=opened.fingerprint,
            tokenizer_sha256=opened.tokenizer.sha256,
            vocab_size=opened.config.vocab_size,
            scales_embeddings=registry.scales_lookup(opened.config),
          ),
          prompt=prompt,
          tokens=tokens,
          table_sha256=finished.sha256,
          shape=trained_file.shape(values),
          num_trained=finished.num_trained,
          metrics={key: summary.get(key, {}) for key in ('conditions', 'k')},
          training={
            'config': finished.settings,
            'data': finished.read_data(),
          },
          versions=_as_strings(finished.metadata.get('versions', {})),
          kind=kind,
        )
      ),
    ),
    opened,
    cfg,
  )


def write(
  directory: pathlib.Path, table: Artifact, settings: config.Config
) -> None:
  """Writes an imported table as a finished run, to evaluate and export.

  Args:
    directory: where to.
    table: what was imported.
    settings: of the run: base, templates and position are those of the table.
  """
  run = RunDir(directory)
  run.claim(
    RecordedClaim(
      settings=run_identity.to_dict(settings),
      base={
        'fingerprint': table.meta.base.fingerprint,
        'tokenizer_sha256': table.meta.base.tokenizer_sha256,
      },
    )
  )
  run.write_trained(
    'table',
    table.table,
    {
      'fingerprint': table.meta.base.fingerprint,
      'quantize': table.meta.quantize,
      'imported': True,
    },
  )
  writers.write_json(directory / artifact.META, table.meta.as_json())
  run.finish(table.meta.metrics)


def _as_strings(values: Any) -> dict[str, str]:
  return {str(k): str(v) for k, v in dict(values).items()}
