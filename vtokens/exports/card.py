"""The README of an export."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence

from vtokens.exports import public_names
from vtokens.exports.gate import Check
from vtokens.host import markdown
from vtokens.serving.artifact import Meta


@dataclasses.dataclass(frozen=True)
class BaseFacts:
  """What a card says of a base, beside what `Meta` has.

  Attributes:
    licence: see `licence.of_base`.
    dtype: of its weights in an `hf` or `hf-base` export; '' if it is not known.
  """

  licence: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dtype: str = ''


# The library that reads an export, as the hub calls it.
_LIBRARY = {
  'vtokens': 'vtokens',
  'spring-pt': 'vtokens',
  'hf': 'transformers',
  'hf-base': 'transformers',
  'peft': 'peft',
  'gguf': 'gguf',
}
# Of a base in Hugging Face format, and of a GGUF file: transformers' own
# tokenizer of that gives other ids than llama.cpp's.
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
_IDS = """
ids = plug.prompt_ids(tokenizer, passages, question, k={k}, meta=table.meta)
"""
# The most likely token, whatever the base's generation config says, up to the
# first line break: it is with that that answers were compared and scored.
_GENERATE = """
out = model.generate(
  {ids}torch.tensor([ids]),
  max_new_tokens=16,
  do_sample=False,
  repetition_penalty=1.0,
  stop_strings=['\\n'],
  tokenizer=tokenizer,{more}
)
answer = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
"""
_USAGE = {
  'vtokens': """
{imports}

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
  'hf-base': """
import torch, transformers
from vtokens import plug

table = plug.load('.')
model = transformers.AutoModelForCausalLM.from_pretrained('.')
tokenizer = transformers.AutoTokenizer.from_pretrained('.')
plug.attach(model, table)
{ids}
{generate}
""",
  'peft': """
import peft, torch, transformers
from vtokens import plug

{load}
model = peft.PeftModel.from_pretrained(model, 'embedding_lora')
{ids}
# The adapter trainable_tokens has the rows in a tied head, too.
{generate}
""",
  'gguf': """
# llama-server --model model.gguf --port 8080
import json, urllib.request
from vtokens import plug
from vtokens.models.tokenizers import gguf_tokenizer

table = plug.load('.')
tokenizer = gguf_tokenizer.read_tokenizer('model.gguf')
{ids}
body = {{'prompt': ids, 'n_predict': 16, 'temperature': 0, 'stop': ['\\n']}}
request = urllib.request.Request(
  'http://127.0.0.1:8080/completion',
  json.dumps(body).encode(),
  {{'Content-Type': 'application/json'}},
)
answer = json.load(urllib.request.urlopen(request))['content'].strip()
""",
}
_USAGE['spring-pt'] = (
  _USAGE['vtokens'].rstrip()
  + """
# SPRING's own code and FlashRAG read virtual_tokens.pt.
"""
)
# Settings of a request, for servers that take ids.
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


def render(
  meta: Meta, to: str, checks: Sequence[Check], base: BaseFacts | None = None
) -> str:
  """Markdown: what it is, how it is used, its scores and its checks.

  Args:
    meta: of the export.
    to: its format.
    checks: of the gate.
    base: more about the base; None if nothing is known.
  """
  base = base or BaseFacts()
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
    *(f'{name}: {json.dumps(text)}' for name, text in base.licence.items()),
    f'library_name: {_LIBRARY[to]}',
    'tags: [retrieval-augmented-generation, soft-prompt, vtokens]',
    '---',
    '',
    '# Virtual tokens for retrieval-augmented answers',
    '',
    f'{n} embeddings of {width} numbers for {markdown.code(meta.base.id)}, '
    'whose weights are unchanged. They stand between retrieved passages and '
    'the question (SPRING, arXiv 2405.19670); any first k of them work.',
    '',
    _about_base(meta, base),
    '',
    '## Use',
    '',
    f'With vtokens {importlib.metadata.version("vtokens")}; in its source, '
    "`pip install '.[export]'` installs it with PyTorch and PEFT. Answers end "
    'at the first line break, where all scores cut answers.',
    '',
    markdown.block(_usage(meta, to), 'python'),
    *_vllm(meta, to, base),
    '',
    f'Ids {meta.tokens.ids[0]} to {meta.tokens.ids[-1]}, '
    f'{markdown.code(meta.tokens.names[0])} to '
    f'{markdown.code(meta.tokens.names[-1])}. Build prompts of '
    'ids, with `plug.prompt_ids`, rather than of text: tokenizers read text '
    'around such names in their own ways, and a passage may contain them.',
    *(line for note in notes for line in ('', note)),
    '',
    '## Prompt',
    '',
    f'Position of the tokens: {meta.prompt.position}. Templates:',
    '',
    markdown.block(
      json.dumps(vars(meta.prompt.templates), indent=2, ensure_ascii=False),
      'json',
    ),
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
    rows = [
      (markdown.text(name), row, row.get('n', ''))
      for name, row in scores.items()
    ]
    rows += [
      (f'tokens, k = {markdown.text(k)}', row, '')
      for k, row in meta.metrics.get('k', {}).items()
    ]
    lines += [
      f'| {name} | {row["em"]:.1f} | {row["f1"]:.1f} | {count} |'
      for name, row, count in rows
    ]
  lines += ['', '## Checks of this export', '']
  lines += ['| check | found | expected |', '| --- | --- | --- |']
  lines += [
    '| {} |'.format(
      ' | '.join(
        markdown.text(str(part))
        for part in (check.name, check.found, check.expected)
      )
    )
    for check in checks
  ]
  return '\n'.join(lines) + '\n'


def _about_base(meta: Meta, base: BaseFacts) -> str:
  parts = [f'The base is {markdown.code(meta.base.id)}']
  if meta.base.revision:
    parts.append(f'at commit {markdown.code(meta.base.revision)}')
  parts.append(f'with the fingerprint {markdown.code(meta.base.fingerprint)}.')
  found = base.licence
  if found:
    name = found.get('license_name', found['license'])
    link = f', {found["license_link"]}' if 'license_link' in found else ''
    parts.append(f'Its licence, {markdown.code(name)}{link}, holds here, too.')
  else:
    parts.append(
      'Its model card and metadata give no single identifier of a licence: '
      'find out what holds before this is published.'
    )
  return ' '.join(parts)


def _vllm(meta: Meta, to: str, base: BaseFacts) -> list[str]:
  """How vLLM serves it; nothing for what it does not serve."""
  if to not in ('hf', 'hf-base', 'vtokens') or meta.base.scales_embeddings:
    return []
  options = ''
  note = ''
  if base.dtype == 'float32':
    # It converts them to bfloat16 otherwise.
    options = ' --dtype float32'
    note = (
      'The weights are float32: without `--dtype` vLLM rounds them to '
      'bfloat16, and answers differ. '
    )
  if to == 'hf':
    command = f'vllm serve . --served-model-name vtokens{options}'
    text = f'{note}The body of a request to `/v1/completions`:'
    return [
      *('', markdown.block(command, 'sh'), '', text, ''),
      markdown.block(_VLLM.strip(), 'python'),
    ]
  if to == 'vtokens' and meta.base.id.endswith('.gguf'):
    text = (
      'For vLLM, which does not read the base as vtokens does, `python -m '
      'vtokens.export --to hf-base` writes it as a directory that it serves.'
    )
    return ['', text]
  served = '.' if to == 'hf-base' else 'BASE'
  command = f'vllm serve {served} --enable-prompt-embeds{options}'
  text = (
    f'{note}`vtokens.vllm_client` sends it the prompts; give `complete` '
    "`stop=['\\n']`, `temperature=0` and `repetition_penalty=1.0`."
  )
  return ['', markdown.block(command, 'sh'), '', text]


def _usage(meta: Meta, to: str) -> str:
  gguf = meta.base.id.endswith('.gguf')
  imports = (
    'import pathlib, torch, transformers\n'
    'from vtokens import plug\n'
    'from vtokens.host import paths\n'
    'from vtokens.models.tokenizers import gguf_tokenizer'
    if gguf
    else 'import torch, transformers\nfrom vtokens import plug'
  )
  what = 'the file' if gguf else 'a directory or a name on the hub'
  where = _WHERE.format(what=what) if public_names.is_local(meta) else ''
  more = '\n  suppress_tokens=list(table.meta.tokens.ids),' * (to == 'peft')
  return (
    _USAGE[to]
    .format(
      imports=imports,
      load=(_GGUF_BASE if gguf else _BASE)
      .strip()
      .format(base=meta.base.id, where=where),
      ids=_IDS.strip().format(k=meta.num_trained),
      generate=_GENERATE.strip().format(
        ids='input_ids=' * (to == 'peft'), more=more
      ),
    )
    .strip()
  )
