"""One way to train virtual tokens, in a process of its own, step by step.

`benchmarks/train_step.py` starts it, once for each contender, and says when to
make a step: a line on standard input is one step, its end is the end. What it
prints are lines of JSON: what there was to know after the first step, seconds
of each step, and at the end the memory.

All contenders have the same weights, examples, k, table and optimiser:

  split           vtokens: passages forward only, then the rest with gradient
  packed          the same with several examples to a row
  unsplit         the same code, everything in one differentiated pass
  official        SPRING's recipe in PyTorch: the table's rows are spliced into
                  `inputs_embeds` of a left-padded batch, labels are the answer
  official_remat  the same with gradient checkpointing
  peft            PEFT's prompt tuning, which can only put the tokens first
"""

import ctypes
import dataclasses
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

OURS = ('split', 'packed')
CONTENDERS = (*OURS, 'unsplit', 'official', 'official_remat', 'peft')
# Both optimisers'.
_LEARNING_RATE, _B1, _B2, _EPS, _CLIP = 1e-3, 0.9, 0.999, 1e-8, 1.0


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained on what.

  Attributes:
    contender: one of `CONTENDERS`.
    model: directory of the base, in Hugging Face's format, or a GGUF file.
    dtype: of weights and activations, float32 or bfloat16.
    passages: of an example, of about 180 tokens each.
    batch: examples of a step.
    per_row: of vtokens: examples that share a row.
    k: virtual tokens of each example.
    seed: of examples and table.
  """

  contender: str
  model: str
  dtype: str
  passages: int
  batch: int
  per_row: int
  k: int
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
  """Ids of an example; random, of no special tokens."""

  prefix: np.ndarray
  prompt: np.ndarray
  answer: np.ndarray


def make_texts(task: Task, vocab_size: int) -> list[Text]:
  """Examples whose lengths vary as those of real ones do."""
  rng = np.random.default_rng(task.seed)

  def ids(mean: float, deviation: float, least: int) -> np.ndarray:
    size = max(least, round(rng.normal(mean, deviation)))
    return rng.integers(100, vocab_size, size, dtype=np.int32)

  return [
    Text(
      np.concatenate([ids(180, 40, 20) for _ in range(task.passages)]),
      ids(46, 10, 5),
      ids(15, 4, 2),
    )
    for _ in range(task.batch)
  ]


def make_table(task: Task, dim: int) -> np.ndarray:
  """The table that all start from, of the size of embeddings, float32."""
  rng = np.random.default_rng(task.seed + 1)
  return rng.normal(0, 0.02, (task.k, dim)).astype(np.float32)


class Memory:
  """What steps take of this process's memory, from now on."""

  def __init__(self) -> None:
    # What the compiler, or whoever loaded the weights, has given back.
    ctypes.CDLL(None).malloc_trim(0)
    self._before = self._status('VmRSS')
    # The peak so far is forgotten (man 5 proc).
    pathlib.Path('/proc/self/clear_refs').write_text('5')

  @staticmethod
  def _status(key: str) -> int:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
      if line.startswith(f'{key}:'):
        return int(line.split()[1]) * 1024
    raise KeyError(key)

  def peak(self) -> int:
    """Bytes of the peak since then, less what there was then."""
    return self._status('VmHWM') - self._before


Step = Callable[[], tuple[float, float]]


def vtokens_step(task: Task) -> tuple[Step, dict[str, Any], Callable[[], int]]:
  """A step of ours, what it computes, and its peak memory.

  Returns:
    The step, which gives loss and gradient norm; facts; bytes above weights.
  """
  import flax.nnx as nnx
  import jax
  import jax.numpy as jnp
  import optax

  from vtokens import config, flops, losses, optim, partitioning, steps
  from vtokens import virtual_tokens as virtual
  from vtokens.data import assemble, batching, pipeline
  from vtokens.models import gguf, hf
  from vtokens.models import weights as weights_lib

  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  if task.model.endswith('.gguf'):
    source = gguf.GGUFSource(task.model)
    architecture = source.config
  else:
    source = hf.SafetensorsSource(task.model)
    architecture = hf.read_config(task.model)
  # Without a tokenizer, which random weights have none of.
  graph, params = nnx.split(
    weights_lib.load_decoder(source, architecture, jnp.dtype(task.dtype), mesh)
  )
  vocab_size = architecture.vocab_size
  texts = make_texts(task, vocab_size)
  device = jax.devices()[0]
  on_device = device.memory_stats() or {}
  weights = on_device.get('bytes_in_use', 0)
  none = np.zeros(0, np.int32)
  examples = [
    assemble.Example(t.prefix, none, task.k, t.prompt, t.answer) for t in texts
  ]
  prefix = np.array([len(e.prefix) for e in examples])
  rows = batching.form_rows(prefix, task.per_row)
  suffix = np.array([e.suffix_len for e in examples])
  # As the pipeline's shapes, of which there would be several.
  shape = (
    -(-int(prefix[rows].sum(1).max()) // 32) * 32,
    -(-int(suffix[rows].sum(1).max()) // 8) * 8,
  )
  batch = pipeline.collate(
    [[[examples[i]] for i in row] for row in rows.tolist()],
    shape=shape,
    num_targets=max(
      sum(len(examples[i].targets) for i in row) for row in rows.tolist()
    ),
    vocab_size=vocab_size,
    num_rows=len(rows),
    packed=task.per_row > 1,
  )
  optimizer = optim.make_optimizer(
    config.Optim(
      learning_rate=_LEARNING_RATE,
      warmup_steps=0,
      schedule='constant',
      clip_norm=_CLIP,
      b1=_B1,
      b2=_B2,
      eps=_EPS,
    ),
    1000,
  )
  table = jnp.asarray(make_table(task, architecture.embed_dim))
  state = jax.device_put(
    steps.TrainState(table, optimizer.init(table), jnp.int32(0)),
    partitioning.replicated(mesh),
  )
  if task.contender in OURS:
    step = steps.jit_train_step(graph, optimizer, state, config.Train())
  else:
    batch = _joined(batch)

    def nll(table, params, batch):
      decoder = nnx.merge(graph, jax.lax.stop_gradient(params))
      x = virtual.embed(decoder, table, batch.suffix)
      hidden, _ = decoder(
        x, batch.suffix_positions, segments=batch.suffix_segments
      )
      where = jnp.maximum(batch.target_index, 0)
      picked = jnp.take_along_axis(hidden, where[..., None], axis=1)
      total, tokens = losses.masked_nll(
        decoder.logits(picked), batch.targets, batch.target_index >= 0
      )
      return total / tokens

    @jax.jit
    def step(state, params, batch):
      loss, grad = jax.value_and_grad(nll)(state.table, params, batch)
      updates, opt_state = optimizer.update(grad, state.opt_state, state.table)
      new = steps.TrainState(
        optax.apply_updates(state.table, updates), opt_state, state.step + 1
      )
      return new, {'loss': loss, 'grad_norm': optax.tree.norm(grad)}

  batch = partitioning.shard_batch(batch, mesh, len(rows))
  began = time.perf_counter()
  program = step.lower(state, params, batch).compile()
  facts = {
    'compile_seconds': time.perf_counter() - began,
    'temporary_bytes': program.memory_analysis().temp_size_in_bytes,
    'needed_flops': flops.train_flops(
      architecture,
      [(len(e.prefix),) * 2 + (e.suffix_len, len(e.targets)) for e in examples],
    ),
    'real_tokens': int(prefix.sum() + suffix.sum()),
    'computed_tokens': len(rows) * sum(shape),
    'row_shape': shape,
    'device': device.device_kind,
    'product_flops_per_second': _product_rate(jnp.dtype(task.dtype)),
  }
  memory = Memory()
  held = [state]

  def run() -> tuple[float, float]:
    held[0], values = program(held[0], params, batch)
    return float(values['loss']), float(values['grad_norm'])

  def peak() -> int:
    stats = device.memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
      return stats['peak_bytes_in_use'] - weights
    # Some of what was given back before may have stayed with the process.
    return max(memory.peak(), facts['temporary_bytes'])

  return run, facts, peak


def _product_rate(dtype: Any, size: int = 2048, repeats: int = 8) -> float:
  """What a large matrix product reaches here, FLOP/s: the best of some."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  best = float('inf')
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(product(x, x))
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


def _joined(batch: Any) -> Any:
  """Prefixes and suffixes of a batch as one part, each example in one piece."""
  length = batch.prefix.shape[1] + batch.suffix.shape[1]
  rows = len(batch.prefix)

  def empty(fill: int) -> np.ndarray:
    return np.full((rows, length), fill, np.int32)

  ids, positions, segments = empty(0), empty(-1), empty(-1)
  index = np.full_like(batch.target_index, -1)
  for r in range(rows):
    at = 0
    parts = [
      (
        getattr(batch, f'{name}_positions')[r] >= 0,
        getattr(batch, f'{name}_segments'),
        name,
      )
      for name in ('prefix', 'suffix')
    ]
    count = 1 + (0 if parts[0][1] is None else int(parts[1][1][r].max()))
    for number in range(count):
      for real, of, name in parts:
        slots = np.flatnonzero(real if of is None else real & (of[r] == number))
        stop = at + len(slots)
        ids[r, at:stop] = getattr(batch, name)[r, slots]
        positions[r, at:stop] = getattr(batch, f'{name}_positions')[r, slots]
        segments[r, at:stop] = number
        if name == 'suffix':
          own = np.isin(batch.target_index[r], slots)
          index[r, own] = batch.target_index[r, own] - slots[0] + at
        at = stop
  return batch.replace(
    prefix=ids[:, :0],
    prefix_positions=ids[:, :0],
    prefix_segments=None,
    suffix=ids,
    suffix_positions=positions,
    suffix_segments=segments if batch.suffix_segments is not None else None,
    target_index=index,
  )


def torch_step(task: Task) -> tuple[Step, dict[str, Any], Callable[[], int]]:
  """A step of a peer in PyTorch; see `vtokens_step`."""
  import torch
  import transformers

  cuda = torch.cuda.is_available()
  device = torch.device('cuda' if cuda else 'cpu')
  path = pathlib.Path(task.model)
  of_gguf = path.suffix == '.gguf'
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent if of_gguf else path,
    gguf_file=path.name if of_gguf else None,
    dtype=getattr(torch, task.dtype),
    attn_implementation='sdpa',
  ).to(device)
  model.requires_grad_(False)
  model.config.use_cache = False
  vocab_size = model.config.vocab_size
  texts = make_texts(task, vocab_size)
  weights = torch.cuda.memory_allocated() if cuda else 0
  start = torch.from_numpy(make_table(task, model.config.hidden_size))
  if task.contender == 'official_remat':
    model.gradient_checkpointing_enable({'use_reentrant': False})
    model.train()
  # The whole batch padded on the left, as the official recipe has it.
  k = 0 if task.contender == 'peft' else task.k
  whole = [len(t.prefix) + k + len(t.prompt) + len(t.answer) for t in texts]
  length = max(whole)
  ids = torch.zeros((task.batch, length), dtype=torch.long)
  mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
  at = torch.zeros((task.batch, k), dtype=torch.long)
  for i, t in enumerate(texts):
    begin = length - whole[i]
    middle = begin + len(t.prefix)
    ids[i, begin:middle] = torch.from_numpy(t.prefix).long()
    at[i] = torch.arange(middle, middle + k)
    tail = np.concatenate([t.prompt, t.answer])
    ids[i, middle + k :] = torch.from_numpy(tail).long()
    mask[i, begin:] = 1
    labels[i, length - len(t.answer) :] = torch.from_numpy(t.answer).long()
  ids, mask, labels, at = (x.to(device) for x in (ids, mask, labels, at))
  if task.contender == 'peft':
    import peft

    tuned = peft.get_peft_model(
      model,
      peft.PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=task.k),
    )
    [table] = [p for p in tuned.parameters() if p.requires_grad]
    with torch.no_grad():
      table.copy_(start.to(device))

    def loss_of():
      return tuned(input_ids=ids, attention_mask=mask, labels=labels).loss

  else:
    table = torch.nn.Parameter(start.to(device))
    rows = torch.arange(task.batch, device=device)[:, None]

    def loss_of():
      x = model.get_input_embeddings()(ids)
      x = x.index_put((rows, at), table.to(x.dtype).expand(task.batch, -1, -1))
      return model(inputs_embeds=x, attention_mask=mask, labels=labels).loss

  optimizer = torch.optim.Adam(
    [table], lr=_LEARNING_RATE, betas=(_B1, _B2), eps=_EPS
  )

  def run() -> tuple[float, float]:
    loss = loss_of()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([table], _CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), float(norm)

  def peak() -> int:
    if cuda:
      return torch.cuda.max_memory_allocated() - weights
    return memory.peak()

  facts = {
    'computed_tokens': task.batch * (length + (task.k - k)),
    'threads': torch.get_num_threads(),
    'device': torch.cuda.get_device_name() if cuda else 'cpu',
  }
  memory = Memory()
  return run, facts, peak


def serve(task: Task, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
  """What the process prints; a step for each line that comes."""
  ours = task.contender in (*OURS, 'unsplit')
  run, facts, peak = (vtokens_step if ours else torch_step)(task)
  began = time.perf_counter()
  loss, norm = run()
  yield {
    **facts,
    'loss': loss,
    'grad_norm': norm,
    'first_seconds': time.perf_counter() - began,
  }
  for _ in lines:
    began = time.perf_counter()
    run()
    yield {'seconds': time.perf_counter() - began}
  yield {
    'peak_bytes_above_weights': peak(),
    'peak_bytes_of_process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * 1024,
  }


def main() -> None:
  task = Task(**json.loads(sys.argv[1]))
  for reply in serve(task, sys.stdin):
    print('>', json.dumps(reply), flush=True)


if __name__ == '__main__':
  main()
