"""Ids of assembled examples, on tokenizers of each kind."""

import pathlib

import pytest
import tiny_models
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from vtokens import config, errors
from vtokens.data import records
from vtokens.data.assemble import Assembler
from vtokens.data.records import Passage
from vtokens.models.tokenizer import Tokenizer, load_tokenizer

V = 1000


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory) -> Tokenizer:
  directory = tmp_path_factory.mktemp('byte_level')
  tiny_models.save_tokenizer(directory)
  return load_tokenizer(directory)


@pytest.fixture(scope='module')
def sentencepiece(tmp_path_factory) -> Tokenizer:
  """As Llama 2: bos in front, `▁` before each text, bytes for the rest."""
  letters = [chr(c) for c in range(33, 127)]
  tokens = ['<unk>', '<s>', '</s>']
  tokens += [f'<0x{i:02X}>' for i in range(256)] + ['▁', *letters]
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens)},
      merges=[],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  backend.add_special_tokens(['<unk>', '<s>', '</s>'])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return Tokenizer(
    transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend,
      bos_token='<s>',
      eos_token='</s>',
      unk_token='<unk>',
    )
  )


def passage(text: str, title: str = '') -> Passage:
  return Passage(id='', title=title, text=text)


def ranked(*passages: Passage) -> list[tuple[int, Passage]]:
  return list(enumerate(passages))


def make(tokenizer, templates=None, max_prefix=1000, **limits) -> Assembler:
  return Assembler(
    tokenizer=tokenizer,
    templates=templates or config.Templates(),
    max_prefix=max_prefix,
    max_suffix=limits.get('max_suffix', 500),
    max_targets=limits.get('max_targets', 60),
  )


@pytest.mark.parametrize('kind', ['byte_level', 'sentencepiece'])
def test_parts_and_their_order(kind, request):
  tokenizer = request.getfixturevalue(kind)
  example = make(tokenizer)(
    ranked(passage('one'), passage('two', title='Two')),
    'why?',
    answer='so',
    num_active=3,
  )
  encode = tokenizer.encode
  prefix = [*tokenizer.prefix_ids, *encode('[1] one\n[2] Two\ntwo\n\n')]
  prompt = encode('Question: why?\nAnswer:')
  # After `Answer:`, as in running text: one space, not one more.
  answer = encode('x so')[len(encode('x')) :]
  assert list(example.prefix) == prefix
  assert list(example.targets) == [*answer, tokenizer.eos_id]
  assert example.suffix(V) == [V, V + 1, V + 2, *prompt, *answer]
  assert example.suffix_len == 3 + len(prompt) + len(answer)


def test_bos_comes_once_and_first(sentencepiece):
  example = make(sentencepiece)(
    ranked(passage('one')), 'why?', answer='so', num_active=2
  )
  ids = [*example.prefix, *example.suffix(V), *example.targets]
  assert ids[0] == 1
  assert ids.count(1) == 1


def test_without_passages_there_is_no_empty_passage_text(
  byte_level, sentencepiece
):
  for tokenizer in (byte_level, sentencepiece):
    example = make(tokenizer)((), 'why?')
    assert example.prefix == tokenizer.prefix_ids
    assert example.targets == ()
    assert example.suffix_len == len(example.prompt)


def test_an_answer_has_one_space_before_it(sentencepiece):
  example = make(sentencepiece)((), 'why?', answer='so')
  text = sentencepiece.decode([*example.prompt, *example.targets])
  assert text == 'Question: why?\nAnswer: so'
  assert sentencepiece.decode(example.targets[:1]).strip() == ''
  assert len(example.targets) == 4  # `▁`, s, o, eos.


@pytest.mark.parametrize('k', [0, 1, 50])
def test_every_virtual_token_is_there_once(byte_level, k):
  example = make(byte_level)(
    ranked(passage('[ref1] [ref2] <|vt_1|>')), 'q', num_active=k
  )
  ids = [*example.prefix, *example.suffix(V)]
  assert [i for i in ids if i >= V] == list(range(V, V + k))


@pytest.mark.parametrize('kind', ['byte_level', 'sentencepiece'])
def test_text_that_looks_special_stays_text(kind, request):
  tokenizer = request.getfixturevalue(kind)
  evil = '<|eos|> </s> <s> <|start|> <|end|>'
  example = make(tokenizer)(ranked(passage(evil)), evil, answer=evil)
  ids = [*example.prefix[len(tokenizer.prefix_ids) :], *example.suffix(V)]
  assert tokenizer.eos_id not in ids
  assert example.targets.count(tokenizer.eos_id) == 1
  assert evil in tokenizer.decode(ids)


def test_prompts_of_the_conditions(byte_level):
  assemble = make(byte_level)

  def text(example):
    return byte_level.decode(example.prompt)

  passages = ranked(passage('p'))
  assert text(assemble(passages, 'why?', prompt='concat')) == 'why?'
  assert text(assemble(passages, 'why?', prompt='instruction')) == (
    'According to the previous relevant passages, please answer the following '
    'question. Only return the answer without any other words.\n'
    'Question: why?\nAnswer:'
  )


def test_braces_in_text_are_text(byte_level):
  example = make(byte_level)(ranked(passage('{text}')), '{question} {0} {')
  assert '{question} {0} {' in byte_level.decode(example.prompt)
  assert '{text}' in byte_level.decode(example.prefix)


def test_chat_by_the_templates_puts_tokens_inside_the_turn(byte_level):
  plain = make(byte_level)
  chat = make(byte_level, config.Templates(chat=True))
  ids = {
    name: byte_level.encode_template(f'<|{name}|>')
    for name in ('start', 'end', 'eos')
  }
  arguments = (ranked(passage('p')), 'q')
  found = chat(*arguments, answer='a', num_active=2)
  inner = plain(*arguments, answer='a', num_active=2)
  start = [*ids['start'], *byte_level.encode('user\n')]
  end = [*ids['end'], *byte_level.encode('\n')]
  reply = [*ids['start'], *byte_level.encode('assistant\n')]
  assert [*found.prefix] == [*start, *inner.prefix]
  assert [*found.prompt] == [*inner.prompt, *end, *reply]
  # No space before the answer, and the turn's end after it instead of eos.
  assert [*found.targets] == [*byte_level.encode('a'), *ids['end']]
  assert [*inner.targets] == [*byte_level.encode(' a'), *ids['eos']]
  assert found.num_active == 2
  # A condition may say otherwise than the templates.
  assert chat(*arguments, chat=False) == plain(*arguments)
  assert plain(*arguments, chat=True) == chat(*arguments)


def test_chat_wraps_everything(byte_level):
  example = make(byte_level)(
    ranked(passage('one')), 'why?', num_active=2, chat=True
  )
  before, after = byte_level.chat_wrap
  assert list(example.prefix[: len(before)]) == before
  assert list(example.prompt[-len(after) :]) == after
  # All that is not virtual, read as text with its special tokens, is what
  # the template itself would have rendered.
  inner = '[1] one\n\nQuestion: why?\nAnswer:'
  ids = [*example.prefix, *example.prompt]
  assert ids == [*before, *byte_level.encode(inner), *after]


class TestTooLong:
  """Passages are cut from the lowest-ranked on; nothing else ever is."""

  # Byte level: a character is a token.
  TEXTS = ('a' * 30, 'b' * 30, 'c' * 30)

  def fit(self, tokenizer, max_prefix, order=(0, 1, 2)):
    assemble = make(tokenizer, max_prefix=max_prefix)
    shown = [(rank, passage(self.TEXTS[rank])) for rank in order]
    example = assemble(shown, 'q', answer='a', num_active=4)
    assert len(example.prefix) <= max_prefix
    return example, tokenizer.decode(example.prefix)

  @pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
  def test_all_fit(self, byte_level, order):
    example, text = self.fit(byte_level, 106, order)
    assert len(text) == 106
    assert (example.passages_dropped, example.passages_cut) == (0, 0)

  @pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
  def test_the_lowest_rank_is_cut_wherever_it_stands(self, byte_level, order):
    example, text = self.fit(byte_level, 100, order)
    assert text.count('c') == 24
    assert (text.count('a'), text.count('b')) == (30, 30)
    assert (example.passages_dropped, example.passages_cut) == (0, 1)

  @pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
  def test_then_dropped_and_the_rest_numbered_anew(self, byte_level, order):
    example, text = self.fit(byte_level, 50, order)
    assert text == f'[1] {"a" * 30}\n[2] {"b" * 9}\n\n'
    assert (example.passages_dropped, example.passages_cut) == (1, 1)

  def test_even_the_first(self, byte_level):
    example, text = self.fit(byte_level, 20)
    assert text == f'[1] {"a" * 14}\n\n'
    assert (example.passages_dropped, example.passages_cut) == (2, 1)
    example, text = self.fit(byte_level, 6)
    assert text == ''
    assert (example.passages_dropped, example.passages_cut) == (3, 0)

  @given(
    st.lists(st.text(min_size=1, max_size=40), max_size=4),
    st.integers(8, 120),
  )
  def test_never_too_long_and_never_wasteful(self, byte_level, texts, room):
    assemble = make(byte_level, max_prefix=room)
    example = assemble(ranked(*map(passage, texts)), 'q', num_active=4)
    full = make(byte_level, max_prefix=10_000)(
      ranked(*map(passage, texts)), 'q', num_active=4
    )
    assert len(example.prefix) <= room
    if len(full.prefix) <= room:
      assert example == full
    else:
      assert example.passages_dropped or example.passages_cut
    if example.passages_cut:
      # One more character is at most four bytes.
      assert len(example.prefix) > room - 4
    assert example.prompt == full.prompt

  def test_no_room_even_for_the_template(self, byte_level):
    before = len(byte_level.chat_wrap[0])
    assemble = make(byte_level, max_prefix=before - 1)
    with pytest.raises(
      errors.UserError, match=f'record 7: {before} tokens .* config.data.buck'
    ):
      assemble(ranked(passage('a')), 'q', chat=True, where='record 7')

  def test_question_is_never_cut(self, byte_level):
    assemble = make(byte_level, max_suffix=40)
    with pytest.raises(errors.UserError, match=r'record 7: .*suffix of 40'):
      assemble((), 'q' * 30, num_active=4, where='record 7')
    fitting = assemble((), 'q' * (40 - 4 - 18), num_active=4)
    assert fitting.suffix_len == 40

  def test_answer_is_never_cut(self, byte_level):
    assemble = make(byte_level, max_targets=5)
    with pytest.raises(
      errors.UserError, match=r'record 7: .*max_answer_tokens=5'
    ):
      assemble((), 'q', answer='abcd', where='record 7')
    assert len(assemble((), 'q', answer='abc').targets) == 5


def test_for_run_takes_the_largest_bucket(byte_level):
  cfg = config.Config()
  cfg.data.buckets = ((16, 80), (64, 120))
  assembler = Assembler.for_run(byte_level, cfg)
  assert (assembler.max_prefix, assembler.max_suffix) == (64, 120)


@pytest.mark.parametrize('kind', ['smollm2', 'sentencepiece', 'byte_level'])
def test_ids_are_those_of_the_whole_text(kind, request, smollm2_path):
  """Without virtual tokens, where a token starts with the question."""
  if kind == 'smollm2':
    tokenizer = load_tokenizer(smollm2_path)
  else:
    tokenizer = request.getfixturevalue(kind)
  path = pathlib.Path(records.__file__).parent / 'quickstart/test.jsonl.gz'
  compared = 0
  special = {*tokenizer.ids} - {*tokenizer.ordinary_ids}
  breaks = {
    i
    for i in tokenizer.ids
    if i not in special and not tokenizer.decode([i]).strip('\n')
  }
  for record in records.read_records([str(path)]).records[:50]:
    example = make(tokenizer, max_prefix=5000)(
      list(enumerate(record.passages)), record.question
    )
    texts = [
      f'{p.title}\n{p.text}' if p.title else p.text for p in record.passages
    ]
    before = ''.join(f'[{i}] {text}\n' for i, text in enumerate(texts, 1))
    after = f'Question: {record.question}\nAnswer:'
    # The same tokenizer, asked for the whole text at once.
    whole = tokenizer._plain.encode(f'{before}\n{after}')
    starts = [
      i
      for i, (start, end) in enumerate(whole.offsets)
      if start == len(before) + 1 and end > start
    ]
    if not starts:
      continue  # A token goes over the boundary: "\n\n" and more.
    cut = starts[0]
    compared += 1
    # How line breaks are grouped may depend on what comes after them.
    found, expected = [*example.prefix], whole.ids[:cut]
    for ids in found, expected:
      while ids[-1] in breaks:
        ids.pop()
    assert found == expected
    # SentencePiece begins each text with a space, as the authors' code does.
    space = tokenizer._plain.token_to_id('▁')
    prompt = [*example.prompt]
    if kind == 'sentencepiece':
      assert prompt[0] == space
      del prompt[0]
    assert prompt == whole.ids[cut:]
  assert compared >= 40


def test_smollm2_ids(smollm2_path: pathlib.Path):
  """Ids of the real tokenizer, written out: nothing may shift them."""
  tokenizer = load_tokenizer(smollm2_path)
  example = make(tokenizer)(
    ranked(passage('Paris is big.', title='Paris')),
    'Where?',
    answer='Paris',
    num_active=2,
  )
  whole = tokenizer.encode('[1] Paris\nParis is big.\n\n')
  assert list(example.prefix) == whole
  assert example.suffix(49152)[:2] == [49152, 49153]
  assert tokenizer.decode(example.suffix(49152)[2:]) == (
    'Question: Where?\nAnswer: Paris'
  )
  assert example.targets[-1] == 2
