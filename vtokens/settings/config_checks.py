"""What a run's settings have to be, beyond the type and range of each.

A function a section. Each takes `values`, which `schema.flatten` made of
settings that have the section, and `fail` of `schema.check`, which raises an
`errors.UserError` that names the field.
"""

import math
import string
from typing import Any

from vtokens.host import paths

_PLACEHOLDERS = {
  'templates.passage': {'index', 'title', 'text'},
  'templates.prompt': {'question'},
  'templates.concat': {'question'},
  'templates.instruction': {'question'},
  'templates.answer': {'answer'},
  'templates.chat_answer': {'answer'},
}


# Tokens of a batch.
_MOST_IN_BATCH = 1 << 31
# Examples of a window.
_MOST_IN_WINDOW = 1 << 20
# Sizes of datasets are raised to the power of its inverse.
_LEAST_TEMPERATURE = 0.05
# Below it logits that are divided by it leave the range of float32.
_LEAST_SAMPLING = 1e-3


def check_templates(values: dict[str, Any], fail: Any) -> None:
  """Checks the section `templates`."""
  for field, names in _PLACEHOLDERS.items():
    try:
      used = set(_placeholders(values[field]))
    except ValueError:  # A single brace.
      used = {'{'}
    if used - names:
      fail(field, f'no placeholders but {sorted(names)} ({{{{ is a brace)')
    missing = sorted(names - {'index', 'title'} - used)
    if missing:
      fail(field, f'the placeholder {{{missing[0]}}}')
  if 'index' in _placeholders(values['templates.passage'])[1:]:
    fail('templates.passage', '{index} only once, before {text} and {title}')


def check_devices(values: dict[str, Any], fail: Any) -> None:
  """Checks the sections `mesh` and `distributed`."""
  for field in ('num_processes', 'process_id', 'start_timeout'):
    least = {'process_id': -1, 'num_processes': 0}.get(field, 1)
    if values[f'distributed.{field}'] < least:
      fail(f'distributed.{field}', f'a number from {least} on')
  if values['distributed.failure_timeout'] < 5:
    fail('distributed.failure_timeout', 'at least 5 seconds')
  shape = values['mesh.shape']
  if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    fail('mesh.shape', 'numbers above 0, or -1 for one of them')


def check_top_p(values: dict[str, Any], section: str, fail: Any) -> None:
  """Checks `Decode.top_p` and `Decode.temperature` of a section."""
  if 0 < values[f'{section}.temperature'] < _LEAST_SAMPLING:
    fail(f'{section}.temperature', f'0 (greedy), or at least {_LEAST_SAMPLING}')
  if not 0 < values[f'{section}.top_p'] <= 1:
    fail(f'{section}.top_p', 'a number in (0, 1]')


def check_virtual_tokens(values: dict[str, Any], fail: Any) -> None:
  """Checks the section `virtual_tokens`."""
  rows = values['virtual_tokens.num_virtual_tokens']
  fixed = values['virtual_tokens.draw'] == 'fixed'
  if fixed and values['virtual_tokens.num_active'] > rows:
    fail(
      'virtual_tokens.num_active',
      f'at most virtual_tokens.num_virtual_tokens={rows}, since draw=fixed',
    )
  if values['virtual_tokens.draws_per_example'] > 1:
    if fixed:
      fail(
        'virtual_tokens.draws_per_example',
        '1, since all draws of draw=fixed are the same',
      )
    if values['virtual_tokens.position'] == 'first':
      fail(
        'virtual_tokens.draws_per_example',
        '1, since with virtual_tokens.position=first the passages depend on '
        'the tokens and cannot be shared',
      )
  init = values['virtual_tokens.init']
  if init == 'table' and not values['virtual_tokens.init_path']:
    fail('virtual_tokens.init_path', 'a file, since init=table')
  if init == 'text' and not values['virtual_tokens.init_text'].strip():
    fail('virtual_tokens.init_text', 'some text, since init=text')


def check_data(values: dict[str, Any], fail: Any) -> None:
  """Checks the section `data` but for passages and shapes."""
  if paths.on_object_store(values['data.token_cache']):
    fail('data.token_cache', 'a local or mounted directory')
  for field in ('data.mixture.weights', 'data.mixture.max_examples'):
    if any(not 0 < value < math.inf for value in values[field].values()):
      fail(field, 'finite numbers above 0')
  weighting = values['data.mixture.weighting']
  if (weighting == 'weights') != bool(values['data.mixture.weights']):
    fail(
      'data.mixture.weights',
      'a weight for each dataset with data.mixture.weighting=weights, and '
      'none without',
    )
  if values['data.mixture.temperature'] < _LEAST_TEMPERATURE:
    fail('data.mixture.temperature', f'at least {_LEAST_TEMPERATURE}')
  window = values['data.batch_size'] * values['data.window_batches']
  if window > _MOST_IN_WINDOW:
    fail(
      'data.window_batches',
      f'at most {_MOST_IN_WINDOW // values["data.batch_size"]:,} with '
      f'data.batch_size={values["data.batch_size"]}: the examples of a window '
      f'are in memory together, at most {_MOST_IN_WINDOW:,}',
    )
  longest = values['data.max_prefix_tokens'] + values['data.max_suffix_tokens']
  if values['data.batch_size'] * longest > _MOST_IN_BATCH:
    fail(
      'data.batch_size',
      f'at most {_MOST_IN_BATCH // longest:,} with data.max_prefix_tokens and '
      f'data.max_suffix_tokens of {longest:,} together: the tokens of a batch '
      f'are in memory, at most {_MOST_IN_BATCH:,}',
    )
  micro = values['train.accumulation_steps']
  per_row = values['data.examples_per_row']
  if values['data.batch_size'] % (micro * per_row):
    fail(
      'data.batch_size',
      f'a multiple of train.accumulation_steps={micro} times '
      f'data.examples_per_row={per_row}',
    )
  rows = values['virtual_tokens.num_virtual_tokens']
  answer = values['data.max_answer_tokens']
  if values['data.max_suffix_tokens'] < rows + answer:
    fail(
      'data.max_suffix_tokens',
      f'room for {rows} virtual tokens and data.max_answer_tokens={answer}',
    )


def check_shapes(values: dict[str, Any], fail: Any) -> None:
  """Checks `data.shapes`."""
  shapes = values['data.shapes']
  if any(min(shape) < 1 for shape in shapes):
    fail('data.shapes', 'pairs of lengths above 0')
  per_row = values['data.examples_per_row']
  # A batch needs one that holds it, however its examples are drawn.
  most = (
    per_row * values['data.max_prefix_tokens'],
    per_row * values['data.max_suffix_tokens'],
  )
  if values['virtual_tokens.position'] == 'first':
    # How long a prefix without passages is, only the tokenizer tells.
    if shapes and shapes[-1][1] < sum(most):
      fail(
        'data.shapes',
        f'the suffix of the last one to be at least {sum(most)}: '
        'data.examples_per_row times data.max_prefix_tokens and '
        'data.max_suffix_tokens together, since virtual_tokens.position=first '
        'puts the passages there',
      )
  elif shapes and (shapes[-1][0] < most[0] or shapes[-1][1] < most[1]):
    fail(
      'data.shapes',
      f'the last one to be at least {most}: data.examples_per_row times '
      'data.max_prefix_tokens and data.max_suffix_tokens',
    )


def check_optim(values: dict[str, Any], fail: Any) -> None:
  """Checks the section `optim`."""
  for field in ('optim.b1', 'optim.b2'):
    if not 0 <= values[field] < 1:
      fail(field, 'a number in [0, 1)')
  steps = values['train.num_steps']
  if values['optim.warmup_steps'] >= steps:
    fail('optim.warmup_steps', f'less than train.num_steps={steps}')


def check_eval(values: dict[str, Any], fail: Any) -> None:
  """Checks the section `eval`."""
  rows = values['virtual_tokens.num_virtual_tokens']
  active = values['eval.num_active']
  if not active or min(active) < 1 or max(active) > rows:
    fail(
      'eval.num_active',
      f'numbers from 1 to virtual_tokens.num_virtual_tokens={rows}',
    )
  trained = values['virtual_tokens.num_active']
  if values['virtual_tokens.draw'] == 'fixed' and max(active) > trained:
    fail(
      'eval.num_active',
      f'at most virtual_tokens.num_active={trained}, since draw=fixed '
      'trains no more rows',
    )
  check_top_p(values, 'eval', fail)


def check_passages(values: dict[str, Any], name: str, fail: Any) -> None:
  """Checks one `Passages` section."""
  low, high = values[f'{name}.number']
  if not 0 <= low <= high:
    fail(f'{name}.number', '(least, most) with 0 <= least <= most')
  if values[f'{name}.depth'] < high:
    fail(f'{name}.depth', f'at least the most passages shown, {high}')
  if values[f'{name}.order'] not in ('shuffled', 'rank', 'gold_last'):
    fail(f'{name}.order', 'one of shuffled, rank, gold_last')
  for field in ('distractors', 'no_answer', 'none'):
    if not 0 <= values[f'{name}.{field}'] <= 1:
      fail(f'{name}.{field}', 'a probability')


def _placeholders(template: str) -> list[str]:
  """What is in braces, as it is written: 'text', but also 'text!r:9'."""
  return [
    name
    + (f'!{conversion}' if conversion else '')
    + (f':{spec}' if spec else '')
    for _, name, spec, conversion in string.Formatter().parse(template)
    if name is not None
  ]
