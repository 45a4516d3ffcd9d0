"""Checks that formats share whose consumer runs in this process."""

from collections.abc import Sequence

from vtokens.exports import gate
from vtokens.exports.export_format import ExportJob
from vtokens.exports.gate import Check, Consumer
from vtokens.models.frozen_base import OpenBase
from vtokens.serving import trained_file
from vtokens.serving.trained_file import Trained


def compare(consumer: Consumer, job: ExportJob) -> list[Check]:
  """Prompts, logits, answers and samples, compared with our model."""
  meta = job.exported.meta
  size = meta.base.vocab_size
  old = sorted(set(range(size)) - set(consumer.virtual_ids()))
  sampled, seed = job.settings.gate.sampled, job.settings.seed
  return [
    gate.matched(consumer, job.probes, meta.num_trained),
    gate.same_prompts(consumer, job.probes, size),
    gate.same_logits(consumer, job.probes, old),
    gate.same_answers(consumer, job.probes, job.max_new_tokens),
    gate.never_said(consumer, job.probes, sampled, seed),
  ]


def old_ids(opened: OpenBase, virtual: Sequence[int] = ()) -> list[int]:
  """Ids of the base, without ids of virtual tokens."""
  return sorted(set(range(opened.config.vocab_size)) - set(virtual))


def same_values(read: Trained, job: ExportJob) -> Check:
  """Virtual tokens that were read again have the same values."""
  meta = job.exported.meta
  found, expected = trained_file.sha256(read), meta.table_sha256
  what = {'table': 'the table', 'kv': 'keys and values'}[meta.kind]
  return Check(
    f'{what} as read again, SHA-256', found == expected, found, expected
  )
