"""General tasks: each is asked through lm-eval, and summed up.

Responses are kept as they come, in `general/responses-*.jsonl`: a model is
asked nothing twice. Questions and answers one by one are in
`general/MODEL/NAME.jsonl`.
"""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from lm_eval import evaluator
from lm_eval.utils import handle_non_serializable

from vtokens.devices import distributed
from vtokens.evaluation.harness import task_rows
from vtokens.evaluation.harness.decoder_lm import DecoderLM, PluggedTable
from vtokens.evaluation.harness.prepared_tasks import PreparedTask
from vtokens.evaluation.harness.response_log import ResponseLog
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import stopping, writers
from vtokens.models.frozen_base import FrozenBase


def run_tasks(
  base: FrozenBase,
  mesh: jax.sharding.Mesh,
  prepared: Sequence[PreparedTask],
  tables: Mapping[str, TrainedTokens],
  *,
  model: str,
  seed: int,
  batch_size: int,
  resamples: int,
  directory: epath.PathLike,
  stop: stopping.StopRequest,
) -> dict[str, list[dict[str, Any]]]:
  """Scores a base on general tasks, with and without virtual tokens.

  Args:
    base: the frozen model.
    mesh: the devices.
    prepared: the tasks, which fit; see `prepared_tasks.check_fits`.
    tables: name -> trained table of the base.
    model: name of the base.
    seed: of draws.
    batch_size: prompts at a time.
    resamples: for standard errors that lm-eval bootstraps.
    directory: for responses and predictions.
    stop: drops the batch that is being computed.

  Returns:
    `tasks`: a row for each of the paper's tasks. `harness`: a row for each
    metric of the other tasks. JSON values; accuracies of `tasks` and shares are
    in percent. Either is left out where it has no rows.
  """
  log = ResponseLog(directory, _identity(base))
  rows: dict[str, list[dict[str, Any]]] = {}
  try:
    for task in prepared:
      for name, plugged in _plugged(task, tables):
        stop.check_together()
        lm = DecoderLM(
          base,
          mesh,
          batch_size=batch_size,
          plugged=plugged,
          max_new_tokens=task.settings.max_new_tokens,
          seed=seed,
          log=log,
          label=task.name,
          stop=stop,
        )
        found = _evaluate(lm, task, resamples)
        about: dict[str, Any] = {}
        if plugged is not None:
          about = {'table': name, 'num_active': len(plugged.rows)}
        if task.settings.harness:
          rows.setdefault('harness', []).extend(
            {**row, **about} for row in task_rows.harness_rows(task, found, lm)
          )
          lines = [
            {'task': label, **sample}
            for label, samples in found['samples'].items()
            for sample in samples
          ]
        else:
          lines = task_rows.question_rows(task, found, lm)
          row = task_rows.summary(task, lines)
          rows.setdefault('tasks', []).append({**row, **about})
        if distributed.is_first():
          # Quoting keeps names apart, and no quoted name has an @.
          parts = [task.name, name] if name else [task.name]
          file = '@'.join(urllib.parse.quote(part, safe='') for part in parts)
          writers.write_text(
            epath.Path(directory) / model / f'{file}.jsonl',
            ''.join(
              json.dumps(
                line, ensure_ascii=False, default=handle_non_serializable
              )
              + '\n'
              for line in lines
            ),
          )
  finally:
    if distributed.is_first():
      log.flush()
  return rows


def _plugged(
  task: PreparedTask, tables: Mapping[str, TrainedTokens]
) -> list[tuple[str, PluggedTable | None]]:
  """Names and virtual tokens of the tables that a task is asked with."""
  size = task.settings.num_active
  if not size:
    return [('', None)]
  return [
    (name, PluggedTable(table.values[:size], table.assembler.position))
    for name, table in tables.items()
  ]


def _identity(base: FrozenBase) -> dict[str, Any]:
  """All that a response depends on but the request."""
  return {
    'base': base.fingerprint,
    'tokenizer': base.tokenizer.sha256,
    'dtype': str(base.params['embedding'][...].dtype),
    'quantize': base.quantize,
    'context_length': base.config.context_length,
  }


def _evaluate(lm: DecoderLM, task: PreparedTask, resamples: int) -> Any:
  task.forget_responses()
  return evaluator.evaluate(
    lm,
    {'tasks': dict(task.tasks), 'groups': dict(task.groups), 'group_map': {}},
    samples={**task.samples} or None,
    bootstrap_iters=resamples,
    log_samples=True,
  )
