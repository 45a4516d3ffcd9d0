"""Arms, answers and losses of the evaluator on a tiny random base."""

import collections
import dataclasses
import itertools
import math

import compilations
import jax
import numpy as np
import pytest
import torch
import transformers

from vtokens import config
from vtokens.data import pipeline
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage, Record
from vtokens.devices import partitioning
from vtokens.evaluation.asking.answering import Answerer
from vtokens.evaluation.asking.cells import Answer
from vtokens.evaluation.asking.evaluator import Evaluator
from vtokens.evaluation.asking.prompter import (
  Prompter,
  PromptVariant,
  bare_variant,
  tokens_variant,
)
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.trained_tokens import TrainedTokens
from vtokens.host import errors, stopping
from vtokens.method import generate
from vtokens.models import frozen_base

N = 4
RECORDS = [
  Record(
    id=f'r{i}',
    dataset='d',
    question='what' + ' is' * (i % 2) + '?',
    answers=('yes', 'no'),
    passages={
      'bm25': tuple(
        Passage('', '', f'{word} ' * (1 + i)) for word in ('big', 'small')
      )
    },
  )
  for i in range(7)
]


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return partitioning.make_mesh((1, 1, -1))


@pytest.fixture(scope='module')
def base(tiny_dir, mesh) -> frozen_base.FrozenBase:
  return frozen_base.load_base(
    config.Base(path=str(tiny_dir), dtype='float32'), mesh
  )


@pytest.fixture(scope='module')
def table(base) -> TrainedTokens:
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(N, base.config.embed_dim)).astype(np.float32)
  return TrainedTokens(
    'a', rows, Assembler.for_run(base.tokenizer, make_config())
  )


def make_config(**settings) -> config.Config:
  return config.Config(
    # Tokens are bytes: a short one makes short suffixes.
    templates=config.Templates(instruction='Do {question}'),
    data=config.Data(
      max_prefix_tokens=200, max_suffix_tokens=220, max_answer_tokens=16
    ),
    eval=config.Eval(
      **{
        'batch_size': 4,
        'num_passages': 2,
        'shuffle_passages': True,
        'max_new_tokens': 6,
        'stop_at_newline': False,
        **settings,
      }
    ),
  )


def shown(record: Record) -> tuple[tuple[int, Passage], ...]:
  return pipeline.shown_passages(record, make_config().eval, 0)


def make_prompter(base, **settings) -> Prompter:
  cfg = make_config(**settings)
  return Prompter(Assembler.for_run(base.tokenizer, cfg), cfg.eval, seed=0)


def make_evaluator(base, mesh, **settings) -> Evaluator:
  prompter = make_prompter(base, **settings)
  decode = make_config(**settings).eval
  return Evaluator(Answerer(base, mesh, decode, seed=0), prompter)


def texts_of(answers) -> dict[str, list[str]]:
  return {name: [a.text for a in found] for name, found in answers.items()}


BARE = ('closed_book', 'concat', 'plain', 'prompt', 'chat_prompt')


@pytest.fixture(scope='module')
def variants(table) -> list[PromptVariant]:
  named = ('tokens_closed_book', 'tokens_prompt', 'tokens_first', 'tokens_last')
  return [
    *map(bare_variant, BARE),
    *(tokens_variant(table, k) for k in (1, 2, N)),
    *(PromptVariant(name, CONDITIONS[name], table, N) for name in named),
  ]


@pytest.fixture(scope='module')
def answers(base, mesh, variants):
  return make_evaluator(base, mesh).answers(RECORDS, variants, label='')


def test_answers_are_those_of_torch(base, tiny_dir, table, variants, answers):
  """Each variant against transformers: embeddings of the ids, generate."""
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table.values)]
  )
  for variant in variants:
    condition = variant.condition
    for record, answer in zip(RECORDS, answers[variant.name], strict=True):
      example = table.assembler(
        shown(record) if condition.passages else (),
        record.question,
        num_active=variant.num_active,
        prompt=condition.template,
        chat=condition.chat,
        position=condition.position,
      )
      ids = [*example.prefix, *example.suffix(base.config.vocab_size)]
      with torch.no_grad():
        out = model.generate(
          inputs_embeds=rows[torch.tensor(ids)][None],
          attention_mask=torch.ones(1, len(ids), dtype=torch.long),
          max_new_tokens=6,
          do_sample=False,
          pad_token_id=0,
          eos_token_id=sorted(base.tokenizer.end_ids),
        )[0].tolist()
        # All at once, without a cache.
        hidden = rows[torch.tensor([*ids, *out])][None]
        logits = model(inputs_embeds=hidden).logits[0, len(ids) - 1 : -1]
      log_probs = torch.log_softmax(logits, -1)[range(len(out)), out]
      assert answer.confidence == pytest.approx(
        log_probs.mean().item(), abs=2e-5
      )
      ended = out[-1] in base.tokenizer.end_ids
      out = list(
        itertools.takewhile(lambda i: i not in base.tokenizer.end_ids, out)
      )
      known = set(base.tokenizer.ids)
      text = base.tokenizer.decode([i for i in out if i in known]).strip()
      ending = 'end' if ended else 'length'
      ranks = tuple(rank for rank, _ in shown(record))
      expected = Answer(
        text, len(out), ending, ranks if condition.passages else ()
      )
      assert answer == expected, (variant.name, record.id)


@pytest.mark.parametrize('bias', [0.0, 4.5, 9.0])
def test_a_bias_of_refusals_is_that_of_torch(base, mesh, tiny_dir, table, bias):
  """Beside conditions that were not trained to refuse, which keep theirs."""
  cfg = make_config()
  # Bytes are tokens, and a blank would be the first of all answers.
  cfg.templates.answer = '{answer}'
  refusing = dataclasses.replace(
    table,
    name='refusing',
    assembler=Assembler.for_run(base.tokenizer, cfg),
    refuses=True,
  )
  variants = [
    bare_variant('prompt'),
    PromptVariant('refusing', CONDITIONS['tokens'], refusing, N),
    tokens_variant(table, 2),
  ]
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table.values)]
  )
  examples = [
    table.assembler(shown(record), record.question, num_active=N)
    for record in RECORDS
  ]
  inputs = [
    rows[torch.tensor([*e.prefix, *e.suffix(base.config.vocab_size)])][None]
    for e in examples
  ]
  with torch.no_grad():
    logits = torch.stack([model(inputs_embeds=x).logits[0, -1] for x in inputs])
  first = base.tokenizer.encode(cfg.templates.refusal)[0]
  assert refusing.refusal_token == (0, first)
  assert dataclasses.replace(table, refuses=True).refusal_token == (1, first)
  others = logits.clone()
  others[:, first] = -torch.inf
  margins = (logits[:, first] - others.max(-1).values).tolist()
  assert {margin > -4.5 for margin in margins} == {True, False}

  def processor(ids, scores):
    if not ids.shape[1]:
      scores[:, first] += bias
    return scores

  evaluator = make_evaluator(base, mesh, refusal_bias=bias)
  found = evaluator.answers(RECORDS, variants, label='')
  for answer, embeds, margin in zip(
    found['refusing'], inputs, margins, strict=True
  ):
    assert answer.refusal_margin == pytest.approx(margin, abs=1e-4)
    with torch.no_grad():
      out = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=sorted(base.tokenizer.end_ids),
        logits_processor=[processor],
      )[0].tolist()
    assert (out[0] == first) == (margin + bias > 0)
    out = list(
      itertools.takewhile(lambda i: i not in base.tokenizer.end_ids, out)
    )
    known = set(base.tokenizer.ids)
    text = base.tokenizer.decode([i for i in out if i in known]).strip()
    assert (answer.text, answer.num_tokens) == (text, len(out))
  plain = make_evaluator(base, mesh).answers(RECORDS, variants, label='')
  for name in ('prompt', 'tokens_k2'):
    assert found[name] == plain[name]
    assert {answer.refusal_margin for answer in found[name]} == {None}


def test_a_prefix_is_encoded_once_for_all_that_share_it(
  base, mesh, variants, monkeypatch
):
  calls = []
  encode = generate.encode_prefix

  def counted(*arguments, **options):
    calls.append(1)
    return encode(*arguments, **options)

  monkeypatch.setattr(generate, 'encode_prefix', counted)
  evaluator = make_evaluator(base, mesh)
  shared = {'concat', 'plain', 'prompt', 'tokens_k1', 'tokens_k4'}
  evaluator.answers(
    RECORDS[:1],
    [variant for variant in variants if variant.name in shared],
    label='',
  )
  assert len(calls) == 1
  # Besides: without passages, in the chat template, tokens before passages
  # (which has the prefix of no passages).
  calls.clear()
  evaluator.answers(RECORDS[:1], variants, label='')
  assert len(calls) == 3


def test_arms_alone_answer_as_together(base, mesh, variants, answers):
  evaluator = make_evaluator(base, mesh)
  names = ('closed_book', 'concat', 'tokens_k2', 'tokens_last')
  for variant in variants:
    if variant.name not in names:
      continue
    alone = evaluator.answers(RECORDS, [variant], label='')
    assert alone[variant.name] == answers[variant.name], variant.name


def test_tables_side_by_side(base, mesh, table, answers):
  other = dataclasses.replace(table, name='b', values=-table.values[:2])
  evaluator = make_evaluator(base, mesh)
  variants = [
    PromptVariant('b', CONDITIONS['tokens'], other, 2),
    PromptVariant('a', CONDITIONS['tokens'], table, N),
  ]
  together = evaluator.answers(RECORDS, variants, label='')
  assert together['a'] == answers[f'tokens_k{N}']
  assert (
    together['b'] == evaluator.answers(RECORDS, variants[:1], label='')['b']
  )
  assert together['b'] != answers['tokens_k2']


def test_a_table_keeps_the_position_and_templates_it_was_trained_with(
  base, mesh, table, answers
):
  moved = dataclasses.replace(table.assembler, position='last')
  last = dataclasses.replace(table, assembler=moved)
  evaluator = make_evaluator(base, mesh)
  found = evaluator.answers(
    RECORDS,
    [
      PromptVariant('own', CONDITIONS['tokens'], last, N),
      PromptVariant('middle', CONDITIONS['tokens_middle'], last, N),
    ],
    label='',
  )
  assert found['own'] == answers['tokens_last']
  assert found['middle'] == answers[f'tokens_k{N}']
  cfg = make_config()
  cfg.templates.prompt = 'Q: {question}'
  other = Assembler.for_run(base.tokenizer, cfg)
  again = evaluator.answers(
    RECORDS,
    [tokens_variant(dataclasses.replace(table, assembler=other), N)],
    label='',
  )
  assert again[f'tokens_k{N}'] != answers[f'tokens_k{N}']


def test_arms_differ(variants, answers):
  assert len({tuple(found) for found in answers.values()}) == len(variants)


class TestSampling:
  def draw(self, base, mesh, variants, records=RECORDS, seed=0, **settings):
    cfg = make_config(**{'temperature': 1.0, **settings})
    assembler = Assembler.for_run(base.tokenizer, cfg)
    prompter = Prompter(assembler, cfg.eval, seed)
    evaluator = Evaluator(Answerer(base, mesh, cfg.eval, seed), prompter)
    return evaluator.answers(records, variants, label='')

  def test_repeats_with_the_seed_whatever_the_batch(self, base, mesh, table):
    variants = [bare_variant('closed_book'), tokens_variant(table, N)]
    found = self.draw(base, mesh, variants)
    assert found == self.draw(base, mesh, variants)
    reverse = self.draw(base, mesh, variants, RECORDS[::-1], batch_size=3)
    assert {k: v[::-1] for k, v in reverse.items()} == found
    assert (
      self.draw(base, mesh, variants[:1])['closed_book']
      == (found['closed_book'])
    )
    # The order of passages is drawn by the seed, too, but not shown here.
    other = self.draw(base, mesh, variants[:1], seed=1)
    assert other['closed_book'] != found['closed_book']

  def test_a_bias_of_refusals_holds_for_draws(self, base, mesh, table):
    cfg = make_config()
    cfg.templates.answer = '{answer}'
    refusing = dataclasses.replace(
      table, assembler=Assembler.for_run(base.tokenizer, cfg), refuses=True
    )
    variant = tokens_variant(refusing, N)
    plain, biased = (
      self.draw(base, mesh, [variant], refusal_bias=bias)[variant.name]
      for bias in (0.0, 100.0)
    )
    assert all(answer.text.startswith('I') for answer in biased)
    assert not any(answer.text.startswith('I') for answer in plain)
    # After the first token they are draws, not the likeliest ones.
    greedy = make_evaluator(base, mesh, refusal_bias=100.0)
    likeliest = greedy.answers(RECORDS, [variant], label='')[variant.name]
    assert all(answer.text.startswith('I') for answer in likeliest)
    assert biased != likeliest

  def test_little_heat_or_probability_is_greedy(
    self, base, mesh, table, answers
  ):
    variant = tokens_variant(table, N)
    for settings in ({'temperature': 1e-4}, {'top_p': 1e-4}):
      found = self.draw(base, mesh, [variant], **settings)
      assert found[variant.name] == answers[variant.name]
      # It is the model's, not that of the drawing.
      assert [a.confidence for a in found[variant.name]] == pytest.approx(
        [a.confidence for a in answers[variant.name]], abs=2e-5
      )

  def test_draws_follow_the_models_distribution(
    self, base, mesh, tiny_dir, table
  ):
    """First tokens of 3,000 draws against torch's probabilities."""
    many = [dataclasses.replace(RECORDS[1], id=f'q{i}') for i in range(3000)]
    variant = bare_variant('closed_book')
    settings = {'max_new_tokens': 1, 'batch_size': 500, 'top_p': 0.6}
    found = self.draw(base, mesh, [variant], many, temperature=1.5, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
    example = table.assembler((), RECORDS[1].question)
    ids = [*example.prefix, *example.suffix(base.config.vocab_size)]
    with torch.no_grad():
      logits = model(torch.tensor([ids])).logits[0, -1] / 1.5
    kept = transformers.TopPLogitsWarper(0.6)(None, logits[None])[0]
    expected: collections.Counter[str] = collections.Counter()
    for i, p in enumerate(torch.softmax(kept, -1).tolist()):
      ordinary = i in base.tokenizer.ids and i not in base.tokenizer.end_ids
      text = base.tokenizer.decode([i]).strip() if ordinary else ''
      expected[text] += p
    seen = collections.Counter(answer.text for answer in found[variant.name])
    assert set(seen) <= {text for text, p in expected.items() if p}
    for text, p in expected.items():
      error = math.sqrt(p * (1 - p) / len(many))
      assert abs(seen[text] / len(many) - p) <= 4.5 * error, text


@pytest.fixture(scope='module')
def two_retrievers() -> list[Record]:
  """The same passages as `bm25`, and others."""
  return [
    dataclasses.replace(
      record,
      passages={
        **record.passages,
        'dense': (Passage('', '', 'wide'), Passage('', '', 'narrow')),
        'gold': (Passage('', '', 'golden'),),
      },
    )
    for record in RECORDS
  ]


def test_passages_are_those_of_the_retriever_that_is_asked_for(
  base, mesh, table, answers, two_retrievers
):
  variants = [bare_variant('concat'), tokens_variant(table, N)]
  found = {
    name: make_evaluator(base, mesh, retriever=name).answers(
      two_retrievers, variants, label=''
    )
    for name in ('bm25', 'dense', 'gold')
  }
  for variant in variants:
    assert found['bm25'][variant.name] == answers[variant.name]
  assert len({tuple(x[f'tokens_k{N}']) for x in found.values()}) == 3


def test_one_of_several_retrievers_has_to_be_named(
  base, variants, two_retrievers
):
  prompter = make_prompter(base)
  with pytest.raises(errors.UserError, match=r'record r0 .* bm25, dense; say'):
    prompter.check_fits(two_retrievers, variants)
  # Where no passages are shown, it does not matter.
  prompter.check_fits(two_retrievers, [bare_variant('closed_book')])
  make_prompter(base, retriever='dense').check_fits(two_retrievers, variants)


def test_order_and_number_of_passages(base):
  """What the variants show, read back from the prefix."""
  record = dataclasses.replace(
    RECORDS[0],
    passages={'bm25': tuple(Passage('', '', w) for w in ('a', 'b', 'c', 'd'))},
  )
  records = [dataclasses.replace(record, id=f'r{i}') for i in range(30)]

  def letters(**settings):
    prompter = make_prompter(base, **settings)
    examples = [prompter.example(r, bare_variant('prompt')) for r in records]
    return [
      ''.join(c for c in base.tokenizer.decode(e.prefix) if c in 'abcd')
      for e in examples
    ]

  assert set(letters(num_passages=3, shuffle_passages=False)) == {'abc'}
  shuffled = letters(num_passages=3, shuffle_passages=True)
  assert {''.join(sorted(text)) for text in shuffled} == {'abc'}
  assert len(set(shuffled)) == 6
  assert letters(num_passages=3, shuffle_passages=True) == shuffled
  assert set(letters(num_passages=9, shuffle_passages=False)) == {'abcd'}
  assert set(letters(num_passages=0)) == {''}


def test_a_question_that_does_not_fit_is_found_before(base, variants):
  long = dataclasses.replace(RECORDS[1], question='why? ' * 40)
  answer = dataclasses.replace(RECORDS[2], answers=('x' * 30, 'y'))
  prompter = make_prompter(base)
  prompter.check_fits([*RECORDS, answer], variants)
  with pytest.raises(errors.UserError, match=r'record r1: .*max_suffix_tokens'):
    prompter.check_fits([*RECORDS, long], variants)
  with pytest.raises(errors.UserError, match=r'record r2: .*max_answer_tokens'):
    prompter.check_fits([*RECORDS, answer], variants, answers=True)


@pytest.mark.parametrize('batch_size', [1, 5])
def test_answers_do_not_depend_on_the_batch(
  base, mesh, variants, answers, batch_size
):
  evaluator = make_evaluator(base, mesh, batch_size=batch_size)
  names = ('concat', 'tokens_k1', 'tokens_k4', 'tokens_first')
  some = [variant for variant in variants if variant.name in names]
  again = evaluator.answers(RECORDS[::-1], some, label='')
  assert set(again) == set(names)
  for name, found in again.items():
    assert found[::-1] == answers[name]


def test_without_tokens_the_table_is_not_looked_at(base, mesh, table, answers):
  poisoned = dataclasses.replace(
    table, values=np.full_like(table.values, np.nan)
  )
  variants = [
    bare_variant('prompt'),
    PromptVariant('none', CONDITIONS['tokens'], poisoned, 0),
  ]
  again = make_evaluator(base, mesh).answers(RECORDS, variants, label='')
  assert again['prompt'] == answers['prompt']
  assert again['none'] == answers['plain']


def test_only_the_first_k_rows_count(base, mesh, table, answers):
  rows = table.values.copy()
  rows[1:] = 7.0
  variant = tokens_variant(dataclasses.replace(table, values=rows), 1)
  again = make_evaluator(base, mesh).answers(RECORDS, [variant], label='')
  assert again['tokens_k1'] == answers['tokens_k1']


@pytest.mark.parametrize(
  ('position', 'variant'),
  [('first', 'tokens_first'), ('middle', 'tokens_k4'), ('last', 'tokens_last')],
)
def test_validation_loss_is_that_of_torch(
  base, mesh, table, tiny_dir, answers, position, variant
):
  moved = dataclasses.replace(table.assembler, position=position)
  table = dataclasses.replace(table, assembler=moved)
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
  rows = torch.cat(
    [model.get_input_embeddings().weight.data, torch.from_numpy(table.values)]
  )
  nll, count = 0.0, 0
  for record in RECORDS:
    example = table.assembler(
      shown(record), record.question, answer='yes', num_active=N
    )
    ids = [*example.prefix, *example.suffix(base.config.vocab_size)]
    with torch.no_grad():
      logits = model(inputs_embeds=rows[torch.tensor(ids)][None]).logits[0]
    targets = torch.from_numpy(example.targets).long()
    nll += torch.nn.functional.cross_entropy(
      logits[-len(targets) :], targets, reduction='sum'
    ).item()
    count += len(targets)
  loss, found = make_evaluator(base, mesh).validate(RECORDS, table, N)
  np.testing.assert_allclose(loss, nll / count, rtol=1e-5)
  assert found == answers[variant]


def test_stops_when_asked(base, mesh, variants):
  class Enough(Exception):
    pass

  cfg = make_config()

  def among(unused_number):
    raise Enough

  prompter = Prompter(Assembler.for_run(base.tokenizer, cfg), cfg.eval, 0)
  answerer = Answerer(base, mesh, cfg.eval, 0)
  evaluator = Evaluator(answerer, prompter, stopping.StopRequest(among))
  with pytest.raises(Enough):
    evaluator.answers(RECORDS, variants, label='')


def test_compiles_once_for_each_shape(base, mesh, table, variants):
  # Programs of earlier tests may be forgotten; see `conftest`.
  make_evaluator(base, mesh).answers(RECORDS, variants, label='')
  double = dataclasses.replace(table, values=2 * table.values)
  again = [
    variant
    if variant.tokens is None
    else dataclasses.replace(variant, tokens=double)
    for variant in variants
  ]

  with compilations.counted() as compiled:
    make_evaluator(base, mesh).answers(RECORDS, again, label='')
  assert not compiled


def test_more_tokens_than_rows_is_an_error(base, table):
  variant = tokens_variant(table, N + 1)
  with pytest.raises(errors.UserError, match=r'5 virtual tokens .* a has 4'):
    make_prompter(base).check_fits(RECORDS, [variant])


def test_cut_passages_are_reported(base, mesh, table, capsys):
  evaluator = make_evaluator(base, mesh)
  long = dataclasses.replace(
    RECORDS[0],
    passages={'bm25': (Passage('', '', 'a' * 150), Passage('', '', 'b' * 150))},
  )
  longer = dataclasses.replace(
    RECORDS[0],
    id='longer',
    passages={'bm25': (Passage('', '', 'a' * 250), Passage('', '', 'b'))},
  )
  variants = [tokens_variant(table, 1), bare_variant('closed_book')]
  found = evaluator.answers([long, RECORDS[1], longer], variants, label='test')
  assert 'test: passages that did not fit' in (out := capsys.readouterr().out)
  assert '1 dropped, 2 cut' in out
  # Each answer has what its own prompt had.
  told = [
    (sorted(a.shown), a.passages_dropped, a.passages_cut)
    for a in found[variants[0].name]
  ]
  assert told == [([0, 1], 0, 1), ([0, 1], 0, 0), ([0], 1, 1)]
  assert {a.shown for a in found['closed_book']} == {()}


def test_passages_are_encoded_once_for_all_arms(base, variants, monkeypatch):
  prompter = make_prompter(base)
  encoded = []
  original = base.tokenizer.encode_batch_after

  def count(texts):
    encoded.extend(texts)
    return original(texts)

  monkeypatch.setattr(
    type(base.tokenizer), 'encode_batch_after', staticmethod(count)
  )
  first = prompter.example(RECORDS[0], bare_variant('prompt'))
  size = len(encoded)
  assert size
  second = prompter.example(RECORDS[0], bare_variant('concat'))
  assert len(encoded) == size
  np.testing.assert_array_equal(first.prefix, second.prefix)
  other = prompter.example(RECORDS[1], bare_variant('prompt'))
  assert len(encoded) > size
  assert not np.array_equal(other.prefix, first.prefix)


def test_base_is_not_changed_by_answers(base, mesh, variants):
  def digest():
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(base.params)]

  before = digest()
  make_evaluator(base, mesh).answers(RECORDS, variants, label='')
  assert digest() == before
