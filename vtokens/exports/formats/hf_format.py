"""`--to hf`: the base with the virtual tokens in its vocabulary."""

from vtokens.exports import card_recipes, gate, hf_checkpoint, shared_checks
from vtokens.exports.export_format import (
  ExportJob,
  Format,
  Placement,
  Usage,
)
from vtokens.exports.gate import Check
from vtokens.exports.trained_table import Source
from vtokens.host import markdown
from vtokens.serving.artifact import Meta

_RECIPE = """
import torch, transformers
from vtokens import plug

table = plug.load('.')
model = transformers.AutoModelForCausalLM.from_pretrained('.')
tokenizer = transformers.AutoTokenizer.from_pretrained('.')
{ids}
{generate}
"""
# The body of a request, for servers that take ids.
_VLLM = """
body = {
  'model': 'vtokens',
  'prompt': ids,
  'max_tokens': 16,
  'temperature': 0,
  'repetition_penalty': 1.0,
  'stop': ['\\n'],
}
"""
_GEMMA = (
  'The head is a matrix of its own here. transformers reads that. Other '
  'servers may take the embedding matrix for the head of models of this '
  'family, whatever config.json says: compare their answers with those of '
  'transformers.'
)


class HFFormat(Format):
  """A checkpoint in Hugging Face format, read by transformers."""

  name = 'hf'
  library = 'transformers'
  from_directory = True

  def place(self, source: Source, base_path: str) -> Placement:
    """Ids after the tokenizer's last; see `hf_checkpoint`."""
    return hf_checkpoint.place(source.table, source.base, base_path)

  def write(self, job: ExportJob) -> None:
    """Weights, configs and tokenizer."""
    hf_checkpoint.write(
      job.directory,
      job.source.table,
      job.placement,
      job.base_path,
      hf_checkpoint.answer_end(job.source.table, job.source.base),
    )

  def check(self, job: ExportJob) -> list[Check]:
    """The checkpoint in transformers, beside the base."""
    from vtokens.exports import torch_consumer

    opened, meta = job.source.base, job.exported.meta
    size, ids = opened.config.vocab_size, job.placement.tokens.ids
    base = torch_consumer.load_model(job.base_path)
    before = torch_consumer.on_texts(base, opened.tokenizer.encode, size)
    del base
    model = torch_consumer.load_model(str(job.directory))
    tokenizer = torch_consumer.load_tokenizer(str(job.directory))
    consumer = torch_consumer.TorchConsumer(
      model, tokenizer, meta, sorted(opened.tokenizer.end_ids)
    )
    end = hf_checkpoint.answer_end(job.source.table, opened)
    return [
      torch_consumer.names_matched(tokenizer, meta),
      *torch_consumer.settings(job.directory, ids, end),
      torch_consumer.head_is_harmless(model, ids, job.placement.unsaid[0]),
      _only_weights(job),
      *shared_checks.compare(consumer, job),
      gate.same_old_logits(
        torch_consumer.on_texts(model, opened.tokenizer.encode, size),
        before,
        shared_checks.old_ids(opened, ids),
      ),
    ]

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """transformers, and vLLM with ids."""
    recipe = card_recipes.fill(_RECIPE, meta)
    if meta.base.scales_embeddings:
      return Usage(recipe, notes=(_GEMMA,))
    option, note = card_recipes.vllm_option(dtype)
    command = f'vllm serve . --served-model-name vtokens{option}'
    return Usage(
      recipe,
      (
        markdown.block(command, 'sh'),
        f'{note}The body of a request to `/v1/completions`:',
        markdown.block(_VLLM.strip(), 'python'),
      ),
    )


def _only_weights(job: ExportJob) -> Check:
  stray, missing, number = hf_checkpoint.stray_weights(
    job.directory, job.base_path
  )
  return Check(
    "tensors in the directory's *.safetensors, as servers find them",
    not stray and not missing,
    f'{len(missing)} missing {missing[:3]}, {len(stray)} others {stray[:3]}'
    if stray or missing
    else f'{number}, each once',
    f'the {number} of the model, each once',
  )
