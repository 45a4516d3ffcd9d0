"""Answers of all contenders of `answer_quality.py`, by vtokens' evaluator.

PEFT's adapters become what our decoder reads, without a change of the
computation:

  LoRA            merged into the base, which is written and read as a base
  prompt tuning   a table whose tokens stand first
  prefix tuning,  keys and values before the passages' cache. PEFT gives the
  CARTRIDGE       text the positions from P on, here it has those from 0 on:
                  the keys are turned back by P positions, since attention
                  depends on differences of positions alone
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import quality_settings
import quality_training
import quickstart_runs
from quality_cells import CONTENDERS, PROMPT, Task

from vtokens.data.assemble import Example
from vtokens.data.records import Record
from vtokens.evaluation import answer_rules
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors
from vtokens.method import kinds
from vtokens.models import cache, frozen_base
from vtokens.models.cache import Cache
from vtokens.models.decoder import Decoder

# Both programs compute in float32, in another order.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Asked:
  """A trained contender, ready for questions.

  Attributes:
    evaluator: asks.
    tokens: its virtual tokens; a table of which no row is used for others.
    num_active: numbers of virtual tokens to ask with.
  """

  evaluator: Evaluator
  tokens: TrainedTokens
  num_active: tuple[int, ...]


def validate(task: Task) -> dict[str, Any]:
  """Loss and EM on the validation questions, after each snapshot."""
  setting = quality_settings.open_setting(task)
  if task.contender == PROMPT:
    return _validate_untrained(task, setting)
  records, rows = quality_settings.validation(task, setting), []
  checked = task.at('train').read()
  for step in task.snapshot_steps:
    with _asked(task, setting, step) as asked:
      k = asked.num_active[0]
      loss, answers = asked.evaluator.validate(records, asked.tokens, k)
    if step == task.steps and checked and checked['check_nll'] is not None:
      _check_loss(task, step, checked['check_nll'])
    rows.append({'step': step, 'loss': loss, **_means(records, answers)})
    print(rows[-1], flush=True)
  return {'questions': len(records), 'validations': rows}


def test(task: Task) -> dict[str, Any]:
  """EM and F1 of each test question, by k."""
  setting = quality_settings.open_setting(task)
  records = setting.test
  with _asked(task, setting, task.steps) as asked:
    if task.contender == PROMPT:
      found = task.at('validate').read()
      if found is None:
        raise errors.UserError('the prompt is tested after its validation')
      variants = [bare_variant(found['condition'])]
    else:
      variants = [tokens_variant(asked.tokens, k) for k in asked.num_active]
    answers = asked.evaluator.answers(records, variants, label='test')
  names = [record.dataset for record in records]
  return {
    'datasets': names,
    'examples_sha256': _digest(records),
    'condition': variants[0].name if task.contender == PROMPT else 'tokens',
    'k': {
      str(variant.num_active): {
        name: [round(value, 4) for value in values.tolist()]
        for name, values in _score(records, answers[variant.name]).items()
      }
      for variant in variants
    },
  }


def _digest(records: Sequence[Record]) -> str:
  ids = json.dumps([[record.dataset, record.id] for record in records])
  return hashlib.sha256(ids.encode()).hexdigest()


def _validate_untrained(
  task: Task, setting: quickstart_runs.Setting
) -> dict[str, Any]:
  """Chooses the untrained condition with the highest EM, then F1."""
  names = ['closed_book', 'concat', 'plain', 'prompt', 'chat_prompt']
  evaluator = _evaluator(setting, setting.load())
  records = quality_settings.validation(task, setting)
  answers = evaluator.answers(
    records, [bare_variant(name) for name in names], label='validation'
  )
  found = {name: _means(records, answers[name]) for name in names}
  chosen = max(names, key=lambda name: (found[name]['em'], found[name]['f1']))
  return {
    'questions': len(records),
    'condition': chosen,
    'conditions': found,
    # `quality_cells.best` reads it; there is no other cell to compare with.
    'validations': [{'step': 0, 'loss': 0.0, **found[chosen]}],
  }


def _score(
  records: Sequence[Record], answers: Sequence[Answer]
) -> dict[str, np.ndarray]:
  values = answer_rules.score_questions(
    'text',
    [answer.text for answer in answers],
    [record.answers for record in records],
  )
  return {name: values[name] for name in ('em', 'f1')}


def _means(
  records: Sequence[Record], answers: Sequence[Answer]
) -> dict[str, float]:
  return {
    name: 100 * float(values.mean())
    for name, values in _score(records, answers).items()
  }


def _check_loss(task: Task, step: int, expected: float) -> None:
  """Raises unless our decoder has the loss that PEFT had, both in float32."""
  exact = dataclasses.replace(task, products='float32')
  setting = quality_settings.open_setting(exact)
  with _asked(task, setting, step) as asked:
    loss, _ = asked.evaluator.validate(
      setting.validation[: quality_training.CHECKED],
      asked.tokens,
      asked.num_active[0],
    )
  if abs(loss - expected) > TOLERANCE:
    raise errors.UserError(
      f'{task.directory}: the loss of {quality_training.CHECKED} validation '
      f'questions is {loss} here and was {expected} in PEFT'
    )


@contextlib.contextmanager
def _asked(
  task: Task, setting: quickstart_runs.Setting, step: int
) -> Iterator[Asked]:
  """Opens what was trained after a step."""
  values = quality_training.read_snapshot(task, step)
  active = CONTENDERS[task.contender].num_active
  none = TrainedTokens(
    'none',
    np.zeros((1, setting.opened.config.embed_dim), np.float32),
    setting.assembler,
  )
  if task.contender.startswith('lora'):
    with tempfile.TemporaryDirectory(dir=task.directory) as directory:
      base = merged(task.contender, setting, values, directory)
      yield Asked(_evaluator(setting, base), none, active)
    return
  base = setting.load()
  if task.contender in ('prefix_tuning', 'cartridge'):
    answerer = PrefixedAnswerer(setting, base, values['prompt_embeddings'])
    yield Asked(_evaluator(setting, base, answerer), none, active)
  elif task.contender == 'prompt_tuning':
    rows = values['prompt_embeddings']
    first = dataclasses.replace(setting.assembler, position='first')
    table = TrainedTokens(task.contender, rows, first)
    yield Asked(_evaluator(setting, base), table, (len(rows),))
  elif task.contender == PROMPT:
    yield Asked(_evaluator(setting, base), none, active)
  else:
    tokens = TrainedTokens(
      task.contender,
      values.get('table', values),
      setting.assembler,
      kinds.trainable_of(setting.cfg.virtual_tokens),
    )
    usable = tuple(k for k in active if k <= len(tokens))
    yield Asked(_evaluator(setting, base), tokens, usable or (len(tokens),))


def _evaluator(
  setting: quickstart_runs.Setting,
  base: frozen_base.FrozenBase,
  answerer: Answerer | None = None,
) -> Evaluator:
  cfg = setting.cfg
  return Evaluator(
    answerer or Answerer(base, setting.mesh, cfg.eval, cfg.seed),
    Prompter(setting.assembler, cfg.eval, cfg.seed),
  )


def merged(
  contender: str,
  setting: quickstart_runs.Setting,
  values: quality_training.Values,
  directory: str,
) -> frozen_base.FrozenBase:
  """A base with LoRA's matrices added, which is written and read."""
  import peft
  import torch
  import transformers

  tuned = quality_training.peft_model(contender, setting, 0)
  peft.set_peft_model_state_dict(
    tuned, {name: torch.from_numpy(value) for name, value in values.items()}
  )
  model = tuned.merge_and_unload()
  # The weights of a GGUF file are not quantised any more.
  model.hf_quantizer = None
  if hasattr(model.config, 'quantization_config'):
    del model.config.quantization_config
  model.save_pretrained(directory)
  path = pathlib.Path(frozen_base.resolve(setting.cfg.base.path))
  of_gguf = path.suffix == '.gguf'
  transformers.AutoTokenizer.from_pretrained(
    path.parent if of_gguf else path, gguf_file=path.name if of_gguf else None
  ).save_pretrained(directory)
  opened = frozen_base.open_base(
    dataclasses.replace(setting.cfg.base, path=directory),
    setting.cfg.context_length,
  )
  # The tokenizer of the base itself, not what transformers makes of it.
  opened = dataclasses.replace(opened, tokenizer=setting.opened.tokenizer)
  return opened.load(setting.mesh)


class PrefixedAnswerer(Answerer):
  """Answers with PEFT's keys and values before the text.

  Args:
    setting: has the settings.
    base: the frozen model.
    rows: PEFT's `prompt_embeddings`: for each token the key and the value of
      each layer, array of shape [P, L * 2 * K * H], float32.
  """

  def __init__(
    self,
    setting: quickstart_runs.Setting,
    base: frozen_base.FrozenBase,
    rows: np.ndarray,
  ):
    super().__init__(base, setting.mesh, setting.cfg.eval, setting.cfg.seed)
    settings = base.config
    split = rows.reshape(
      len(rows), settings.num_layers, 2, settings.num_kv_heads, -1
    )
    # PEFT's stand before position 0, turned by their number less.
    keys = base.decoder().turn_keys(
      jnp.asarray(split[:, :, 0]).swapaxes(0, 1)[:, None],
      jnp.full((1, len(rows)), len(rows)),
      back=True,
    )
    self._k = keys[:, 0].transpose(0, 2, 3, 1)
    self._v = jnp.asarray(split[:, :, 1]).transpose(1, 2, 0, 3)

  def encode(self, examples: Sequence[Example]) -> Cache:
    found: Cache = _encode_after(
      self.base.params,
      self._k,
      self._v,
      *self.prefixes(examples),
      graph=self.base.graph,
    )
    return found


@functools.partial(jax.jit, static_argnames='graph')
def _encode_after(
  params: Any, k: Any, v: Any, prefix: Any, positions: Any, *, graph: Any
) -> Cache:
  """The cache of trained keys and values, and of prefixes that see them."""
  decoder: Decoder = nnx.merge(graph, params)
  rows = len(prefix)
  before = cache.of_keys_values(
    decoder.config,
    jnp.broadcast_to(k[:, None], (k.shape[0], rows, *k.shape[1:])),
    jnp.broadcast_to(v[:, None], (v.shape[0], rows, *v.shape[1:])),
    # Every token may see position 0.
    jnp.zeros((rows, k.shape[-1]), jnp.int32),
  )
  _, own = decoder(decoder.embed(prefix), positions, [before])
  return before.then(own)
