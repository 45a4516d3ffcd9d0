"""The README of an export."""

import json
from collections.abc import Sequence

from vtokens.exports.artifact import Meta
from vtokens.exports.gate import Check

# Of a base in Hugging Face format, and of a GGUF file: transformers' own
# tokenizer of that gives other ids than llama.cpp's.
_BASE = """
model = transformers.AutoModelForCausalLM.from_pretrained({base!r})
tokenizer = transformers.AutoTokenizer.from_pretrained({base!r})
"""
_GGUF_BASE = """
base = pathlib.Path(paths.resolve({base!r}))
model = transformers.AutoModelForCausalLM.from_pretrained(
  base.parent, gguf_file=base.name
)
tokenizer = gguf_tokenizer.read_tokenizer(base)
"""
_IDS = """
ids = plug.prompt_ids(tokenizer, passages, question, k={k}, meta=table.meta)
"""
# The most likely token, whatever the base's generation config says: it is with
# that that answers were compared.
_GENERATE = """
out = model.generate(
  torch.tensor([ids]),
  max_new_tokens=16,
  do_sample=False,
  repetition_penalty=1.0,
)
"""
_USAGE = {
  'vtokens': """
{imports}

table = plug.load('.')
{load}
plug.attach(model, table)
{ids}
{generate}
""",
  'hf': """
import torch, transformers
from vtokens import plug

table = plug.load('.')
model = transformers.AutoModelForCausalLM.from_pretrained('.')
tokenizer = transformers.AutoTokenizer.from_pretrained('.')
{ids}
{generate}
""",
  'peft': """
import peft, torch, transformers
from vtokens import plug

table = plug.load('.')
{load}
model = peft.PeftModel.from_pretrained(model, 'embedding_lora')
{ids}
# The adapter trainable_tokens has the rows in a tied head, too.
out = model.generate(
  input_ids=torch.tensor([ids]),
  max_new_tokens=16,
  do_sample=False,
  repetition_penalty=1.0,
  suppress_tokens=list(table.meta.tokens.ids),
)
""",
  'gguf': """
# llama-server --model model.gguf --port 8080
import json, urllib.request
from vtokens import plug
from vtokens.models import gguf_tokenizer

table = plug.load('.')
tokenizer = gguf_tokenizer.read_tokenizer('model.gguf')
{ids}
request = urllib.request.Request(
  'http://127.0.0.1:8080/completion',
  json.dumps({{'prompt': ids, 'n_predict': 16, 'temperature': 0}}).encode(),
  {{'Content-Type': 'application/json'}},
)
answer = json.load(urllib.request.urlopen(request))['content']
""",
}
_USAGE['spring-pt'] = (
  _USAGE['vtokens'].rstrip()
  + """
# SPRING's own code and FlashRAG read virtual_tokens.pt.
"""
)
_NOTES = {
  'gguf': (
    'llama.cpp reads the names in every prompt that is text, passages '
    'included. Ollama takes the file (`FROM ./model.gguf` in a Modelfile) and '
    'text alone: send it `plug.prompt_text`, with `"raw": true` (from '
    'documentation).'
  ),
}
_GEMMA = (
  'The head is a matrix of its own here, where other models of this family '
  'take the embedding matrix for it. transformers reads that; vLLM and '
  'llama.cpp expect the one matrix, and do not serve this checkpoint.'
)


def render(meta: Meta, to: str, checks: Sequence[Check]) -> str:
  """Markdown: what it is, how it is used, its scores and its checks."""
  n, width = meta.shape
  notes = [_NOTES[to]] if to in _NOTES else []
  if to == 'hf' and meta.base.scales_embeddings:
    notes.append(_GEMMA)
  # What the hub shows beside a model, and it refuses a base that it lacks.
  on_hub = [f'base_model: {json.dumps(meta.base.id)}']
  lines = [
    '---',
    *(on_hub if meta.base.revision else []),
    'pipeline_tag: text-generation',
    f'library_name: {"peft" if to == "peft" else "transformers"}',
    'tags: [retrieval-augmented-generation, soft-prompt, vtokens]',
    '---',
    '',
    '# Virtual tokens for retrieval-augmented answers',
    '',
    f'{n} embeddings of {width} numbers for `{meta.base.id}`, whose weights '
    'are unchanged. They stand between retrieved passages and the question '
    '(SPRING, arXiv 2405.19670); any first k of them work.',
    '',
    '```python',
    _usage(meta, to),
    '```',
    '',
    f'Ids {meta.tokens.ids[0]} to {meta.tokens.ids[-1]}, '
    f'`{meta.tokens.names[0]}` to `{meta.tokens.names[-1]}`. Build prompts of '
    'ids, with `plug.prompt_ids`, rather than of text: tokenizers read text '
    'around such names in their own ways, and a passage may contain them.',
    *(line for note in notes for line in ('', note)),
    '',
    '## Prompt',
    '',
    f'Position of the tokens: {meta.prompt.position}. Templates:',
    '',
    '```json',
    json.dumps(vars(meta.prompt.templates), indent=2, ensure_ascii=False),
    '```',
  ]
  if meta.quantize != 'none':
    lines += [
      '',
      f'They were trained on the base quantised to {meta.quantize}, to which '
      'the scores belong; the checks are of the base itself.',
    ]
  scores = meta.metrics.get('conditions', {})
  if scores:
    lines += ['', '## Scores of the training run, in percent', '']
    lines += ['| | EM | F1 | questions |', '| --- | --: | --: | --: |']
    lines += [
      f'| {name} | {row["em"]:.1f} | {row["f1"]:.1f} | {row["n"]} |'
      for name, row in scores.items()
    ]
    lines += [
      f'| tokens, k = {k} | {row["em"]:.1f} | {row["f1"]:.1f} | |'
      for k, row in meta.metrics.get('k', {}).items()
    ]
  lines += ['', '## Checks of this export', '']
  lines += ['| check | found | expected |', '| --- | --- | --- |']
  lines += [
    f'| {check.name} | {check.found} | {check.expected} |' for check in checks
  ]
  return '\n'.join(lines) + '\n'


def _usage(meta: Meta, to: str) -> str:
  gguf = meta.base.id.endswith('.gguf')
  imports = (
    'import pathlib, torch, transformers\n'
    'from vtokens import paths, plug\n'
    'from vtokens.models import gguf_tokenizer'
    if gguf
    else 'import torch, transformers\nfrom vtokens import plug'
  )
  load = _GGUF_BASE if gguf else _BASE
  return (
    _USAGE[to]
    .format(
      imports=imports,
      load=load.strip().format(base=meta.base.id),
      ids=_IDS.strip().format(k=meta.num_trained),
      generate=_GENERATE.strip(),
    )
    .strip()
  )
