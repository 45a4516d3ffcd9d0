"""Settings and files of general tasks, and the prompts that lm-eval makes."""

import bz2
import gzip
import json
import lzma
import re

import pytest

from vtokens.evaluation import eval_config, tasks
from vtokens.evaluation.harness import (
  paper_tasks,
  prepared_tasks,
  question_files,
)
from vtokens.evaluation.tasks import Task
from vtokens.host import errors

BOOLQ = {'id': 'b0', 'question': 'is it so?', 'answers': ['no']}
MMLU = {
  'id': 'm0',
  'question': 'What is 2 + 2?',
  'answers': ['4'],
  'choices': ['3', '4', '5'],
}
GSM8K = {
  'id': 'g0',
  'question': 'How many are 2 and 3?',
  'answers': ['5'],
  'rationale': 'We add.\n2 + 3 = 5.',
}


def write(path, *rows):
  text = ''.join(
    (row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows
  )
  opens = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
  with opens.get(path.suffix, open)(path, 'wt', encoding='utf-8') as file:
    file.write(text)
  return str(path)


def load(tmp_path, format, rows, solved=(), **settings):
  source = write(tmp_path / 'test.jsonl', *rows)
  examples = write(tmp_path / 'train.jsonl', *solved) if solved else ''
  task = Task(source=source, format=format, shots_source=examples, **settings)
  tasks.check_task('t', task)
  return question_files.draw(task, seed=0), task


def prompts(task):
  """The prompt of each question, as lm-eval puts it to a model."""
  prepared = prepared_tasks.prepare('t', task, seed=0)
  [of_harness] = prepared.tasks.values()
  # Options of a question have the same prompt.
  found = {i.doc['id']: i.args[0] for i in of_harness.instances}
  return list(found.values()), prepared


@pytest.mark.parametrize('suffix', ['', '.gz', '.xz', '.bz2'])
def test_reads_compressed_or_not(tmp_path, suffix):
  path = write(tmp_path / f'q.jsonl{suffix}', MMLU, {**MMLU, 'id': 'm1'})
  first, second = question_files.read_questions(path, 'mmlu')
  assert (first.id, second.id) == ('m0', 'm1')
  assert first.choices == ('3', '4', '5')
  assert first.answers == ('4',)


@pytest.mark.parametrize(
  ('format', 'row', 'message'),
  [
    ('mmlu', {**MMLU, 'answers': ['6']}, "answers[0]: found '6', expected one"),
    ('mmlu', {**MMLU, 'choices': ['4']}, 'choices: found 1, expected 2 to 26'),
    ('mmlu', BOOLQ, 'choices: missing'),
    ('mmlu', {**MMLU, 'question': ' '}, 'question: found a blank string'),
    ('mmlu', {**MMLU, 'answers': []}, 'answers: found an empty array'),
    ('mmlu', {**MMLU, 'id': 'first'}, "id: found 'first' for the second time"),
    ('mmlu', {**MMLU, 'subject': 3}, 'subject: found a number (3)'),
    ('mmlu', '{"id": ', 'found no JSON'),
    ('commonsenseqa', {**MMLU, 'answers': ['x']}, "answers[0]: found 'x'"),
    ('boolq', {**BOOLQ, 'answers': ['maybe']}, "answers[0]: found 'maybe'"),
    ('boolq', {**BOOLQ, 'answers': ['yes', 'no']}, 'found both true and false'),
    ('boolq', {**BOOLQ, 'choices': ['a', 'b']}, "choices[0]: found 'a'"),
    ('boolq', {**BOOLQ, 'passages': [{}]}, 'passages[0].text: missing'),
    (
      'gsm8k',
      {**GSM8K, 'answers': ['five']},
      "found 'five', expected a number",
    ),
  ],
)
def test_bad_line_is_named(tmp_path, format, row, message):
  good = {'boolq': BOOLQ, 'gsm8k': GSM8K}.get(format, MMLU)
  path = write(tmp_path / 'q.jsonl', {**good, 'id': 'first'}, row)
  with pytest.raises(errors.UserError) as e:
    question_files.read_questions(path, format)
  assert str(e.value).startswith(f'{path}:2: ')
  assert message in str(e.value)


def test_gsm8k_needs_a_rationale_only_of_shots(tmp_path):
  row = {key: GSM8K[key] for key in ('id', 'question', 'answers')}
  path = write(tmp_path / 'q.jsonl', row)
  assert question_files.read_questions(path, 'gsm8k')[0].rationale == ''
  with pytest.raises(errors.UserError, match='rationale: missing'):
    question_files.read_questions(path, 'gsm8k', solved=True)


def test_empty_file(tmp_path):
  with pytest.raises(errors.UserError, match='no question in it'):
    question_files.read_questions(write(tmp_path / 'q.jsonl'), 'mmlu')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'source': ''}, 'config.tasks[t].source: expected a file'),
    ({'format': 'arc'}, 'config.tasks[t].format: expected one of boolq'),
    ({'shots': -1}, 'config.tasks[t].shots: expected an integer from 0'),
    ({'shots': 2}, 'config.tasks[t].shots_source: expected a file'),
    ({'shots_source': 'b'}, 'config.tasks[t].shots: expected at least 1'),
    ({'shots': 2, 'shots_source': './a'}, 'expected another file than source'),
    (
      {'max_questions': -1},
      'config.tasks[t].max_questions: expected an integer',
    ),
    ({'max_new_tokens': 0}, 'config.tasks[t].max_new_tokens: expected an int'),
    ({'num_active': -1}, 'config.tasks[t].num_active: expected an integer'),
    ({'harness': 'arc_easy'}, 'config.tasks[t].source: expected nothing'),
  ],
)
def test_settings_that_are_refused(settings, message):
  task = Task(**{'source': 'a', **settings})
  cfg = eval_config.Config(workdir='w', runs=('r',), tasks={'t': task})
  with pytest.raises(errors.UserError) as e:
    eval_config.validate(cfg)
  assert message in str(e.value)


def test_shots_through_a_link_to_the_same_file(tmp_path):
  source = tmp_path / 'test.jsonl'
  write(source, MMLU)
  (tmp_path / 'link.jsonl').symlink_to(source)
  task = Task(
    source=str(source), shots=1, shots_source=str(tmp_path / 'link.jsonl')
  )
  with pytest.raises(errors.UserError, match='another file than source'):
    tasks.check_task('t', task)


@pytest.mark.parametrize('name', ['', '../x', 'a/b', '.hidden', 'a b'])
def test_names_that_are_no_file_names(name):
  with pytest.raises(errors.UserError, match='becomes that of a file'):
    tasks.check_task(name, Task(source='a'))


def test_questions_asked_are_never_shots(tmp_path):
  rows = [{**MMLU, 'id': str(i), 'question': f'Q {i}?'} for i in range(3)]
  # The same words, other marks and spaces.
  leak = {**MMLU, 'id': 'x', 'question': '  q 1'}
  other = {**MMLU, 'id': 'y', 'question': 'Another?'}
  drawn, _ = load(tmp_path, 'mmlu', rows, [leak, other], shots=1)
  assert [e.id for e in drawn.shots(drawn.questions[0])] == ['y']
  assert any(note.startswith('1 of the questions in') for note in drawn.notes)
  with pytest.raises(errors.UserError, match=r'2 shots asked for, .* only 1'):
    load(tmp_path, 'mmlu', rows, [leak, other], shots=2)


def test_leaks_are_looked_for_in_questions_that_were_not_drawn(tmp_path):
  rows = [{**MMLU, 'id': str(i), 'question': f'Q {i}?'} for i in range(9)]
  shots = [{**row, 'id': f's{row["id"]}'} for row in rows]
  with pytest.raises(errors.UserError, match='only 0 questions'):
    load(tmp_path, 'mmlu', rows, shots, shots=1, max_questions=1)


def test_shots_have_the_subject_of_the_question(tmp_path):
  def row(i, subject):
    return {**MMLU, 'id': f'{i}', 'question': f'Q{i}?', 'subject': subject}

  rows = [row(i, 'ab'[i % 2]) for i in range(4)]
  pool = [row(i, 'ab'[i % 2]) for i in range(10, 20)]
  found, task = load(tmp_path, 'mmlu', rows, pool, shots=3)
  for question in found.questions:
    shots = found.shots(question)
    assert len({shot.id for shot in shots}) == 3
    assert {shot.topic for shot in shots} == {question.topic}
  for prompt in prompts(task)[0]:
    subject = prompt.splitlines()[0][-2]
    numbers = [int(n) for n in re.findall(r'Q(\d+)\?', prompt)]
    assert len(numbers) == 4
    assert {'ab'[n % 2] for n in numbers} == {subject}
  with pytest.raises(errors.UserError, match="only 0 questions about 'c'"):
    load(tmp_path, 'mmlu', [*rows, row(5, 'c')], pool, shots=3)


def test_draws_depend_on_the_seed_alone(tmp_path):
  rows = [{**MMLU, 'id': f'q{i}', 'question': f'Q{i}?'} for i in range(50)]
  pool = [{**MMLU, 'id': f's{i}', 'question': f'S{i}?'} for i in range(50)]
  task = Task(
    source=write(tmp_path / 'test.jsonl', *rows),
    shots=4,
    shots_source=write(tmp_path / 'train.jsonl', *pool),
    max_questions=10,
  )

  def drawn(seed):
    loaded = question_files.draw(task, seed)
    shots = loaded.shots(loaded.questions[0])
    return [q.id for q in loaded.questions], [q.id for q in shots]

  questions, shots = drawn(0)
  assert len(questions) == 10
  assert questions == sorted(questions, key=lambda i: int(i[1:]))
  assert drawn(0) == (questions, shots)
  assert drawn(1)[0] != questions and drawn(1)[1] != shots


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('18', 18.0),
    (' $1,234.50.', 1234.5),
    ('-3 apples', -3.0),
    ('−3', -3.0),
    ('.5', 0.5),
    ('about 12,345,678 people', 12345678.0),
    ('7,5', 7.0),
    ('1,2345', 1.0),
    ('-$5', -5.0),
    ('18.', 18.0),
    ('20%', 20.0),
    ('none', None),
    ('', None),
  ],
)
def test_number(text, value):
  assert question_files.number(text) == value


def test_boolq_prompt(tmp_path):
  passages = ['One passage.', {'title': 'A title', 'text': 'Its text.'}]
  rows = [{**BOOLQ, 'passages': passages}, {**BOOLQ, 'id': 'b1'}]
  shots = [{'id': 's', 'question': 'is 2 even?', 'answers': ['yes']}]
  drawn, task = load(tmp_path, 'boolq', rows, shots, shots=1)
  assert drawn.questions[0].choices == ('true', 'false')
  assert drawn.questions[0].answers == ('false',)
  found, prepared = prompts(task)
  assert found == [
    'According to the given passages, please answer the following question. '
    'Only return true or false.\n'
    'Question: is 2 even?\nAnswer: true\n\n'
    'Passage: One passage.\nPassage: A title\nIts text.\n'
    'Question: is it so?\nAnswer:',
    'Please answer the following question. Only return true or false.\n'
    'Question: is 2 even?\nAnswer: true\n\n'
    'Question: is it so?\nAnswer:',
  ]
  [note] = prepared.notes
  assert note.startswith("1 of 2 prompts are without the line 'Passage:'")


def test_commonsenseqa_prompt(tmp_path):
  rows = [{**MMLU, 'question_type': 'numbers'}, {**MMLU, 'id': 'm1'}]
  _, task = load(tmp_path, 'commonsenseqa', rows)
  question = 'Question: What is 2 + 2?\nChoices:\nA. 3\nB. 4\nC. 5\nAnswer:'
  assert prompts(task)[0] == [
    f'Please the following question about numbers.\n{question}',
    question,
  ]


def test_mmlu_prompt(tmp_path):
  row = {**MMLU, 'subject': 'abstract_algebra'}
  shot = {**row, 'id': 's', 'question': 'What is 1 + 2?', 'answers': ['3']}
  _, task = load(tmp_path, 'mmlu', [row], [shot], shots=1)
  found, prepared = prompts(task)
  assert found == [
    'The following are multiple choice questions about abstract algebra.\n'
    'Question: What is 1 + 2?\nChoices:\nA. 3\nB. 4\nC. 5\n'
    'Correct answer: 3\n\n'
    'Question: What is 2 + 2?\nChoices:\nA. 3\nB. 4\nC. 5\n'
    'Correct answer:'
  ]
  assert prepared.notes == []


def test_gsm8k_prompt(tmp_path):
  shot = {**GSM8K, 'id': 's', 'question': 'And 1 and 1?', 'answers': ['2']}
  _, task = load(tmp_path, 'gsm8k', [GSM8K], [shot], shots=1)
  assert prompts(task)[0] == [
    'Question: And 1 and 1? Answer: We add. 2 + 3 = 5. The answer is: 2\n\n'
    'Question: How many are 2 and 3? Answer:'
  ]


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('2 + 3 = 5. The answer is: 5', 5.0),
    ('The answer is: 4. No. The answer is: $1,005.50.', 1005.5),
    ('The answer is: unknown', None),
    ('The answer is 5', None),
    ('5', None),
    ('', None),
    ('The answer is: 5\nThe answer is:', None),
    ('The answer is: -2 degrees, 7 less', -2.0),
  ],
)
def test_final_number(text, value):
  assert paper_tasks.final_number(text) == value


@pytest.mark.parametrize(
  ('value', 'answers', 'right'),
  [
    (18.0, ['18'], True),
    (1234.0, ['1,234'], True),
    (0.5, ['7', '.50'], True),
    (18.0, ['18.01'], False),
    (0.0, ['0'], True),
    (-3.0, ['3'], False),
    (None, ['3'], False),
  ],
)
def test_is_right(value, answers, right):
  assert paper_tasks.is_right(value, answers) is right
