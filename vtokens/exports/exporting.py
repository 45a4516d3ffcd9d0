"""Makes an export in any format: our answers, the files, the gate, the card."""

import contextlib
import dataclasses
import importlib.util
import pathlib
import tempfile
from collections.abc import Iterator

from vtokens import config as run_config
from vtokens.data import training_set
from vtokens.data.records import Record
from vtokens.exports import (
  card,
  gate,
  gguf_conversion,
  licence,
  reference,
)
from vtokens.exports.export_config import Config
from vtokens.exports.export_format import ExportJob, Format, Placement
from vtokens.exports.trained_table import Source
from vtokens.host import errors, versions, writers
from vtokens.models import frozen_base
from vtokens.models.families import registry
from vtokens.models.files import hf_directory
from vtokens.serving import artifact, trained_file
from vtokens.serving.artifact import Artifact

# Packages whose versions gate.json tells, if they are installed.
_CHECKERS = ('torch', 'peft', 'gguf', 'xllamacpp')
# The extra that brings a consumer.
_EXTRAS = {'torch': 'export', 'transformers': 'export', 'peft': 'export'}


def make(
  one: Format, directory: pathlib.Path, cfg: Config, source: Source
) -> None:
  """Writes an export and its card, and checks it.

  Args:
    one: the format.
    directory: an empty directory, not yet in its place.
    cfg: what is exported, and how it is checked.
    source: the virtual tokens and their base.

  Raises:
    errors.UserError: the format cannot hold these tokens, a consumer is not
      installed, there are too few questions, or a check failed.
  """
  meta = source.table.meta
  if meta.kind not in one.kinds:
    artifact.check_kind(
      meta,
      one.kinds[0],
      f'--to {one.name}: the format holds {trained_file.WORDS[one.kinds[0]]}',
    )
  require_consumers(one)
  with _base_path(one, source, directory) as base_path:
    placement = one.place(source, base_path)
    exported = Artifact(
      source.table.values, dataclasses.replace(meta, tokens=placement.tokens)
    )
    probes, most = _probes(cfg, source, placement)
    if placement.unsaid:
      unsaid = reference.quietest(placement.unsaid, probes)
      placement = dataclasses.replace(placement, unsaid=unsaid)
    job = ExportJob(
      directory=directory,
      settings=cfg,
      source=source,
      base_path=base_path,
      placement=placement,
      exported=exported,
      probes=probes,
      max_new_tokens=most,
    )
    one.write(job)
    artifact.write(directory, exported)
    checks = one.check(job)
  writers.write_text(
    directory / 'README.md',
    card.render(exported.meta, one, checks, base_facts(source)),
  )
  gate.conclude(
    directory,
    checks,
    {
      'format': one.name,
      'num_active': exported.meta.num_trained,
      'trained_with_quantize': exported.meta.quantize,
      'seed': cfg.seed,
      'versions': versions.packages(*_CHECKERS),
    },
  )


def require_consumers(one: Format) -> None:
  """Checks that the programs that read a format are installed.

  Raises:
    errors.UserError: one is not.
  """
  for package in one.consumers:
    if importlib.util.find_spec(package) is None:
      extra = _EXTRAS.get(package)
      wanted = f"'vtokens[{extra}]'" if extra else package
      raise errors.UserError(
        f'--to {one.name}: the export is checked with {package}, which is not '
        f'installed; pip install {wanted}'
      )


def base_facts(source: Source) -> card.BaseFacts:
  """What the card says of the base besides its identity."""
  path, weights = source.base.settings.path, source.base.source
  # A GGUF file is converted to float32.
  dtype, wrapped, quantised = 'float32', False, ''
  if isinstance(weights, hf_directory.SafetensorsSource):
    name = registry.family_of(source.base.config).names['embedding']
    # vLLM refuses float32 for some formats of quantised weights.
    dtype = '' if weights.format else _dtype(weights, name)
    wrapped = hf_directory.read_wrapper(weights.path) is not None
    quantised = weights.format.label if weights.format else ''
  found = licence.of_base(path, weights)
  return card.BaseFacts(found, dtype, wrapped, quantised)


def _dtype(weights: hf_directory.SafetensorsSource, name: str) -> str:
  return str(weights.read(name, slice(0, 1)).dtype)


@contextlib.contextmanager
def _base_path(
  one: Format, source: Source, inside: pathlib.Path
) -> Iterator[str]:
  """Directory or file of the base; a GGUF file as a directory if needed."""
  path = frozen_base.resolve(source.base.settings.path)
  if not (one.from_directory and path.endswith('.gguf')):
    yield path
    return
  with tempfile.TemporaryDirectory(dir=inside) as made:
    gguf_conversion.to_directory(source.base, pathlib.Path(made))
    yield made


def _probes(
  cfg: Config, source: Source, placement: Placement
) -> tuple[list[reference.Probe], int]:
  """Questions and our answers, and the most tokens of an answer."""
  settings = source.config
  records = _questions(cfg, settings)
  asked = reference.Asked(
    records=records,
    decode=run_config.Decode(
      batch_size=cfg.gate.batch_size,
      max_new_tokens=cfg.gate.max_new_tokens or settings.eval.max_new_tokens,
      stop_at_newline=False,
    ),
    num_passages=cfg.gate.num_passages or settings.eval.num_passages,
    num_logits=cfg.gate.logits,
    seed=cfg.seed,
  )
  # The base as its files have it, even if training quantised it.
  float32 = dataclasses.replace(
    source.base.settings, dtype='float32', quantize='none'
  )
  probes = reference.probe(
    dataclasses.replace(source.base, settings=float32),
    source.table,
    placement.stored(source.table.values),
    asked,
  )
  return probes, asked.decode.max_new_tokens


def _questions(cfg: Config, settings: run_config.Config) -> list[Record]:
  """The questions that the gate asks."""
  if cfg.data:
    settings = dataclasses.replace(
      settings, data=dataclasses.replace(settings.data, test=cfg.data)
    )
  report = training_set.bad_records(settings.data)
  found = training_set.read_held_out(
    settings, 'test', cfg.gate.questions, report
  ).records
  if len(found) < cfg.gate.questions:
    raise errors.UserError(
      f'config.gate.questions: the export is to be checked with '
      f'{cfg.gate.questions} questions, but there are {len(found)} in '
      f'{errors.several(settings.data.test, "the test data of the run")}; '
      'set config.data to other sources, or ask for fewer'
    )
  return found
