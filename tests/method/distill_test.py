"""Learning from a teacher's distributions, against PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch_cache
import transformers

from vtokens import config
from vtokens.data import batch as batch_lib
from vtokens.data import pipeline, teaching
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage
from vtokens.method import steps
from vtokens.method.keys_values import KeysValues
from vtokens.method.virtual_tokens import TABLE

KEYS_VALUES = KeysValues()
N = 4  # Virtual tokens.
# Number of passages, k of each draw but the last, and the answer.
ASKED = [(2, (1, 3), 'yes'), (0, (4, 2), 'n'), (1, (2, 1), 'maybe so')]
ASKED.append((3, (3, 1), 'no'))
MOST_TARGETS = 12
RATE = 1024.0


@pytest.fixture(scope='module')
def table(base):
  rng = np.random.default_rng(2)
  return rng.normal(size=(N, base.config.embed_dim)).astype(np.float32)


@pytest.fixture(scope='module')
def model(tiny_dir):
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir)
  return model.double().eval()


@pytest.fixture(scope='module')
def assembler(base):
  return Assembler.for_run(
    base.tokenizer,
    config.Config(
      templates=config.Templates(prompt='Q {question} A'),
      data=config.Data(max_prefix_tokens=60, max_suffix_tokens=70),
    ),
  )


@pytest.fixture(scope='module')
def draws(assembler):
  """The draws of each example; the last has all tokens."""
  found = []
  for shown, counts, answer in ASKED:
    example = assembler(
      [(i, Passage('', '', f'It is {i}.' * (i + 1))) for i in range(shown)],
      'Is it?' + '?' * shown,
      answer=answer,
    )
    found.append(
      [dataclasses.replace(example, num_active=k) for k in (*counts, N)]
    )
  return found


def collate(draws, per_row, vocab_size, spans=0):
  """A batch of the examples, whose last draws teach the others."""
  rows = [draws[i : i + per_row] for i in range(0, len(draws), per_row)]
  num = len(draws[0])
  suffix = max(e.suffix_len for group in draws for e in group)
  batch = pipeline.collate(
    rows,
    shape=(60 * per_row, num * suffix * per_row),
    num_targets=per_row * num * MOST_TARGETS,
    vocab_size=vocab_size,
    num_rows=len(rows),
    per_row=per_row,
    draws=num,
    spans=spans,
  )
  return dataclasses.replace(
    batch,
    teacher_index=teaching.by_last_draw(rows, batch.targets.shape[1]),
  )


def torch_logits(model, rows, example):
  """Logits of the example's targets; its tokens are rows of the table."""
  embeddings = torch.cat([model.get_input_embeddings().weight.detach(), rows])
  vocab_size = len(embeddings) - len(rows)
  ids = [*example.prefix, *example.before]
  ids += [vocab_size + i for i in range(example.num_active)]
  ids += [*example.after, *example.targets]
  out = model(inputs_embeds=embeddings[torch.tensor(ids)][None]).logits[0]
  return out[-len(example.targets) - 1 : -1]


def nll_of(logits, example):
  return torch.nn.functional.cross_entropy(
    logits, torch.tensor(example.targets).long(), reduction='sum'
  )


def divergence(teacher, student):
  """KL(teacher || student), summed over targets."""
  return torch.nn.functional.kl_div(
    student.log_softmax(-1),
    teacher.log_softmax(-1).detach(),
    reduction='sum',
    log_target=True,
  )


def update(base, table, batch, weight, taught_by=None, **settings):
  """Metrics of a step, and the gradient that it followed."""
  # At rate 1 the difference of the values would round the gradient.
  optimizer = optax.sgd(RATE)
  state = steps.TrainState(
    jax.tree.map(jnp.asarray, table),
    optimizer.init(table),
    jnp.zeros((), jnp.int32),
  )
  step = steps.make_train_step(
    base.graph, optimizer, distill_weight=weight, **settings
  )
  new, metrics = jax.jit(step)(state, base.params, batch, taught_by)
  return metrics, jax.tree.map(
    lambda a, b: (a - np.asarray(b)) / RATE, table, new.trained
  )


@pytest.mark.parametrize(
  'per_row, weight, settings',
  [
    (1, 0.3, {}),
    (2, 1.0, {'remat': True, 'accumulation_steps': 2}),
    (4, 0.7, {}),
  ],
)
def test_the_last_draw_teaches_the_others(
  base, table, model, draws, per_row, weight, settings
):
  rows = torch.tensor(table, dtype=torch.float64, requires_grad=True)
  loss = torch.zeros((), dtype=torch.float64)
  nll, kl, tokens, taught = 0.0, 0.0, 0, 0
  for *others, last in draws:
    teacher = torch_logits(model, rows, last)
    loss = loss + nll_of(teacher, last)
    nll += nll_of(teacher, last).item()
    for example in others:
      student = torch_logits(model, rows, example)
      learned, given = divergence(teacher, student), nll_of(student, example)
      loss = loss + weight * learned + (1 - weight) * given
      kl, nll = kl + learned.item(), nll + given.item()
    size = len(last.targets)
    tokens, taught = tokens + 3 * size, taught + 2 * size
  (loss / tokens).backward()

  batch = collate(draws, per_row, base.config.vocab_size)
  metrics, grad = update(base, table, batch, weight, **settings)
  assert kl > 0.01 * nll
  assert float(metrics['tokens']) == tokens
  assert float(metrics['taught']) == taught
  for name, expected in (
    ('loss', loss.item() / tokens),
    ('nll', nll / tokens),
    ('kl', kl / taught),
  ):
    assert float(metrics[name]) == pytest.approx(expected, rel=1e-5), name
  exact = rows.grad.numpy()
  scale = np.abs(exact).max()
  assert scale > 1e-3
  np.testing.assert_allclose(grad, exact, atol=1e-5 * scale)


def test_nothing_flows_to_the_teacher(base, table, draws):
  """With the divergence alone, rows that only the teacher has get nothing."""
  few = [
    [dataclasses.replace(e, num_active=min(e.num_active, 2)) for e in others]
    + [last]
    for *others, last in draws
  ]
  batch = collate(few, 2, base.config.vocab_size)
  # Without the teacher's own targets its answers do not count either.
  target_index = np.where(batch.teacher_index < 0, -1, batch.target_index)
  alone = dataclasses.replace(batch, target_index=target_index)
  _, grad = update(base, table, alone, 1.0)
  assert (grad[2:] == 0).all()
  assert (np.abs(grad[:2]).max(axis=1) > 0).all()
  _, grad = update(base, table, batch, 1.0)
  assert (np.abs(grad[2:]).max(axis=1) > 0).all()


def test_without_weight_the_bits_are_those_of_no_teacher(base, table, draws):
  batch = collate(draws, 2, base.config.vocab_size)
  without = dataclasses.replace(batch, teacher_index=None)
  (metrics, grad), (expected, expected_grad) = (
    update(base, table, one, 0.0) for one in (batch, without)
  )
  assert metrics.keys() == expected.keys() == {'loss', 'grad_norm', 'tokens'}
  jax.tree.map(np.testing.assert_array_equal, metrics, expected)
  np.testing.assert_array_equal(grad, expected_grad)


def test_targets_without_a_teacher_learn_from_the_answers(base, table, draws):
  batch = collate(draws, 2, base.config.vocab_size)
  untaught = dataclasses.replace(
    batch, teacher_index=np.full_like(batch.teacher_index, -1)
  )
  metrics, grad = update(base, table, untaught, 0.8)
  expected, expected_grad = update(base, table, untaught, 0.0)
  assert float(metrics['taught']) == float(metrics['kl']) == 0
  np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-6)
  np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-7)


def asked_of_teacher(assembler, draws, seen, num_active):
  """The teacher's examples, with the first passages; None for some."""
  return [
    None
    if count is None
    else dataclasses.replace(
      assembler(
        [(i, Passage('', '', f'It is {i}.' * (i + 1))) for i in range(count)],
        'Is it?' + '?' * shown,
        answer=answer,
      ),
      num_active=num_active,
    )
    for count, (shown, _, answer) in zip(seen, ASKED, strict=True)
  ]


def with_teacher(
  batch, draws, teachers, per_row, vocab_size, shared=False, spans=0
):
  """The batch, with the teacher's examples."""

  def by_row(groups):
    return [groups[i : i + per_row] for i in range(0, len(groups), per_row)]

  rows = by_row(teachers)
  sizes = {'vocab_size': vocab_size, 'num_rows': len(rows)}
  # Teachers have shapes of their own.
  prefix = batch.prefix.shape[1] if shared else 50 * per_row
  teacher = pipeline.collate(
    [[[e] for e in row if e is not None] for row in rows],
    shape=(prefix, 45 * per_row),
    num_targets=per_row * (MOST_TARGETS - 1),
    per_row=per_row,
    spans=spans,
    **sizes,
  )
  return dataclasses.replace(
    batch,
    teacher=batch_lib.without_prefix(teacher) if shared else teacher,
    teacher_index=teaching.by_teacher(
      by_row(draws), rows, batch.targets.shape[1]
    ),
  )


# Passages that the teacher of each example sees, from the first on; no teacher
# for the third one.
FEWER, SAME = (1, 0, None, 2), tuple(shown for shown, *_ in ASKED)


@pytest.mark.parametrize(
  'per_row, seen, saved, settings',
  [
    (1, FEWER, False, {}),
    (2, FEWER, True, {'accumulation_steps': 2}),
    (4, SAME, True, {'remat': True}),
    (2, SAME, False, {'accumulation_steps': 2}),
  ],
)
def test_a_teacher_with_a_pass_of_its_own(
  base, table, model, assembler, draws, per_row, seen, saved, settings
):
  """With fewer passages, or on the prefixes of the student."""
  weight, vocab_size = 0.6, base.config.vocab_size
  rng = np.random.default_rng(5)
  other = rng.normal(size=(N + 2, table.shape[1])).astype(np.float32)
  num_active = N + 2 if saved else N
  teachers = asked_of_teacher(assembler, draws, seen, num_active)
  batch = with_teacher(
    collate(draws, per_row, vocab_size),
    draws,
    teachers,
    per_row,
    vocab_size,
    shared=seen == SAME,
  )

  rows = torch.tensor(table, dtype=torch.float64, requires_grad=True)
  taught_by = torch.tensor(other).double() if saved else rows.detach()
  loss, kl = torch.zeros((), dtype=torch.float64), 0.0
  tokens = taught = 0
  for examples, teacher in zip(draws, teachers, strict=True):
    for example in examples:
      student = torch_logits(model, rows, example)
      given = nll_of(student, example)
      tokens += len(example.targets)
      if teacher is None:
        loss = loss + given
        continue
      learned = divergence(torch_logits(model, taught_by, teacher), student)
      loss = loss + weight * learned + (1 - weight) * given
      kl, taught = kl + learned.item(), taught + len(example.targets)
  (loss / tokens).backward()

  arguments = {'taught_by': other, 'teacher': TABLE} if saved else {}
  metrics, grad = update(base, table, batch, weight, **arguments, **settings)
  assert (float(metrics['tokens']), float(metrics['taught'])) == (
    tokens,
    taught,
  )
  assert (taught < tokens) == (None in seen)
  assert float(metrics['loss']) == pytest.approx(loss.item() / tokens, rel=1e-5)
  assert float(metrics['kl']) == pytest.approx(kl / taught, rel=1e-5)
  exact = rows.grad.numpy()
  scale = np.abs(exact).max()
  assert scale > 1e-3
  np.testing.assert_allclose(grad, exact, atol=1e-5 * scale)


@pytest.mark.parametrize('own_pass', [False, True])
def test_keys_and_values_learn_and_teach(
  base, model, assembler, draws, own_pass
):
  """From the last draw, or from themselves with fewer passages."""
  weight, vocab_size, per_row = 0.6, base.config.vocab_size, 2
  settings = config.VirtualTokens(
    kind='kv', num_virtual_tokens=N, init='normal', init_std=1.0
  )
  trained = KEYS_VALUES.init(settings, base.decoder(), base.tokenizer, seed=0)
  inside = [
    [dataclasses.replace(e, in_suffix=False) for e in examples]
    for examples in draws
  ]
  seen = FEWER if own_pass else SAME
  teachers = [
    e and dataclasses.replace(e, in_suffix=False)
    for e in asked_of_teacher(assembler, draws, seen, N)
  ]
  batch = collate(inside, per_row, vocab_size, spans=3 * per_row)
  if own_pass:
    batch = with_teacher(
      batch, inside, teachers, per_row, vocab_size, spans=per_row
    )

  leaves = {
    name: torch.tensor(x, dtype=torch.float64, requires_grad=True)
    for name, x in trained.items()
  }
  fixed = {name: leaf.detach() for name, leaf in leaves.items()}
  loss = torch.zeros((), dtype=torch.float64)
  tokens = 0
  for examples, teacher in zip(inside, teachers, strict=True):
    for example in examples:
      student = torch_cache.target_logits(model, leaves, example)
      given = nll_of(student, example)
      tokens += len(example.targets)
      if teacher is None or (not own_pass and example is examples[-1]):
        loss = loss + given
        continue
      learned = divergence(
        torch_cache.target_logits(model, fixed, teacher), student
      )
      loss = loss + weight * learned + (1 - weight) * given
  (loss / tokens).backward()

  metrics, grad = update(base, trained, batch, weight, trainable=KEYS_VALUES)
  assert float(metrics['loss']) == pytest.approx(loss.item() / tokens, rel=1e-5)
  for name, leaf in leaves.items():
    exact = leaf.grad.numpy()
    scale = np.abs(exact).max()
    assert scale > 1e-3
    np.testing.assert_allclose(grad[name], exact, atol=1e-5 * scale)
