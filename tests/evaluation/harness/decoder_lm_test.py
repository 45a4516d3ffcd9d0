"""The model of lm-eval, against lm-eval's own on transformers in torch."""

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from vtokens import config
from vtokens.devices import partitioning
from vtokens.evaluation.harness import response_log
from vtokens.evaluation.harness.decoder_lm import DecoderLM, PluggedTable
from vtokens.host import errors
from vtokens.models import frozen_base

PAIRS = [
  ('Question: why?\nAnswer:', ' the moon'),
  ('Question: why?\nAnswer:', ' wind and rain'),
  # lm-eval moves the space to the continuation.
  ('Question: why?\nAnswer: ', 'wind'),
  ('', 'Some text without a context.'),
  ('x' * 600, ' a prompt that is longer than the model takes'),
  ('é<|eos|>', ' ½<|end|>'),
]
UNTIL = {'until': ['q', 'Question:'], 'max_gen_toks': 12}


def load(path, batch_size=4, **settings):
  mesh = partitioning.make_mesh((-1, 1, 1))
  base = frozen_base.load_base(
    config.Base(path=str(path), dtype='float32'), mesh
  )
  return base, DecoderLM(base, mesh, batch_size=batch_size, **settings)


def instances(kind, arguments):
  return [
    Instance(request_type=kind, doc={}, arguments=one, idx=i)
    for i, one in enumerate(arguments)
  ]


@pytest.fixture(scope='module')
def ours(tiny_dir):
  return load(tiny_dir)


@pytest.fixture(scope='module')
def torch_model(tiny_dir):
  return transformers.AutoModelForCausalLM.from_pretrained(
    tiny_dir, dtype=torch.float32
  ).eval()


@pytest.fixture(scope='module')
def theirs(tiny_dir, torch_model, ours):
  # As generation_config.json of a chat model has it.
  torch_model.generation_config.eos_token_id = sorted(ours[0].tokenizer.end_ids)
  return HFLM(
    pretrained=torch_model,
    tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_dir),
    batch_size=1,
    device='cpu',
  )


def check(found, expected):
  for (a, a_greedy), (b, b_greedy) in zip(found, expected, strict=True):
    assert a == pytest.approx(b, rel=2e-5, abs=1e-4)
    assert a_greedy == b_greedy


def test_loglikelihood(ours, theirs):
  _, lm = ours
  # What the model would write itself, where that is a letter.
  contexts = [*'abcdefghijklmnopqrstuvwxyz']
  written = theirs.generate_until(
    instances('generate_until', [(c, {'max_gen_toks': 1}) for c in contexts]),
    disable_tqdm=True,
  )
  greedy = next(
    pair for pair in zip(contexts, written, strict=True) if pair[1].isalpha()
  )
  asked = instances('loglikelihood', [*PAIRS[:4], greedy])
  expected = theirs.loglikelihood(asked, disable_tqdm=True)
  assert [is_greedy for _, is_greedy in expected] == [False] * 4 + [True]
  check(lm.loglikelihood(asked), expected)
  assert lm.encoder.num_shortened == 0


def test_a_prompt_that_is_too_long_loses_its_beginning(tiny_dir, theirs):
  _, lm = load(tiny_dir)
  asked = instances('loglikelihood', [PAIRS[4]])
  check(lm.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))
  assert lm.encoder.num_shortened == 1
  with pytest.raises(errors.UserError, match=r'601 tokens .* has room for 512'):
    lm.loglikelihood(instances('loglikelihood', [('a', 'x' * 602)]))


def test_special_tokens_in_text_stay_text(ours):
  """lm-eval on transformers would read them as special tokens."""
  base, lm = ours
  special = {base.tokenizer.eos_id, *base.tokenizer.end_ids}
  for text in (*PAIRS[5], ''.join(PAIRS[5])):
    assert not special & {*lm.tok_encode(text, add_special_tokens=False)}
  [(found, _)] = lm.loglikelihood(instances('loglikelihood', [PAIRS[5]]))
  assert np.isfinite(found)


def test_rolling(ours, theirs):
  _, lm = ours
  # One window, and three.
  texts = ['A text of one window.', 'the moon ' * 130, '']
  asked = instances('loglikelihood_rolling', [(text,) for text in texts])
  expected = theirs.loglikelihood_rolling(asked[:2], disable_tqdm=True)
  *found, empty = lm.loglikelihood_rolling(asked)
  np.testing.assert_allclose(found, expected, rtol=2e-5)
  assert empty == 0


def test_generation(ours, theirs):
  _, lm = ours
  arguments = [
    (context, {**UNTIL, 'max_gen_toks': size})
    for context, size in [('Question: x', 12), ('A', 12), ('tides', 100)]
  ]
  asked = instances('generate_until', arguments)
  expected = theirs.generate_until(asked, disable_tqdm=True)
  assert lm.generate_until(asked) == expected
  assert lm.continuation(*arguments[0]).num_tokens <= 12


def test_settings_of_generation_that_are_refused(ours):
  with pytest.raises(errors.UserError, match=r'generation_kwargs .*num_beams'):
    ours[1].generate_until(
      instances('generate_until', [('x', {**UNTIL, 'num_beams': 2})])
    )


def test_samples_differ_and_are_repeatable(tiny_dir):
  settings = {**UNTIL, 'do_sample': True, 'temperature': 1.0, 'top_p': 0.9}
  asked = instances('generate_until', [('Question: x', settings)] * 3)
  found = load(tiny_dir, seed=1)[1].generate_until(asked)
  assert len(set(found)) == 3
  assert load(tiny_dir, seed=1)[1].generate_until(asked) == found
  assert load(tiny_dir, seed=2)[1].generate_until(asked) != found


@pytest.mark.parametrize('position', ['middle', 'last'])
def test_a_table_stands_before_or_after_the_prompt(
  tiny_dir, torch_model, position
):
  rows = np.random.default_rng(0).normal(0, 0.3, (5, 64)).astype(np.float32)
  base, lm = load(tiny_dir, plugged=PluggedTable(rows, position))
  pairs = [('Question: why?\nAnswer:', ' the moon'), ('Q', ' wind')]
  found = lm.loglikelihood(instances('loglikelihood', pairs))
  virtual = torch.tensor(rows)
  for (context, continuation), (score, _) in zip(pairs, found, strict=True):
    before, after = (
      torch.tensor(base.tokenizer.encode(text))
      for text in (context, continuation)
    )
    with torch.no_grad():
      embed = torch_model.get_input_embeddings()
      prompt = [virtual, embed(before)]
      prompt = prompt if position == 'middle' else prompt[::-1]
      whole = torch.cat([*prompt, embed(after)])[None]
      logs = torch_model(inputs_embeds=whole).logits[0].log_softmax(-1)
    first = len(before) + len(rows) - 1
    expected = logs[torch.arange(first, first + len(after)), after].sum().item()
    assert score == pytest.approx(expected, rel=2e-5, abs=1e-4)
  # Without the table the answers are others.
  plain = load(tiny_dir)[1].loglikelihood(instances('loglikelihood', pairs))
  assert all(abs(a[0] - b[0]) > 0.01 for a, b in zip(found, plain, strict=True))


def test_nothing_is_asked_twice(tiny_dir, tmp_path):
  """A log gives what another process was answered, in any order."""
  asked = instances('loglikelihood', PAIRS[:4])
  written = instances('generate_until', [('A', UNTIL), ('tides', UNTIL)])

  def log():
    return response_log.ResponseLog(tmp_path, {'base': 'x'})

  first = load(tiny_dir, log=log())[1]
  scores, texts = first.loglikelihood(asked), first.generate_until(written)
  data = log().path.read_bytes()
  _, second = load(tiny_dir, log=log())
  assert second.loglikelihood(asked[::-1]) == scores[::-1]
  assert second.generate_until(written) == texts
  assert log().path.read_bytes() == data
  assert response_log.ResponseLog(tmp_path, {'base': 'y'}).path != log().path
  # A kill in the middle of a line loses that line alone.
  log().path.write_bytes(data[:-9])
  third = load(tiny_dir, log=log())[1]
  assert third.generate_until(written) == texts
  assert log().path.read_bytes() == data
  log().path.write_bytes(data.replace(b'"response": [-', b'"response": [-1'))
  with pytest.raises(errors.UserError, match=r':2: the response has changed'):
    log()


@pytest.mark.exhaustive
def test_smollm2(smollm2_path):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    smollm2_path.parent, gguf_file=smollm2_path.name
  )
  theirs = HFLM(
    pretrained=model, tokenizer=tokenizer, batch_size=1, device='cpu'
  )
  _, lm = load(smollm2_path)
  pairs = [
    ('Question: is house tax and property tax are same?\nAnswer:', ' true'),
    ('Question: is house tax and property tax are same?\nAnswer:', ' false'),
    ('Question: What do people aim to do at work?\nAnswer:', ' complete job'),
    ('', 'The moon pulls at the sea.'),
  ]
  asked = instances('loglikelihood', pairs)
  check(lm.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))
  text = instances('loglikelihood_rolling', [('The moon pulls at the sea.',)])
  np.testing.assert_allclose(
    lm.loglikelihood_rolling(text),
    theirs.loglikelihood_rolling(text, disable_tqdm=True),
    rtol=1e-4,
  )
