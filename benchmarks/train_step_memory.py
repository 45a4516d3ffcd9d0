r"""Estimates memory of `train_step.py` on an accelerator that is not here.

    pip install -r benchmarks/requirements.txt -e '.[plan-gpu]'
    python benchmarks/train_step_memory.py --topology h200:1 \
      --model mistral-7b --dtype bfloat16 --passages 1,3,5 \
      --contenders packed:16:32,unsplit:16,official:16,official_remat:16:32 \
      --json benchmarks/train_step_memory_h200.json

vtokens' contenders are compiled for the accelerator; XLA's plan gives the
memory. PyTorch has no such plan: its contenders run forward and backward with
tensors without values (FakeTensorMode) and with PyTorch's operators for CPUs,
and the bytes of live tensors are summed. Fragmentation of the allocator and
workspaces of kernels are not included. PEFT cannot run this way, because it
moves its modules. The flags --repeats and --trace have no effect.
"""

import json
import pathlib
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import contenders
import jax
import shapes
import torch
import train_step
import transformers
from absl import flags as absl_flags
from torch._subclasses import fake_tensor
from torch.utils import _python_dispatch, _pytree

from vtokens.devices import partitioning
from vtokens.models.decoder_config import DecoderConfig
from vtokens.planning import aot
from vtokens.settings import flags

_TOPOLOGY = absl_flags.DEFINE_string(
  'topology', 'h200:1', 'As of vtokens.plan.'
)


class Held(_python_dispatch.TorchDispatchMode):
  """Sums the bytes of tensors that operations return inside the context.

  Attributes:
    now: bytes of live tensors.
    peak: largest value of `now`.
  """

  def __init__(self, before: list[Any]):
    """Starts from nothing.

    Args:
      before: tensors to ignore.
    """
    super().__init__()
    self.now = self.peak = 0
    self._known = {tensor.untyped_storage()._cdata for tensor in before}

  def __torch_dispatch__(
    self, func: Any, types: Any, args: Any = (), kwargs: Any = None
  ) -> Any:
    out = func(*args, **(kwargs or {}))
    for tensor in _pytree.tree_leaves(out):
      if isinstance(tensor, torch.Tensor):
        storage = tensor.untyped_storage()
        # Views and in-place results share a known storage.
        if storage._cdata not in self._known:
          self._known.add(storage._cdata)
          self.now += storage.nbytes()
          self.peak = max(self.peak, self.now)
          weakref.finalize(
            storage, self._forget, storage._cdata, storage.nbytes()
          )
    return out

  def _forget(self, address: int, size: int) -> None:
    self._known.remove(address)
    self.now -= size


def torch_plan(task: contenders.Task, settings: Any) -> dict[str, Any]:
  """Facts about a step of PyTorch, and its bytes above the weights."""
  # Examples come from NumPy and have values.
  with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
    model = transformers.AutoModelForCausalLM.from_config(
      settings,
      dtype=getattr(torch, task.dtype),
      attn_implementation='sdpa',
    )
    model.requires_grad_(False)
    model.config.use_cache = False
    loss_of, table, facts = contenders.torch_loss(task, model)
    before = [*model.parameters(), *model.buffers(), table]
    with Held(before) as held:
      loss_of().backward()
  return {**facts, 'bytes_above_weights': held.peak}


def vtokens_plan(
  task: contenders.Task, architecture: DecoderConfig, target: aot.Target
) -> dict[str, Any]:
  """Facts about a step of vtokens, and its bytes above the weights."""
  mesh = partitioning.make_mesh((1, 1, 1), target.devices[:1])
  step, arguments, _, facts = contenders.make_vtokens_step(
    task, architecture, mesh
  )
  _, figures = aot.compile_program(step.lower(*arguments), target)
  if not figures['fits']:
    return {**facts, 'failed': figures['problem']}
  return {**facts, 'bytes_above_weights': figures['bytes']['temporaries']}


def main(argv: Sequence[str]) -> None:
  del argv
  # The accelerator itself is not here, only its compiler.
  jax.config.update('jax_platforms', 'cpu')
  if any(entry.startswith('peft') for entry in train_step.CONTENDERS.value):
    raise SystemExit('--contenders: peft cannot run on tensors without values')
  target = aot.find_target(_TOPOLOGY.value, 1)
  settings = shapes.model_settings(train_step.MODEL.value)
  with tempfile.TemporaryDirectory() as directory:
    settings.save_pretrained(directory)
    architecture = train_step.read_architecture(directory)
  rows = []
  for passages in map(int, train_step.PASSAGES.value):
    for task in train_step.make_tasks('', passages):
      row: dict[str, Any] = {
        'contender': task.contender,
        'passages': passages,
        'batch': task.batch,
      }
      if task.contender in contenders.JAX:
        row |= vtokens_plan(task, architecture, target)
      else:
        row |= torch_plan(task, settings)
      found = row.get('bytes_above_weights')
      print(
        f'{task.contender:15} {passages} passages, batch {task.batch}: '
        + (f'{found / 2**30:.2f} GiB' if found else row['failed']),
        flush=True,
      )
      rows.append(row)
  if train_step.JSON.value:
    report = {
      'model': train_step.MODEL.value,
      'dtype': train_step.DTYPE.value,
      'topology': _TOPOLOGY.value,
      'versions': train_step.versions(),
      'contenders': rows,
    }
    pathlib.Path(train_step.JSON.value).write_text(
      json.dumps(report, indent=2) + '\n'
    )


if __name__ == '__main__':
  flags.run(main)
