"""`--to vtokens`: the virtual tokens alone, for `vtokens.plug` and vLLM.

Every other format has these two files beside its own. vLLM takes a table alone.
"""

from typing import ClassVar

from vtokens import config
from vtokens.exports import card_recipes, gate, shared_checks
from vtokens.exports.export_format import ExportJob, Format, Placement, Usage
from vtokens.exports.gate import Check
from vtokens.exports.trained_table import Source
from vtokens.serving import plug
from vtokens.serving.artifact import Meta

_RECIPE = """
{imports}

{load}
plug.attach(model, table)
{ids}
{generate}
"""


_KV_RECIPE = """
{imports}

{load}
{ids}
{generate}
"""


class VtokensFormat(Format):
  """A table, or keys and values, read by `vtokens.plug`."""

  name = 'vtokens'
  kinds: ClassVar[tuple[config.Kind, ...]] = ('table', 'kv')
  library = 'vtokens'

  def place(self, source: Source, base_path: str) -> Placement:
    """Ids after all ids of the base."""
    return Placement(source.table.meta.tokens)

  def write(self, job: ExportJob) -> None:
    """Nothing besides the virtual tokens."""

  def check(self, job: ExportJob) -> list[Check]:
    """A transformers model with the table attached, and detached again.

    With keys and values: the model and its cache; the model stays the base.
    """
    from vtokens.exports import torch_consumer

    opened = job.source.base
    read = plug.load(job.directory)
    model = torch_consumer.load_model(job.base_path)
    tokenizer = torch_consumer.load_tokenizer(job.base_path)
    size = opened.config.vocab_size
    before = torch_consumer.on_texts(model, opened.tokenizer.encode, size)
    embedding = model.get_input_embeddings()
    ends = sorted(opened.tokenizer.end_ids)
    if read.meta.kind == 'kv':
      cached = torch_consumer.CacheConsumer(model, tokenizer, read, ends)
      checks = shared_checks.compare(cached, job)
      after = torch_consumer.on_texts(model, opened.tokenizer.encode, size)
      return [
        *checks,
        gate.same_old_logits(after, before, shared_checks.old_ids(opened)),
        shared_checks.same_values(read.values, job),
      ]
    plug.attach(model, read)
    consumer = torch_consumer.TorchConsumer(model, tokenizer, read.meta, ends)
    checks = shared_checks.compare(consumer, job)
    after = torch_consumer.on_texts(model, opened.tokenizer.encode, size)
    plug.detach(model)
    same = model.get_input_embeddings() is embedding
    return [
      *checks,
      gate.same_old_logits(after, before, shared_checks.old_ids(opened)),
      Check(
        'the model after detach has the very same embedding', same, same, True
      ),
      shared_checks.same_values(read.table, job),
    ]

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """Transformers with `plug`; vLLM with `vtokens.vllm_client`."""
    if meta.kind == 'kv':
      return Usage(card_recipes.fill(_KV_RECIPE, meta))
    serving: tuple[str, ...] = ()
    if meta.base.id.endswith('.gguf') and not meta.base.scales_embeddings:
      serving = (
        'For vLLM, which does not read the base as vtokens does, `python -m '
        'vtokens.export --to hf-base` writes it as a directory that it serves.',
      )
    elif not meta.base.scales_embeddings:
      serving = card_recipes.vllm_embeds('BASE', dtype)
    return Usage(card_recipes.fill(_RECIPE, meta), serving)
