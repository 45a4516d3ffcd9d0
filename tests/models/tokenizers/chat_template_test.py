"""Tests of vtokens.models.tokenizers.chat_template."""

import time

import pytest
from transformers.utils import chat_template_utils

from vtokens.models.tokenizers import chat_template

_MESSAGES = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Who is <é> "x"?'},
  {'role': 'assistant', 'content': 'y\n'},
]
_VARIABLES = {
  'messages': _MESSAGES,
  'tools': None,
  'documents': None,
  'add_generation_prompt': True,
  'bos_token': '<s>',
  'extra': ['<a>', '<b>'],
}

# What templates of bases use.
_TEMPLATES = {
  'chatml': (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + "
    "'\\n' + m.content | trim + '<|im_end|>' }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  ),
  'loop controls': (
    '{%- for m in messages %}{% if loop.first %}{% continue %}{% endif %}\n'
    '  {{- m.role }}{% break %}\n{% endfor %}!'
  ),
  'namespace': (
    '{% set ns = namespace(found=false, n=0) %}{% for m in messages %}'
    "{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}"
    '{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.found }} {{ ns.n }}'
  ),
  'generation': (
    '{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}'
    '{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}'
  ),
  'json': '{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}',
  'macro': (
    '{% macro f(x, y=3) %}{{ x * y }}{% endmacro %}{{ f(2) }}{{ f(2, y=5) }}'
    '{{ dict(a=1) }}{{ tools is none }}{{ nothing is defined }}'
  ),
  'blocks': '  {% if true %}\n  a\n  {% endif %}\n\tb\n\n',
  'strings': (
    "{{ 'abc'.split('b')[-1].upper() }}{{ extra | join(', ') }}"
    '{{ messages[1:] | length }}{{ messages[0].content[:2] }}'
  ),
}


@pytest.mark.parametrize('name', _TEMPLATES)
def test_renders_as_transformers(name):
  expected, _ = chat_template_utils.render_jinja_template(
    [_MESSAGES],
    chat_template=_TEMPLATES[name],
    **{k: v for k, v in _VARIABLES.items() if k != 'messages'},
  )
  assert chat_template.render(_TEMPLATES[name], _VARIABLES) == expected[0]
  assert expected[0]


_BAD = {
  'memory': ("{{ ('x' * 4000000000) | length }}", '1,073,741,824 bytes'),
  'output': ("{{ 'x' * 2000000 }}", 'more than 262,144 characters'),
  'endless output': (
    '{% for i in range(99999) %}{% for j in range(99999) %}{{ "x" * 9 }}'
    '{% endfor %}{% endfor %}',
    'more than 262,144 characters',
  ),
  'recursion': (
    '{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}',
    'it calls itself without end',
  ),
  'its own message': (
    "{{ raise_exception('no system role') }}",
    'no system role',
  ),
  'a long message': ("{{ raise_exception('y' * 999999) }}", 'yyy'),
  'syntax': ('{% for %}', 'Expected'),
  'nested': ('{{ ' + '(' * 20_000 + '1' + ')' * 20_000 + ' }}', ''),
  'underscores': ('{% set ns = namespace(__x__=1) %}{{ ns }}', '__x__'),
  'a way out': ("{{ ''.__class__.__mro__ }}", 'unsafe'),
  'large': ('x' * (5 << 20), 'it has 5,242,880 characters'),
}


@pytest.mark.parametrize('name', _BAD)
def test_fails_with_one_message(name):
  template, message = _BAD[name]
  with pytest.raises(chat_template.TemplateError) as e:
    chat_template.render(template, _VARIABLES)
  assert message in str(e.value)
  assert len(str(e.value)) <= 1000


def test_a_template_without_end_is_tried_once(monkeypatch):
  monkeypatch.setattr(chat_template, 'PROCESSOR_SECONDS', 1)
  template = (
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
    '{% endfor %}'
  )
  with pytest.raises(chat_template.TemplateError, match='does not end within'):
    chat_template.render(template, _VARIABLES)
  began = time.monotonic()
  with pytest.raises(chat_template.TemplateError, match='does not end within'):
    chat_template.render(template, {})
  assert time.monotonic() - began < 0.1
