"""The README of an export."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import vtokens
from vtokens.exports.export_format import Format
from vtokens.exports.gate import Check
from vtokens.host import markdown
from vtokens.models import quantize
from vtokens.serving import artifact
from vtokens.serving.artifact import Meta


@dataclasses.dataclass(frozen=True)
class BaseFacts:
  """What a card says of a base besides `Meta`.

  Attributes:
    licence: see `licence.of_base`.
    dtype: dtype of its weights in an export; '' if unknown.
    wrapped: whether it is the text part of a multimodal model.
    quantised: how its files are quantised, in words; '' if they are not.
  """

  licence: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dtype: str = ''
  wrapped: bool = False
  quantised: str = ''


def render(
  meta: Meta,
  to: Format,
  checks: Sequence[Check],
  base: BaseFacts | None = None,
) -> str:
  """The card of an export in Markdown: usage, scores and checks.

  Args:
    meta: of the export.
    to: its format.
    checks: of the gate.
    base: more about the base; None if nothing is known.
  """
  base = base or BaseFacts()
  usage = to.usage(meta, base.dtype)
  recipe = usage.recipe
  if base.wrapped:
    recipe = recipe.replace(
      'AutoModelForCausalLM', 'AutoModelForImageTextToText'
    )
  # The hub shows it beside a model, and refuses a base that it does not have.
  on_hub = [f'base_model: {json.dumps(meta.base.id)}']
  lines = [
    '---',
    *(on_hub if meta.base.revision else []),
    'pipeline_tag: text-generation',
    *(f'{name}: {json.dumps(text)}' for name, text in base.licence.items()),
    f'library_name: {to.library}',
    'tags: [retrieval-augmented-generation, soft-prompt, vtokens]',
    '---',
    '',
    '# Virtual tokens for retrieval-augmented answers',
    '',
    f'{_what(meta)} for {markdown.code(meta.base.id)}, '
    'whose weights are unchanged. They stand between retrieved passages and '
    'the question (SPRING, arXiv 2405.19670); any first k of them work.',
    '',
    _about_base(meta, base),
    '',
    '## Use',
    '',
    f'With vtokens {vtokens.__version__}; in its source, '
    "`pip install '.[export]'` installs it with PyTorch and PEFT. Answers end "
    'at the first line break, where all scores cut answers.',
    '',
    markdown.block(recipe, 'python'),
    *(line for block in usage.serving for line in ('', block)),
    '',
    _about_ids(meta),
    *(line for note in usage.notes for line in ('', note)),
    '',
    '## Prompt',
    '',
    f'Position of the tokens: {meta.prompt.position}. Templates:',
    '',
    markdown.block(
      json.dumps(
        artifact.templates_json(meta.prompt.templates),
        indent=2,
        ensure_ascii=False,
      ),
      'json',
    ),
  ]
  if meta.quantize != 'none':
    lines += [
      '',
      f'They were trained on the base with {quantize.describe(meta.quantize)}, '
      'to which the scores belong; the checks are of the base itself.',
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


def _what(meta: Meta) -> str:
  """What the virtual tokens are."""
  if meta.kind == 'table':
    n, width = meta.shape
    return f'{n} embeddings of {width} numbers'
  layers, n, heads, width = meta.shape
  return (
    f'{n} virtual tokens, each a key and a value of {heads} x {width} numbers '
    f'in {layers} layers,'
  )


def _about_ids(meta: Meta) -> str:
  first, last = meta.tokens.ids[0], meta.tokens.ids[-1]
  if meta.kind == 'kv':
    return (
      f'In `ids` the virtual tokens are {first} to {last}. The model has no '
      'such ids: `plug.generate` puts keys and values in their places of the '
      'cache.'
    )
  return (
    f'Ids {first} to {last}, {markdown.code(meta.tokens.names[0])} to '
    f'{markdown.code(meta.tokens.names[-1])}. Build prompts of '
    'ids, with `plug.prompt_ids`, rather than of text: tokenizers read text '
    'around such names in their own ways, and a passage may contain them.'
  )


def _about_base(meta: Meta, base: BaseFacts) -> str:
  parts = [f'The base is {markdown.code(meta.base.id)}']
  if meta.base.revision:
    parts.append(f'at commit {markdown.code(meta.base.revision)}')
  parts.append(f'with the fingerprint {markdown.code(meta.base.fingerprint)}.')
  if base.quantised:
    parts.append(
      f'Its files are quantised ({markdown.text(base.quantised)}). The tokens '
      'were trained and checked with these values of the weights; what a '
      "server does to a product's inputs was not modelled."
    )
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
