"""Runs ways to train virtual tokens step by step, in a separate process.

`benchmarks/train_step.py` starts it and sends requests on standard input, one
line of JSON each: a `Task` starts a contender, `"step"` runs one step, `"end"`
ends it. The answers are lines of JSON: facts after the first step, seconds of
each step, the memory; or the error. The weights are loaded once.

All contenders have the same weights, examples, k, table and optimiser:

  split           vtokens: passages forward only, then the rest with gradient
  packed          split, with several examples in a row
  unsplit         the same code, everything in one differentiated pass
  official        SPRING's recipe in PyTorch: the table's rows are spliced into
                  `inputs_embeds` of a left-padded batch, labels are the answer
  official_remat  official, with gradient checkpointing
  peft            PEFT's prompt tuning, which can only put the tokens first
"""

import ctypes
import dataclasses
import functools
import gc
import json
import pathlib
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

OURS = ('split', 'packed')
JAX = (*OURS, 'unsplit')
CONTENDERS = (*JAX, 'official', 'official_remat', 'peft')
# Settings of both optimisers.
_LEARNING_RATE, _B1, _B2, _EPS, _CLIP = 1e-3, 0.9, 0.999, 1e-8, 1.0


@dataclasses.dataclass(frozen=True)
class Task:
  """A contender and its workload.

  Attributes:
    contender: one of `CONTENDERS`.
    model: directory of the base, in Hugging Face's format, or a GGUF file.
    dtype: dtype of weights and activations, float32 or bfloat16.
    passages: passages of an example, about 180 tokens each.
    batch: examples of a step.
    per_row: vtokens only: examples that share a row.
    k: virtual tokens of each example.
    kernels: vtokens only: whether attention may use a kernel.
    scan_layers: vtokens only: see `config.Base.scan_layers`.
    trace: vtokens only: directory for a trace of two steps and the text of the
      compiled program; '' for none.
    seed: seed of examples and table.
  """

  contender: str
  model: str
  dtype: str
  passages: int
  batch: int
  per_row: int
  k: int
  kernels: bool = True
  scan_layers: bool = True
  trace: str = ''
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
  """Random ids of an example, without special tokens."""

  prefix: np.ndarray
  prompt: np.ndarray
  answer: np.ndarray


def make_texts(task: Task, vocab_size: int) -> list[Text]:
  """Examples with lengths that vary like real ones."""
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
  """Initial table of all contenders, about as large as embeddings, float32."""
  rng = np.random.default_rng(task.seed + 1)
  return rng.normal(0, 0.02, (task.k, dim)).astype(np.float32)


class Memory:
  """Measures this process's host memory during steps, from now on."""

  def __init__(self) -> None:
    # Returns memory that compiling or loading has freed.
    ctypes.CDLL(None).malloc_trim(0)
    self._before = self._status('VmRSS')
    # Resets the peak (man 5 proc).
    pathlib.Path('/proc/self/clear_refs').write_text('5')

  @staticmethod
  def _status(key: str) -> int:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
      if line.startswith(f'{key}:'):
        return int(line.split()[1]) * 1024
    raise KeyError(key)

  def peak(self) -> int:
    """Peak bytes since the start, minus the bytes at the start."""
    return self._status('VmHWM') - self._before


Step = Callable[[], tuple[float, float]]


@functools.cache
def load_vtokens(path: str, dtype: str, scan_layers: bool) -> tuple[Any, Any]:
  """Loads architecture and weights of a base, without its tokenizer."""
  import flax.nnx as nnx
  import jax
  import jax.numpy as jnp

  from vtokens.devices import partitioning
  from vtokens.models.files import gguf_weights, hf_directory
  from vtokens.models.files import weights as weights_lib

  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  source: Any
  if path.endswith('.gguf'):
    source = gguf_weights.GGUFSource(path)
    architecture = source.config
  else:
    source = hf_directory.SafetensorsSource(path)
    architecture = hf_directory.read_config(path)
  architecture = dataclasses.replace(architecture, scan_layers=scan_layers)
  decoder = weights_lib.load_decoder(
    source, architecture, jnp.dtype(dtype), mesh
  )
  return architecture, nnx.state(decoder)


def make_vtokens_step(
  task: Task, architecture: Any, mesh: Any
) -> tuple[Any, tuple[Any, ...], tuple[Any, Any], dict[str, Any]]:
  """Makes a training step of vtokens; the device need not exist.

  Args:
    task: contender and workload.
    architecture: architecture of the base.
    mesh: a mesh of one device.

  Returns:
    The jitted step; the shapes of its arguments state, weights and batch; its
    first state and batch, in NumPy; facts about the computation.
  """
  import flax.nnx as nnx
  import jax
  import jax.numpy as jnp
  import optax

  from vtokens import config
  from vtokens.data import assemble, batching, pipeline
  from vtokens.devices import partitioning
  from vtokens.method import losses, optim, steps
  from vtokens.method.virtual_tokens import TABLE
  from vtokens.planning import abstract_step

  architecture = dataclasses.replace(
    architecture, kernels=task.kernels, scan_layers=task.scan_layers
  )
  graph, params = abstract_step.base(architecture, jnp.dtype(task.dtype), mesh)
  vocab_size = architecture.vocab_size
  texts = make_texts(task, vocab_size)
  none = np.zeros(0, np.int32)
  examples = [
    assemble.Example(t.prefix, none, task.k, t.prompt, t.answer) for t in texts
  ]
  prefix = np.array([len(e.prefix) for e in examples])
  rows = batching.form_rows(prefix, task.per_row)
  suffix = np.array([e.suffix_len for e in examples])
  # Shaped as in the pipeline, which would have several shapes.
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
    per_row=task.per_row,
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
  state = jax.device_get(
    steps.TrainState(table, optimizer.init(table), jnp.int32(0))
  )

  def shapes(tree: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=partitioning.replicated(mesh)
      ),
      tree,
    )

  if task.contender in OURS:
    step = steps.jit_train_step(graph, optimizer, shapes(state), config.Train())
  else:
    batch = _joined(batch)

    def nll(table, params, batch):
      decoder = nnx.merge(graph, jax.lax.stop_gradient(params))
      x = TABLE.embed(decoder, table, batch.suffix)
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
      loss, grad = jax.value_and_grad(nll)(state.trained, params, batch)
      updates, opt_state = optimizer.update(
        grad, state.opt_state, state.trained
      )
      new = steps.TrainState(
        optax.apply_updates(state.trained, updates), opt_state, state.step + 1
      )
      return new, {'loss': loss, 'grad_norm': optax.tree.norm(grad)}

  facts = {'computed_tokens': len(rows) * sum(shape), 'row_shape': shape}
  arguments = (shapes(state), params, shapes(batch))
  return step, arguments, (state, batch), facts


def vtokens_step(task: Task) -> tuple[Step, dict[str, Any], Callable[[], int]]:
  """Makes a step of vtokens for this machine.

  Returns:
    The step, which returns loss and gradient norm; facts about the computation;
    a function for the peak memory above the weights, in bytes.
  """
  import jax
  import jax.numpy as jnp

  from vtokens.devices import partitioning

  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  architecture, params = load_vtokens(task.model, task.dtype, task.scan_layers)
  step, arguments, values, facts = make_vtokens_step(task, architecture, mesh)
  began = time.perf_counter()
  program = step.lower(*arguments).compile()
  facts |= {
    'compile_seconds': time.perf_counter() - began,
    'temporary_bytes': program.memory_analysis().temp_size_in_bytes,
    'device': jax.devices()[0].device_kind,
    'product_flops_per_second': _product_rate(jnp.dtype(task.dtype)),
  }
  state, batch = jax.device_put(values, partitioning.replicated(mesh))
  memory = Memory()
  held = [state]

  def run() -> tuple[float, float]:
    held[0], values = program(held[0], params, batch)
    return float(values['loss']), float(values['grad_norm'])

  def peak() -> int:
    taken = facts['temporary_bytes']
    if jax.default_backend() == 'cpu':
      # On accelerators XLA's plan has the figure. Here it is the process's
      # peak; memory that was freed before may be reused and then does not
      # count.
      taken = max(taken, memory.peak())
    if task.trace:
      _trace(task, run, program.as_text())
    return taken

  return run, facts, peak


def _trace(task: Task, run: Step, program: str) -> None:
  """Writes a trace of two steps and the program's text."""
  import jax

  directory = pathlib.Path(task.trace)
  name = f'{task.contender}_{task.batch}_{task.passages}'
  with tempfile.TemporaryDirectory() as made:
    with jax.profiler.trace(made):
      run()
      run()
    [found] = pathlib.Path(made).rglob('*.xplane.pb')
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(found, directory / f'{name}.xplane.pb')
  (directory / f'{name}.txt').write_text(program)


@functools.cache
def _product_rate(dtype: Any, repeats: int = 8) -> float:
  """FLOP/s of a large matrix product here: the best of `repeats`."""
  import jax
  import jax.numpy as jnp

  size = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  best = float('inf')
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(product(x, x))
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


def _joined(batch: Any) -> Any:
  """Joins prefixes and suffixes of a batch, each example in one piece."""
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
  return dataclasses.replace(
    batch,
    prefix=ids[:, :0],
    prefix_positions=ids[:, :0],
    prefix_segments=None,
    suffix=ids,
    suffix_positions=positions,
    suffix_segments=segments if batch.suffix_segments is not None else None,
    target_index=index,
  )


@functools.cache
def load_torch(path: str, dtype: str) -> Any:
  """Loads a frozen base in transformers."""
  import torch
  import transformers

  file = pathlib.Path(path)
  of_gguf = file.suffix == '.gguf'
  model: Any = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent if of_gguf else file,
    gguf_file=file.name if of_gguf else None,
    dtype=getattr(torch, dtype),
    attn_implementation='sdpa',
  )
  model.to('cuda' if torch.cuda.is_available() else 'cpu')
  model.requires_grad_(False)
  model.config.use_cache = False
  return model


def torch_step(task: Task) -> tuple[Step, dict[str, Any], Callable[[], int]]:
  """Makes a step of a contender in PyTorch; see `vtokens_step`."""
  import torch

  cuda = torch.cuda.is_available()
  model = load_torch(task.model, task.dtype)
  if cuda:
    torch.cuda.reset_peak_memory_stats()
  weights = torch.cuda.memory_allocated() if cuda else 0
  loss_of, table, facts = torch_loss(task, model)
  facts |= {
    'threads': torch.get_num_threads(),
    'device': torch.cuda.get_device_name() if cuda else 'cpu',
  }
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

  memory = Memory()
  return run, facts, peak


def torch_loss(
  task: Task, model: Any
) -> tuple[Callable[[], Any], Any, dict[str, Any]]:
  """Makes the forward pass of a contender in PyTorch.

  Args:
    task: contender and workload.
    model: the frozen base; its mode changes.

  Returns:
    A function that returns the loss; the table that the loss depends on; facts
    about the computation.
  """
  import torch

  device = model.device
  texts = make_texts(task, model.config.vocab_size)
  start = torch.from_numpy(make_table(task, model.config.hidden_size))
  if task.contender == 'official_remat':
    model.gradient_checkpointing_enable({'use_reentrant': False})
    model.train()
  else:
    model.gradient_checkpointing_disable()
    model.eval()
  # As in the official recipe, the whole batch is padded on the left.
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

  return (
    loss_of,
    table,
    {'computed_tokens': task.batch * (length + (task.k - k))},
  )


def serve(requests: Iterator[Any]) -> Iterator[dict[str, Any]]:
  """Yields the answer to each request."""
  for request in requests:
    try:
      yield from _serve_one(Task(**request), requests)
    except Exception as e:
      if not _out_of_memory(e):
        raise
      yield {'failed': 'out of memory'}
    _free()


def _serve_one(task: Task, requests: Iterator[Any]) -> Iterator[dict[str, Any]]:
  step = vtokens_step if task.contender in JAX else torch_step
  run, facts, peak = step(task)
  began = time.perf_counter()
  loss, norm = run()
  yield {
    **facts,
    'loss': loss,
    'grad_norm': norm,
    'first_seconds': time.perf_counter() - began,
  }
  for again in requests:
    if again == 'end':
      break
    began, busy = time.perf_counter(), time.process_time()
    run()
    yield {
      'seconds': time.perf_counter() - began,
      'processor_seconds': time.process_time() - busy,
    }
  yield {
    'peak_bytes_above_weights': peak(),
    'peak_bytes_of_process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * 1024,
  }


def _out_of_memory(error: Exception) -> bool:
  message = str(error)
  return 'out of memory' in message or 'RESOURCE_EXHAUSTED' in message


def _free() -> None:
  """Frees a contender's memory on its device."""
  gc.collect()
  if 'torch' in sys.modules:
    import torch

    if torch.cuda.is_available():
      torch.cuda.empty_cache()


def main() -> None:
  for reply in serve(map(json.loads, sys.stdin)):
    print('>', json.dumps(reply), flush=True)


if __name__ == '__main__':
  main()
