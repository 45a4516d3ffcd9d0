"""How each format is made and checked."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import peft
from jaxtyping import Float

from vtokens import config as run_config
from vtokens.data import training_set
from vtokens.data.records import Record
from vtokens.exports import (
  convert,
  gate,
  hf_base,
  hf_checkpoint,
  peft_adapter,
  reference,
  spring_file,
  torch_consumer,
)
from vtokens.exports.export_config import Config
from vtokens.exports.gguf import gguf_file, llama_gate
from vtokens.exports.trained_table import Source
from vtokens.host import errors
from vtokens.models import frozen_base
from vtokens.serving import artifact, plug, table_file
from vtokens.serving.artifact import Artifact

# Writes an export into a directory, `artifact.write` included; what its checks
# found, and the table with the ids that it has there.
Maker = Callable[
  [pathlib.Path, Config, Source], tuple[list[gate.Check], Artifact]
]


def _questions(
  cfg: Config, settings: run_config.Config
) -> tuple[list[Record], run_config.Decode, int]:
  """What the gate asks, how answers are made, and passages of each."""
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
      'config.data takes others'
    )
  decode = run_config.Decode(
    batch_size=cfg.gate.batch_size,
    max_new_tokens=cfg.gate.max_new_tokens or settings.eval.max_new_tokens,
    stop_at_newline=False,
  )
  return found, decode, cfg.gate.num_passages or settings.eval.num_passages


def _probes(
  cfg: Config, source: Source, rows: Float[np.ndarray, 'n D']
) -> tuple[list[reference.Probe], int]:
  """Questions and our answers, and the most tokens of an answer."""
  records, decode, passages = _questions(cfg, source.config)
  # The base as others have it, however it was kept while training.
  float32 = dataclasses.replace(
    source.base.settings, dtype='float32', quantize='none'
  )
  probes = reference.probe(
    dataclasses.replace(source.base, settings=float32),
    source.table,
    rows,
    records,
    decode,
    num_passages=passages,
    num_logits=cfg.gate.logits,
    seed=cfg.seed,
  )
  return probes, decode.max_new_tokens


def _vtokens(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  table, opened = source.table, source.base
  path = frozen_base.resolve(opened.settings.path)
  probes, most = _probes(cfg, source, table.table)
  artifact.write(directory, table)
  read = plug.load(directory)
  model = torch_consumer.load_model(path)
  tokenizer = torch_consumer.load_tokenizer(path)
  size = opened.config.vocab_size
  before = torch_consumer.on_texts(model, opened.tokenizer.encode, size)
  embedding = model.get_input_embeddings()
  plug.attach(model, read)
  consumer = torch_consumer.TorchConsumer(
    model, tokenizer, read.meta, sorted(opened.tokenizer.end_ids)
  )
  checks = _all_checks(cfg, consumer, probes, table, most)
  after = torch_consumer.on_texts(model, opened.tokenizer.encode, size)
  plug.detach(model)
  checks += [
    gate.same_old_logits(after, before, _old_ids(opened, ())),
    gate.Check(
      'the model after detach has the very same embedding',
      model.get_input_embeddings() is embedding,
      model.get_input_embeddings() is embedding,
      True,
    ),
    _same_table(read.table, table),
  ]
  return checks, table


def _spring(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  file = directory / spring_file.FILE
  spring_file.write(file, source.table.table)
  # The same numbers as of the source of truth, which is checked besides.
  checks, table = _vtokens(directory, cfg, source)
  return [*checks, _same_table(spring_file.read(str(file)), table)], table


def _hf(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  with _as_directory(source.base, directory) as path:
    return _write_hf(directory, cfg, source, path)


@contextlib.contextmanager
def _as_directory(
  opened: frozen_base.OpenBase, inside: pathlib.Path
) -> Iterator[str]:
  """The base's directory; of a GGUF file, one that is made of it and goes."""
  path = frozen_base.resolve(opened.settings.path)
  if not path.endswith('.gguf'):
    yield path
    return
  with tempfile.TemporaryDirectory(dir=inside) as made:
    convert.to_directory(opened, pathlib.Path(made))
    yield made


def _write_hf(
  directory: pathlib.Path, cfg: Config, source: Source, path: str
) -> tuple[list[gate.Check], Artifact]:
  table, opened = source.table, source.base
  plan = hf_checkpoint.plan(table, opened, path)
  exported = Artifact(
    table.table, dataclasses.replace(table.meta, tokens=plan.tokens)
  )
  probes, most = _probes(cfg, source, plan.stored(table.table))
  plan = dataclasses.replace(
    plan, unsaid=reference.quietest(plan.unsaid, probes)
  )
  hf_checkpoint.write(directory, table, plan, path)
  artifact.write(directory, exported)
  size = opened.config.vocab_size
  base = torch_consumer.load_model(path)
  before = torch_consumer.on_texts(base, opened.tokenizer.encode, size)
  del base
  model = torch_consumer.load_model(str(directory))
  tokenizer = torch_consumer.load_tokenizer(str(directory))
  consumer = torch_consumer.TorchConsumer(
    model, tokenizer, exported.meta, sorted(opened.tokenizer.end_ids)
  )
  ids = plan.tokens.ids
  checks = [
    torch_consumer.names_matched(tokenizer, exported.meta),
    *torch_consumer.settings(directory, ids, plan.end),
    torch_consumer.head_is_harmless(model, ids, plan.unsaid[0]),
    _only_weights(directory, path),
    *_all_checks(cfg, consumer, probes, table, most),
    gate.same_old_logits(
      torch_consumer.on_texts(model, opened.tokenizer.encode, size),
      before,
      _old_ids(opened, ids),
    ),
  ]
  return checks, exported


def _hf_base(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  table, opened = source.table, source.base
  path = frozen_base.resolve(opened.settings.path)
  hf_base.require_gguf(path)
  llama_gate.require('hf-base')
  probes, most = _probes(cfg, source, table.table)
  hf_base.write(directory, opened)
  artifact.write(directory, table)
  model = torch_consumer.load_model(str(directory))
  tokenizer = torch_consumer.load_tokenizer(str(directory))
  plug.attach(model, table)
  consumer = torch_consumer.TorchConsumer(
    model, tokenizer, table.meta, sorted(opened.tokenizer.end_ids)
  )
  texts = [one.record.question for one in probes]
  texts += [passage['text'] for one in probes for passage in one.passages]
  checks = [
    hf_base.same_tensors(directory, opened),
    *hf_base.same_ids(tokenizer, path, texts),
    *_all_checks(cfg, consumer, probes, table, most),
  ]
  return checks, table


def _peft(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  table, opened = source.table, source.base
  path = frozen_base.resolve(opened.settings.path)
  if path.endswith('.gguf'):
    raise errors.UserError(
      f'--to peft: {path} is a GGUF file, for which PEFT has no model; use '
      '--to hf, or train on the Hugging Face directory of the same model'
    )
  tokens = peft_adapter.place(table, opened, path)
  exported = Artifact(
    table.table, dataclasses.replace(table.meta, tokens=tokens)
  )
  probes, most = _probes(cfg, source, table.table)
  peft_adapter.write(directory, exported, tokens, opened)
  artifact.write(directory, exported)
  tokenizer = torch_consumer.load_tokenizer(path)
  size = opened.config.vocab_size
  base = torch_consumer.load_model(path)
  before = torch_consumer.on_texts(base, opened.tokenizer.encode, size)
  del base
  checks = []
  for form in peft_adapter.FORMS:
    model = peft.PeftModel.from_pretrained(
      torch_consumer.load_model(path), directory / form
    )
    consumer = torch_consumer.TorchConsumer(
      model,
      tokenizer,
      exported.meta,
      sorted(opened.tokenizer.end_ids),
      # With a tied head PEFT puts the rows into it, too.
      suppress=tokens.ids if peft_adapter.in_head(form, opened) else (),
    )
    found = [
      *_all_checks(cfg, consumer, probes, table, most),
      gate.same_old_logits(
        torch_consumer.on_texts(model, opened.tokenizer.encode, size),
        before,
        _old_ids(opened, tokens.ids),
      ),
    ]
    # Before the next one is loaded.
    del model, consumer
    checks += [
      dataclasses.replace(check, name=f'{form}: {check.name}')
      for check in found
    ]
  return checks, exported


def _gguf(
  directory: pathlib.Path, cfg: Config, source: Source
) -> tuple[list[gate.Check], Artifact]:
  llama_gate.require('gguf')
  path = frozen_base.resolve(source.base.settings.path)
  plan = gguf_file.plan(source.table, source.base, path)
  exported = Artifact(
    source.table.table,
    dataclasses.replace(source.table.meta, tokens=plan.tokens),
  )
  probes, most = _probes(cfg, source, plan.stored(exported.table))
  plan = dataclasses.replace(
    plan, unsaid=reference.quietest(plan.unsaid, probes)
  )
  file = directory / gguf_file.FILE
  gguf_file.write(file, exported, plan, path)
  artifact.write(directory, exported)
  checks = llama_gate.check(
    file,
    path,
    plan,
    exported,
    probes,
    activation=source.base.config.activation,
    most=most,
    sampled=cfg.gate.sampled,
    seed=cfg.seed,
  )
  return checks, exported


def _old_ids(opened: frozen_base.OpenBase, virtual: Sequence[int]) -> list[int]:
  """Ids of the base that are not those of virtual tokens."""
  return sorted(set(range(opened.config.vocab_size)) - set(virtual))


def _all_checks(
  cfg: Config,
  consumer: gate.Consumer,
  probes: list[reference.Probe],
  table: Artifact,
  most: int,
) -> list[gate.Check]:
  """Those that every format has whose consumer runs the model."""
  ids = range(table.meta.base.vocab_size)
  old = sorted(set(ids) - set(consumer.virtual_ids()))
  return [
    gate.matched(consumer, probes, table.meta.num_trained),
    gate.same_prompts(consumer, probes, table.meta.base.vocab_size),
    gate.same_logits(consumer, probes, old),
    gate.same_answers(consumer, probes, most),
    gate.never_said(consumer, probes, cfg.gate.sampled, cfg.seed),
  ]


def _only_weights(directory: pathlib.Path, base: str) -> gate.Check:
  stray, missing, number = hf_checkpoint.stray_weights(directory, base)
  return gate.Check(
    "tensors in the directory's *.safetensors, as servers find them",
    not stray and not missing,
    f'{len(missing)} missing {missing[:3]}, {len(stray)} others {stray[:3]}'
    if stray or missing
    else f'{number}, each once',
    f'the {number} of the model, each once',
  )


def _same_table(read: Any, table: Artifact) -> gate.Check:
  found = table_file.sha256(read)
  return gate.Check(
    'the table as read again, SHA-256',
    found == table.meta.table_sha256,
    found,
    table.meta.table_sha256,
  )


MAKERS: dict[str, Maker] = {
  'vtokens': _vtokens,
  'spring-pt': _spring,
  'hf': _hf,
  'hf-base': _hf_base,
  'peft': _peft,
  'gguf': _gguf,
}
