"""Pieces of the recipes that cards show: Python and servers' commands."""

from vtokens.exports import public_names
from vtokens.host import markdown
from vtokens.serving.artifact import Meta

# Loading a base: a directory, or a GGUF file with our tokenizer, since that of
# transformers gives other ids than llama.cpp's.
_BASE = """
base = {base!r}{where}
table = plug.load('.')
model = transformers.AutoModelForCausalLM.from_pretrained(base)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
"""
_GGUF_BASE = """
base = {base!r}{where}
table = plug.load('.')
file = pathlib.Path(paths.resolve(base))
model = transformers.AutoModelForCausalLM.from_pretrained(
  file.parent, gguf_file=file.name
)
tokenizer = gguf_tokenizer.read_tokenizer(file)
"""
_WHERE = '  # Where it is: {what}.'
_IMPORTS = 'import torch, transformers\nfrom vtokens import plug'
_GGUF_IMPORTS = (
  'import pathlib, torch, transformers\n'
  'from vtokens import plug\n'
  'from vtokens.host import paths\n'
  'from vtokens.models.tokenizers import gguf_tokenizer'
)
_IDS = """
ids = plug.prompt_ids(tokenizer, passages, question, k={k}, meta=table.meta)
"""
# The settings with which answers were compared and scored: greedy, whatever the
# base's generation config says, up to the first line break.
_GENERATE = """
out = {call}
  max_new_tokens=16,
  do_sample=False,
  repetition_penalty=1.0,
  stop_strings=['\\n'],
  tokenizer=tokenizer,{more}
)
answer = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
"""
_FLOAT32 = (
  'The weights are float32: without `--dtype` vLLM rounds them to bfloat16, '
  'and answers differ. '
)


def fill(template: str, meta: Meta, *, peft: bool = False) -> str:
  """Fills the shared pieces into a recipe.

  Args:
    template: Python with {imports}, {load} (of the unchanged base), {ids} (of
      the prompt) and {generate}; other braces are doubled.
    meta: of the export.
    peft: generate as with a PEFT model, and suppress the virtual tokens.
  """
  gguf = meta.base.id.endswith('.gguf')
  what = 'the file' if gguf else 'a directory or a name on the hub'
  where = _WHERE.format(what=what) if public_names.is_local(meta) else ''
  call = f'model.generate(\n  {"input_ids=" * peft}torch.tensor([ids]),'
  if meta.kind == 'kv':
    call = 'plug.generate(\n  model, ids, table,'
  more = '\n  suppress_tokens=list(table.meta.tokens.ids),' * peft
  return template.format(
    imports=_GGUF_IMPORTS if gguf else _IMPORTS,
    load=(_GGUF_BASE if gguf else _BASE)
    .strip()
    .format(base=meta.base.id, where=where),
    ids=_IDS.strip().format(k=meta.num_trained),
    generate=_GENERATE.strip().format(call=call, more=more),
  ).strip()


def vllm_option(dtype: str) -> tuple[str, str]:
  """The option that keeps weights of a dtype in vLLM, and a sentence on it."""
  if dtype == 'float32':
    return ' --dtype float32', _FLOAT32
  return '', ''


def vllm_embeds(served: str, dtype: str) -> tuple[str, ...]:
  """Markdown blocks: vLLM with prompts of embeddings.

  Args:
    served: directory or name of the base.
    dtype: dtype of its weights.
  """
  option, note = vllm_option(dtype)
  return (
    markdown.block(f'vllm serve {served} --enable-prompt-embeds{option}', 'sh'),
    f'{note}`vtokens.vllm_client` sends it the prompts; give `complete` '
    "`stop=['\\n']`, `temperature=0` and `repetition_penalty=1.0`.",
  )
