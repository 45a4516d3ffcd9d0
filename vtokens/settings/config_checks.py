"""Checks that a field's type and bounds cannot express.

`check_*` of a value stands on a field, as `AfterValidator(check_range)`: the
text of its ValueError says what was expected. `check_*` of a section or config
compares fields with one another and raises `errors.UserError`.
"""

import string
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from vtokens.host import paths
from vtokens.settings.schema import refuse

if TYPE_CHECKING:
  from vtokens import config

# Tokens of a batch, which are in memory together.
_MOST_IN_BATCH = 1 << 31
# Examples of a window, likewise.
_MOST_IN_WINDOW = 1 << 20


def check_passage_template(template: str) -> str:
  """Checks `Templates.passage`."""
  _check_placeholders(template, 'text', ('index', 'title'))
  if 'index' in _placeholders(template)[1:]:
    raise ValueError('{index} only once, before {text} and {title}')
  return template


def _check_question_template(template: str) -> str:
  return _check_placeholders(template, 'question')


def _check_answer_template(template: str) -> str:
  _check_placeholders(template, 'answer', ('source',))
  names = _placeholders(template)
  if 'source' in names:
    between = _text_between(template, 'answer', 'source')
    if (
      names != ['answer', 'source']
      or not between.strip()
      or len(between.splitlines()) > 1
    ):
      # An answer may end at a line break.
      raise ValueError(
        '{source} once, after {answer} and a visible sign and on the same '
        "line, as in '{answer} [{source}]'"
      )
  return template


def _text_between(template: str, first: str, last: str) -> str:
  """The text between two placeholders."""
  text, is_between = '', False
  for literal, name, *_ in string.Formatter().parse(template):
    text += literal if is_between else ''
    if name == last:
      break
    is_between |= name == first
  return text


def check_refusal(text: str) -> str:
  """Checks `Templates.refusal`; an answer may end at a line break."""
  if not text.strip() or len(text.splitlines()) > 1:
    raise ValueError('some text without a line break')
  return text


QuestionTemplate = Annotated[str, AfterValidator(_check_question_template)]
AnswerTemplate = Annotated[str, AfterValidator(_check_answer_template)]


def check_local(path: str) -> str:
  """Checks the path of a directory that cannot be on an object store."""
  if paths.on_object_store(path):
    raise ValueError('a local or mounted directory')
  return path


def check_range(number: tuple[int, int]) -> tuple[int, int]:
  """Checks the least and the most of something."""
  if number[0] > number[1]:
    raise ValueError('(least, most) with 0 <= least <= most')
  return number


def check_steps(steps: tuple[int, int]) -> tuple[int, int]:
  """Checks `Tracking.profile_steps`."""
  if not (steps == (0, 0) or 1 <= steps[0] <= steps[1]):
    raise ValueError('(first, last) with 1 <= first <= last')
  return steps


def check_mesh_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """Checks `Mesh.shape`."""
  if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    raise ValueError('numbers above 0, or -1 for one of them')
  return shape


def check_set(cfg: 'config.Config') -> None:
  """Refuses a training run that lacks a field without a default."""
  if not cfg.workdir:
    refuse(cfg, 'workdir', 'to be set')
  if not cfg.base.path:
    refuse(cfg, 'base.path', 'to be set')
  if not cfg.base.dtype:
    refuse(cfg, 'base.dtype', 'float32 or bfloat16')
  if not cfg.base.quantize:
    refuse(cfg, 'base.quantize', 'none, bfloat16, int8, int4 or mxfp4')
  if not cfg.data.train:
    refuse(cfg, 'data.train', 'to be set')


def check_virtual_tokens(cfg: 'config.Config') -> None:
  """Checks the section `virtual_tokens`."""
  tokens = cfg.virtual_tokens
  rows = tokens.num_virtual_tokens
  nothing_after = tokens.position == 'last' and not cfg.templates.chat
  if tokens.kind == 'kv' and nothing_after:
    refuse(
      cfg,
      'virtual_tokens.position',
      'first or middle with virtual_tokens.kind=kv, unless templates.chat: '
      'nothing follows the virtual tokens that would see them',
    )
  if tokens.num_frozen >= rows:
    refuse(
      cfg,
      'virtual_tokens.num_frozen',
      f'less than virtual_tokens.num_virtual_tokens={rows}',
    )
  if tokens.draw == 'fixed' and tokens.num_active > rows:
    refuse(
      cfg,
      'virtual_tokens.num_active',
      f'at most virtual_tokens.num_virtual_tokens={rows}, since draw=fixed',
    )
  if tokens.draw == 'fixed' and tokens.num_active <= tokens.num_frozen:
    refuse(
      cfg,
      'virtual_tokens.num_active',
      f'more than virtual_tokens.num_frozen={tokens.num_frozen}, since '
      'draw=fixed trains no others',
    )
  if tokens.draws_per_example > 1:
    reason = None
    if tokens.draw == 'fixed':
      reason = 'all draws of draw=fixed are the same'
    elif tokens.position == 'first':
      reason = (
        'with virtual_tokens.position=first the passages depend on the tokens '
        'and cannot be shared'
      )
    if reason:
      refuse(
        cfg,
        'virtual_tokens.draws_per_example',
        f'1, since {reason}',
      )
  elif tokens.always_all:
    refuse(
      cfg,
      'virtual_tokens.always_all',
      'False, since virtual_tokens.draws_per_example=1 leaves no other draw',
    )
  if tokens.init == 'table' and not tokens.init_path:
    refuse(cfg, 'virtual_tokens.init_path', 'a file, since init=table')
  if tokens.init == 'text' and not tokens.init_text.strip():
    refuse(cfg, 'virtual_tokens.init_text', 'some text, since init=text')


def check_distill(cfg: 'config.Config') -> None:
  """Checks the section `train.distill`."""
  distill = cfg.train.distill
  if not distill.weight:
    return
  fixed = cfg.virtual_tokens.draw == 'fixed'
  if fixed and distill.tokens == 'trained' and distill.passages == 'shown':
    refuse(
      cfg,
      'train.distill.tokens',
      'run or text, or passages=gold: with virtual_tokens.draw=fixed the '
      'teacher would see what the student sees',
    )
  if distill.tokens == 'run' and not distill.run:
    refuse(cfg, 'train.distill.run', 'a work directory, since tokens=run')
  if distill.tokens == 'text' and not distill.text.strip():
    refuse(cfg, 'train.distill.text', 'some text, since tokens=text')


def check_passages(passages: 'config.Passages', prefix: str) -> None:
  """Checks a section of type `Passages`, whose fields have a prefix."""
  most = passages.number[1]
  if passages.depth < most:
    expected = f'at least the most passages shown, {most}'
    refuse(passages, 'depth', expected, prefix)


def check_refusals(cfg: 'config.Config') -> None:
  """Checks that a bias of refusals has a table that refuses."""
  if cfg.eval.refusal_bias and not cfg.data.refuses:
    refuse(
      cfg,
      'eval.refusal_bias',
      f'0, since data.unanswerable={cfg.data.unanswerable}',
    )


def check_citations(cfg: 'config.Config') -> None:
  """Checks that passages have the numbers that answers cite."""
  templates = cfg.templates
  field = 'chat_answer' if templates.chat else 'answer'
  if '{source}' not in getattr(templates, field):
    return
  if '{index}' not in templates.passage:
    refuse(
      cfg,
      f'templates.{field}',
      'no {source}, since templates.passage shows no {index}',
    )
  distill = cfg.train.distill
  if distill.weight and distill.passages == 'gold':
    refuse(
      cfg,
      'train.distill.passages',
      f'shown: with {{source}} in templates.{field} the target is a number '
      'among the passages shown, and gold passages alone have other numbers',
    )


def check_mixture(cfg: 'config.Config') -> None:
  """Checks the section `data.mixture`."""
  mixture = cfg.data.mixture
  if (mixture.weighting == 'weights') != bool(mixture.weights):
    refuse(
      cfg,
      'data.mixture.weights',
      'a weight for each dataset with data.mixture.weighting=weights, and '
      'none without',
    )


def check_batches(cfg: 'config.Config') -> None:
  """Checks sizes of batches against memory, devices' shares and tokens."""
  data = cfg.data
  size = data.batch_size
  if size * data.window_batches > _MOST_IN_WINDOW:
    refuse(
      cfg,
      'data.window_batches',
      f'at most {_MOST_IN_WINDOW // size:,} with data.batch_size={size}: the '
      'examples of a window are in memory together, at most '
      f'{_MOST_IN_WINDOW:,}',
    )
  longest = data.max_prefix_tokens + data.max_suffix_tokens
  if size * longest > _MOST_IN_BATCH:
    refuse(
      cfg,
      'data.batch_size',
      f'at most {_MOST_IN_BATCH // longest:,} with data.max_prefix_tokens and '
      f'data.max_suffix_tokens of {longest:,} together: the tokens of a batch '
      f'are in memory, at most {_MOST_IN_BATCH:,}',
    )
  micro, per_row = cfg.train.accumulation_steps, data.examples_per_row
  if size % (micro * per_row):
    refuse(
      cfg,
      'data.batch_size',
      f'a multiple of train.accumulation_steps={micro} times '
      f'data.examples_per_row={per_row}',
    )
  rows, answer = cfg.virtual_tokens.num_virtual_tokens, data.max_answer_tokens
  if data.max_suffix_tokens < rows + answer:
    refuse(
      cfg,
      'data.max_suffix_tokens',
      f'room for {rows} virtual tokens and data.max_answer_tokens={answer}',
    )


def check_shapes(cfg: 'config.Config') -> None:
  """Checks that the last of `data.shapes` holds any batch."""
  data = cfg.data
  if not data.shapes:
    return
  last = data.shapes[-1]
  per_row = data.examples_per_row
  most = (per_row * data.max_prefix_tokens, per_row * data.max_suffix_tokens)
  if cfg.virtual_tokens.position == 'first':
    # Only the tokenizer tells how long a prefix without passages is.
    if last[1] < sum(most):
      refuse(
        cfg,
        'data.shapes',
        f'the suffix of the last one to be at least {sum(most)}: '
        'data.examples_per_row times data.max_prefix_tokens and '
        'data.max_suffix_tokens together, since virtual_tokens.position=first '
        'puts the passages there',
      )
  elif last[0] < most[0] or last[1] < most[1]:
    refuse(
      cfg,
      'data.shapes',
      f'the last one to be at least {most}: data.examples_per_row times '
      'data.max_prefix_tokens and data.max_suffix_tokens',
    )


def check_warmup(cfg: 'config.Config') -> None:
  """Checks `optim.warmup_steps` against the run's steps."""
  if cfg.optim.warmup_steps >= cfg.train.num_steps:
    refuse(
      cfg,
      'optim.warmup_steps',
      f'less than train.num_steps={cfg.train.num_steps}',
    )


def check_num_active(cfg: 'config.Config') -> None:
  """Checks `eval.num_active` against the table."""
  tokens, active = cfg.virtual_tokens, cfg.eval.num_active
  rows = tokens.num_virtual_tokens
  if not active or max(active) > rows:
    refuse(
      cfg,
      'eval.num_active',
      f'numbers from 1 to virtual_tokens.num_virtual_tokens={rows}',
    )
  if min(active) <= tokens.num_frozen:
    refuse(
      cfg,
      'eval.num_active',
      f'numbers above virtual_tokens.num_frozen={tokens.num_frozen}: the first '
      'virtual tokens are not trained',
    )
  if tokens.draw == 'fixed' and max(active) > tokens.num_active:
    refuse(
      cfg,
      'eval.num_active',
      f'at most virtual_tokens.num_active={tokens.num_active}, since '
      'draw=fixed trains no more rows',
    )


def _check_placeholders(
  template: str, needed: str, optional: tuple[str, ...] = ()
) -> str:
  """Checks that a template has one placeholder, and no others but optional."""
  try:
    used = set(_placeholders(template))
  except ValueError:  # A single brace.
    used = {'{'}
  if used - {needed, *optional}:
    names = sorted((needed, *optional))
    raise ValueError(f'no placeholders but {names} ({{{{ is a brace)')
  if needed not in used:
    raise ValueError(f'the placeholder {{{needed}}}')
  return template


def _placeholders(template: str) -> list[str]:
  """What is in braces, as it is written: 'text', but also 'text!r:9'."""
  return [
    name
    + (f'!{conversion}' if conversion else '')
    + (f':{spec}' if spec else '')
    for _, name, spec, conversion in string.Formatter().parse(template)
    if name is not None
  ]
