"""Trains a contender of `answer_quality.py` and keeps what was trained.

All contenders see the examples of `pipeline.TrainBatches` in one order, with
one schedule of the learning rate, Adam, and one limit of the gradient's norm.
Those of PEFT get the ids of our batches without virtual tokens, padded on the
right, so that tokens before the text have no padding behind them, and in parts
of two examples, which takes less padding and memory than all at once. They
train in float32: torch.autocast to bfloat16 was slower where it was tried (two
cores of an AMD EPYC with AVX512-BF16).
"""

import functools
import hashlib
import pathlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import contenders
import jax
import numpy as np
import quality_settings
import quickstart_runs
import safetensors.numpy
from quality_cells import CONTENDERS, PROMPT, Task

from vtokens.data.assemble import Example
from vtokens.data.pipeline import HostBatch
from vtokens.devices import partitioning
from vtokens.evaluation.asking.prompter import Prompter, bare_variant
from vtokens.method import kinds, optim, steps
from vtokens.models import frozen_base
from vtokens.run import training_state

# Validation questions whose loss both programs compute.
CHECKED = 4
# Examples that PEFT's contenders compute at a time; a step is of a whole batch.
_TOGETHER = 2

# Arrays of what is trained, by name.
Values = dict[str, np.ndarray]
# Loss of a step; what was trained so far.
Steps = Iterator[tuple[float, Callable[[], Values]]]


def snapshot_path(task: Task, step: int) -> pathlib.Path:
  """File of what was trained after a step."""
  return task.directory / f'step_{step}.safetensors'


def has_snapshots(task: Task) -> bool:
  """Whether what was trained is there; the prompt has nothing trained."""
  return task.contender == PROMPT or all(
    snapshot_path(task, step).exists() for step in task.snapshot_steps
  )


def train(task: Task) -> dict[str, Any]:
  """Trains a cell, writes its snapshots, and returns the figures.

  The clock runs from the first step on, with compilation and without saving.
  """
  setting = quality_settings.open_setting(task)
  task.directory.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256()
  if CONTENDERS[task.contender].kind:
    made, number, check = _train_ours(task, setting, digest)
  else:
    made, number, check = _train_peft(task, setting, digest)
  memory = contenders.Memory()
  losses: list[float] = []
  seconds, cpu_seconds = 0.0, 0.0
  marks = []
  while len(losses) < task.steps:
    began, cpu_began = time.perf_counter(), time.process_time()
    loss, values = next(made)
    seconds += time.perf_counter() - began
    cpu_seconds += time.process_time() - cpu_began
    losses.append(loss)
    print(f'step {len(losses)}: loss {loss:.3f}, {seconds:.0f} s', flush=True)
    if len(losses) in task.snapshot_steps:
      safetensors.numpy.save_file(values(), snapshot_path(task, len(losses)))
      marks.append(
        {
          'step': len(losses),
          'seconds': seconds,
          'cpu_seconds': cpu_seconds,
        }
      )
  made.close()
  return {
    'trained_numbers': number,
    'losses': losses,
    'snapshots': marks,
    'seconds': seconds,
    'cpu_seconds': cpu_seconds,
    'peak_bytes_above_weights': memory.peak(),
    'peak_bytes_of_process': 1024
    * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    'examples_sha256': digest.hexdigest(),
    'check_nll': check(),
  }


def _note(digest: Any, host: HostBatch, vocab_size: int) -> list[Any]:
  """The examples of a batch without virtual tokens, added to the digest."""
  found = list(quality_settings.plain_examples(host.batch, vocab_size))
  for ids, answer in found:
    digest.update(f'{len(ids)} {answer} '.encode() + ids.tobytes())
  digest.update(b'\n')
  return found


def _train_ours(
  task: Task, setting: quickstart_runs.Setting, digest: Any
) -> tuple[Any, int, Callable[[], float | None]]:
  """Trains with vtokens' step.

  Returns:
    The steps; number of trained values; a function that returns None.
  """
  cfg = setting.cfg
  base, batches = setting.load(), quality_settings.open_batches(task, setting)
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
  initial = training_state.initial_state(cfg, setting.mesh, base, optimizer)

  def run() -> Steps:
    state = initial
    step = steps.jit_train_step(
      base.graph, optimizer, state, cfg.train, trainable
    )
    with batches.starting_at(0) as stream:
      for host in stream:
        _note(digest, host, setting.opened.config.vocab_size)
        batch = partitioning.shard_batch(
          host.batch, setting.mesh, batches.batch_rows
        )
        state, values = step(state, base.params, batch)
        yield (
          float(values['loss']),
          functools.partial(our_values, state.trained),
        )

  number = sum(x.size for x in jax.tree.leaves(initial.trained))
  return run(), number, lambda: None


def our_values(trained: Any) -> Values:
  """Trained values of vtokens by name; a table has one array."""
  named = trained if isinstance(trained, dict) else {'table': trained}
  return {name: np.asarray(value) for name, value in named.items()}


def _train_peft(
  task: Task, setting: quickstart_runs.Setting, digest: Any
) -> tuple[Any, int, Callable[[], float | None]]:
  """Trains with PEFT.

  Returns:
    The steps; number of trained values; a function that returns the loss of the
    first validation questions, in nats per token of the answers.
  """
  import torch

  cfg = setting.cfg
  vocab_size = setting.opened.config.vocab_size
  batches = setting.batches()
  tuned = peft_model(task.contender, setting, task.seed)
  trained = [p for p in tuned.parameters() if p.requires_grad]
  rate = optim.make_schedule(cfg.optim, cfg.train.num_steps)
  optimizer = torch.optim.Adam(
    trained, betas=(cfg.optim.b1, cfg.optim.b2), eps=cfg.optim.eps
  )

  def run() -> Steps:
    with batches.starting_at(0) as stream:
      for number, host in enumerate(stream):
        examples = _note(digest, host, vocab_size)
        tokens = sum(answer for _, answer in examples)
        loss = 0.0
        for part in _parts(examples):
          nll, _ = peft_nll(tuned, part)
          (nll / tokens).backward()
          loss += float(nll.detach()) / tokens
        torch.nn.utils.clip_grad_norm_(trained, cfg.optim.clip_norm)
        optimizer.param_groups[0]['lr'] = float(rate(number))
        optimizer.step()
        optimizer.zero_grad()
        yield loss, lambda: peft_values(tuned)

  def check() -> float:
    prompter = Prompter(setting.assembler, cfg.eval, cfg.seed)
    asked = [
      prompter.example(record, bare_variant('plain'), record.answers[0])
      for record in setting.validation[:CHECKED]
    ]
    with torch.no_grad():
      total, tokens = peft_nll(tuned, list(map(whole, asked)))
    return float(total) / tokens

  return run(), sum(p.numel() for p in trained), check


def _parts(examples: list[Any]) -> Iterator[list[Any]]:
  """Splits a batch into parts of about equal length, for less padding."""
  ordered = sorted(examples, key=lambda example: len(example[0]))
  for start in range(0, len(ordered), _TOGETHER):
    yield ordered[start : start + _TOGETHER]


def whole(example: Example) -> tuple[np.ndarray, int]:
  """Ids of an example without virtual tokens, and those of its answer."""
  ids = np.concatenate(
    [example.prefix, example.before, example.after, example.targets]
  )
  return ids, len(example.targets)


def peft_model(
  contender: str, setting: quickstart_runs.Setting, seed: int
) -> Any:
  """A base in transformers with PEFT's adapter.

  Tokens start from the text that vtokens' table starts from: prompt tuning with
  its embeddings, prefix tuning and CARTRIDGE with its keys and values. LoRA has
  PEFT's start, alpha = 2 r and no dropout.
  """
  import peft
  import torch

  torch.manual_seed(seed)
  # PEFT changes the model in place.
  contenders.load_torch.cache_clear()
  base: Any = contenders.load_torch(
    frozen_base.resolve(setting.cfg.base.path), 'float32'
  )
  tokens = setting.cfg.virtual_tokens
  ids = torch.from_numpy(
    np.resize(
      setting.opened.tokenizer.encode(tokens.init_text),
      tokens.num_virtual_tokens,
    ).astype(np.int64)
  )[None]
  shared: dict[str, Any] = {'task_type': 'CAUSAL_LM'}
  soft = {**shared, 'num_virtual_tokens': tokens.num_virtual_tokens}
  settings = {
    'lora_qv': lambda: peft.LoraConfig(
      r=8, lora_alpha=16, target_modules=['q_proj', 'v_proj'], **shared
    ),
    'lora_all': lambda: peft.LoraConfig(
      r=16, lora_alpha=32, target_modules='all-linear', **shared
    ),
    'prompt_tuning': lambda: peft.PromptTuningConfig(**soft),
    'prefix_tuning': lambda: peft.PrefixTuningConfig(**soft),
    'cartridge': lambda: peft.CartridgeConfig(num_frozen_tokens=1, **soft),
  }[contender]()
  with torch.no_grad():
    rows = base.get_input_embeddings()(ids)[0]
    cache = base(ids, use_cache=True).past_key_values
  tuned: Any = peft.get_peft_model(base, settings)
  if contender == 'prompt_tuning':
    tuned.prompt_encoder['default'].embedding.weight.data.copy_(rows)
  elif contender in ('prefix_tuning', 'cartridge'):
    from peft.tuners.cartridge import utils

    utils.initialize_kv_prefix_from_past_key_values(
      tuned, past_key_values=cache
    )
  # There is no dropout; transformers' training mode changes nothing else.
  tuned.eval()
  return tuned


def peft_nll(tuned: Any, examples: list[tuple[np.ndarray, int]]) -> Any:
  """Sum of the answers' negative log-likelihood, and their number of tokens.

  Logits are computed where an answer of the batch is, as vtokens' step does.

  Args:
    tuned: of `peft_model`.
    examples: ids, and how many of the last ones are the answer.
  """
  import torch

  longest = max(len(ids) for ids, _ in examples) - 1
  inputs = torch.zeros((len(examples), longest), dtype=torch.long)
  mask = torch.zeros_like(inputs)
  rows: list[int] = []
  columns: list[int] = []
  targets: list[int] = []
  for i, (ids, answer) in enumerate(examples):
    inputs[i, : len(ids) - 1] = torch.from_numpy(ids[:-1]).long()
    mask[i, : len(ids) - 1] = 1
    rows += [i] * answer
    columns += range(len(ids) - 1 - answer, len(ids) - 1)
    targets += ids[-answer:].tolist()
  kept, column = torch.unique(torch.tensor(columns), return_inverse=True)
  settings = tuned.active_peft_config
  # Prompt tuning puts its tokens into the sequence.
  before = (
    settings.num_virtual_tokens
    if settings.peft_type.value == 'PROMPT_TUNING'
    else 0
  )
  logits = tuned(
    input_ids=inputs, attention_mask=mask, logits_to_keep=kept + before
  ).logits
  nll = torch.nn.functional.cross_entropy(
    logits[torch.tensor(rows), column].float(),
    torch.tensor(targets),
    reduction='sum',
  )
  return nll, len(targets)


def peft_values(tuned: Any) -> Values:
  """What PEFT has trained, and what it keeps with it."""
  import peft

  return {
    name: value.detach().float().cpu().contiguous().numpy().copy()
    for name, value in peft.get_peft_model_state_dict(tuned).items()
  }


def read_snapshot(task: Task, step: int) -> Values:
  """What was trained after a step; nothing for the prompt."""
  if task.contender == PROMPT:
    return {}
  return dict(safetensors.numpy.load_file(snapshot_path(task, step)))
