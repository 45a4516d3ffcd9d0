"""Ids of assembled examples, on tokenizers of each kind."""

import dataclasses
import json
import pathlib
import pickle

import numpy as np
import pytest
import tiny_models
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from vtokens import config
from vtokens.data import assemble, formats, prompt_encoder, records
from vtokens.data.assemble import Assembler, Example, Limits
from vtokens.data.prompt_encoder import PromptEncoder
from vtokens.data.records import Passage, Record
from vtokens.host import errors
from vtokens.models.tokenizers.tokenizer import Tokenizer, load_tokenizer

V = 1000


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory) -> Tokenizer:
  directory = tmp_path_factory.mktemp('byte_level')
  tiny_models.save_tokenizer(directory)
  return load_tokenizer(directory)


def _decoder(*more: decoders.Decoder) -> decoders.Decoder:
  return decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *more,
    ]
  )


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
  backend.decoder = _decoder(decoders.Strip(' ', 1, 0))
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


@pytest.fixture(scope='module')
def smollm2(smollm2_path) -> Tokenizer:
  return load_tokenizer(smollm2_path)


@pytest.fixture(scope='module')
def quickstart() -> list[Record]:
  path = pathlib.Path(records.__file__).parent / 'quickstart/test.jsonl.gz'
  return formats.read_all([str(path)])


def _texts(quickstart) -> list[str]:
  """What tokenizers below are trained on; other passages than are tested."""
  return [
    f'[{i + 1}] {p.title}\n{p.text}\n'
    for record in quickstart[150:]
    for i, p in enumerate(record.ranked())
  ]


def _wrap(backend: tokenizers.Tokenizer, **tokens: str) -> Tokenizer:
  return Tokenizer(
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
  )


def _trained_sentencepiece(quickstart) -> tokenizers.Tokenizer:
  """Merges within words and the space before them; bytes for the rest."""
  trained = tokenizers.Tokenizer(models.BPE())
  trained.normalizer = normalizers.Replace(' ', '▁')
  trained.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
  texts = [text.replace('\n', ' ') for text in _texts(quickstart)]
  trained.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=2000, limit_alphabet=80, show_progress=False
    ),
  )
  model = json.loads(trained.to_str())['model']
  tokens = ['<unk>', '<s>', '</s>']
  tokens += [f'<0x{i:02X}>' for i in range(256)]
  tokens += sorted(model['vocab'], key=model['vocab'].get)
  backend = tokenizers.Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(tokens)},
      [tuple(merge) for merge in model['merges']],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  backend.add_special_tokens(['<unk>', '<s>', '</s>'])
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return backend


@pytest.fixture(scope='module')
def llama2(quickstart) -> Tokenizer:
  """`▁` before each text."""
  backend = _trained_sentencepiece(quickstart)
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.decoder = _decoder(decoders.Strip(' ', 1, 0))
  return _wrap(backend, bos_token='<s>', eos_token='</s>', unk_token='<unk>')


@pytest.fixture(scope='module')
def metaspace(quickstart) -> Tokenizer:
  """The same as newer files write it."""
  backend = _trained_sentencepiece(quickstart)
  backend.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme='first', split=False
  )
  backend.decoder = _decoder(decoders.Strip(' ', 1, 0))
  return _wrap(backend, bos_token='<s>', eos_token='</s>', unk_token='<unk>')


@pytest.fixture(scope='module')
def gemma(quickstart) -> Tokenizer:
  """No `▁` before a text."""
  backend = _trained_sentencepiece(quickstart)
  backend.normalizer = normalizers.Replace(' ', '▁')
  backend.decoder = _decoder()
  return _wrap(backend, bos_token='<s>', eos_token='</s>', unk_token='<unk>')


@pytest.fixture(scope='module')
def llama3(quickstart) -> Tokenizer:
  """Byte-level; punctuation goes together with the line breaks after it."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  texts = _texts(quickstart)
  backend.train_from_iterator(
    # Line breaks after a full stop are to be one token with it.
    [*texts, *(text + '\n' for text in texts)],
    trainers.BpeTrainer(
      vocab_size=3000,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=['<bos>', '<eos>'],
      show_progress=False,
    ),
  )
  backend.post_processor = processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', 0)]
  )
  return _wrap(backend, bos_token='<bos>', eos_token='<eos>')


KINDS = (
  *('smollm2', 'byte_level', 'sentencepiece'),
  *('llama2', 'metaspace', 'gemma', 'llama3'),
)


def passage(text: str, title: str = '') -> Passage:
  return Passage(id='', title=title, text=text)


def ranked(*passages: Passage) -> list[tuple[int, Passage]]:
  return list(enumerate(passages))


def make(tokenizer, templates=None, max_prefix=1000, **limits) -> Assembler:
  return Assembler(
    encoder=PromptEncoder(tokenizer, templates or config.Templates()),
    limits=Limits(
      prefix=max_prefix,
      suffix=limits.get('max_suffix', 500),
      targets=limits.get('max_targets', 60),
    ),
  )


def lists(example: Example) -> tuple:
  """An example as values that can be compared."""
  for ids in (example.prefix, example.after, example.targets):
    assert ids.dtype == np.int32
  return tuple(
    value.tolist() if isinstance(value, np.ndarray) else value
    for value in (
      getattr(example, field.name) for field in dataclasses.fields(example)
    )
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
  assert list(example.suffix(V)) == [V, V + 1, V + 2, *prompt, *answer]
  assert example.suffix(V).dtype == np.int32
  assert example.suffix_len == 3 + len(prompt) + len(answer)


# By position: prefix, before and after the virtual tokens.
PARTS = {
  'first': (['start'], [], ['passages', 'question', 'turn end']),
  'middle': (['start', 'passages'], [], ['question', 'turn end']),
  'last': (['start', 'passages'], ['question'], ['turn end']),
}


@pytest.mark.parametrize('position', PARTS)
@pytest.mark.parametrize(
  'kind', ['byte_level', 'sentencepiece', 'byte_level in chat']
)
def test_where_the_virtual_tokens_stand(kind, position, request):
  name, _, chat = kind.partition(' in ')
  tokenizer = request.getfixturevalue(name)
  encode = tokenizer.encode
  ids = {
    'start': [*tokenizer.prefix_ids],
    'passages': encode('[1] one\n[2] Two\ntwo\n\n'),
    'question': encode('Question: why?\nAnswer:'),
    'turn end': [],
  }
  answer = encode('x so')[len(encode('x')) :]
  if chat:
    special = tokenizer.encode_template
    ids['start'] = [*special('<|start|>'), *encode('user\n')]
    ids['turn end'] = [*special('<|end|>'), *encode('\n')]
    ids['turn end'] += [*special('<|start|>'), *encode('assistant\n')]
    answer = encode('so')
  expected = [[i for part in row for i in ids[part]] for row in PARTS[position]]
  virtual = [V, V + 1, V + 2]
  for assembler, argument in (
    (dataclasses.replace(make(tokenizer), position=position), None),
    (make(tokenizer), position),
  ):
    example = assembler(
      ranked(passage('one'), passage('two', title='Two')),
      'why?',
      answer='so',
      num_active=3,
      chat=bool(chat),
      position=argument,
    )
    found = [example.prefix, example.before, example.after]
    assert [part.tolist() for part in found] == expected
    assert {part.dtype for part in found} == {np.dtype(np.int32)}
    assert example.suffix(V).tolist() == [
      *expected[1],
      *virtual,
      *expected[2],
      *answer,
    ]
    assert example.suffix(V).dtype == np.int32
    assert example.suffix_len == len(example.suffix(V))
    assert example.targets.tolist()[:-1] == answer


@pytest.mark.parametrize('chat', [False, True])
def test_without_virtual_tokens_all_positions_are_the_same(byte_level, chat):
  for shown in ((), ranked(passage('one'), passage('two' * 40))):
    for answer in (None, 'so'):
      examples = [
        make(byte_level, max_prefix=60)(
          shown, 'why?', answer=answer, chat=chat, position=position
        )
        for position in PARTS
      ]
      whole = [[*e.prefix, *e.suffix(V)] for e in examples]
      assert whole[0] == whole[1] == whole[2]
      cuts = {(e.passages_dropped, e.passages_cut) for e in examples}
      assert cuts == {(0, int(bool(shown)))}


@pytest.mark.parametrize('position', PARTS)
def test_limits_are_the_same_at_every_position(byte_level, position):
  question = 'q' * (40 - 4 - 18)
  assemble = make(byte_level, max_prefix=30, max_suffix=40)
  example = assemble(
    ranked(passage('a' * 90)), question, num_active=4, position=position
  )
  assert (example.passages_dropped, example.passages_cut) == (0, 1)
  assert len(example.prefix) + example.suffix_len == 30 + 40
  with pytest.raises(errors.UserError, match='max_suffix_tokens=40 '):
    assemble((), question + 'q', num_active=4, position=position)


def test_no_other_position(byte_level):
  with pytest.raises(ValueError, match="'end'"):
    make(byte_level)((), 'why?', position='end')


def test_limits_of_rows(byte_level, sentencepiece):
  def limits(tokenizer, position, **templates):
    assemble = make(tokenizer, config.Templates(**templates))
    return dataclasses.replace(assemble, position=position).longest

  for position in ('middle', 'last'):
    assert limits(sentencepiece, position) == (1000, 500)
  # Of the prefix there is only bos, or the start of the chat turn, or nothing.
  assert limits(sentencepiece, 'first') == (1, 1500)
  assert limits(byte_level, 'first') == (0, 1500)
  start = len('s' + 'user\n')
  assert limits(byte_level, 'first', chat=True) == (start, 1500)


def test_shapes_that_are_too_small(byte_level):
  chat = config.Templates(chat=True)
  assemble = dataclasses.replace(make(byte_level, chat), position='first')
  assemble.check_shapes((), 2, 1)
  assemble.check_shapes(((1, 1), (12, 3000)), 2, 1)
  with pytest.raises(errors.UserError) as e:
    assemble.check_shapes(((11, 3000),), 2, 1)
  assert str(e.value) == (
    'config.data.shapes: expected the last one to be at least (12, 3000): 2 '
    'examples to a row, virtual_tokens.draws_per_example=1 and position=first; '
    'got ((11, 3000),)'
  )
  with pytest.raises(errors.UserError, match=r'at least \(12, 9000\)'):
    assemble.check_shapes(((12, 3000),), 2, 3)
  with pytest.raises(errors.UserError, match=r'at least \(12, 3000\)'):
    assemble.check_shapes(((12, 2999),), 2, 1)


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
    assert tuple(example.prefix) == tokenizer.prefix_ids
    assert len(example.targets) == 0
    assert example.suffix_len == len(example.after)


def test_an_answer_has_one_space_before_it(sentencepiece):
  example = make(sentencepiece)((), 'why?', answer='so')
  text = sentencepiece.decode([*example.after, *example.targets])
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
  assert list(example.targets).count(tokenizer.eos_id) == 1
  assert evil in tokenizer.decode(ids)


def test_prompts_of_the_conditions(byte_level):
  assemble = make(byte_level)

  def text(example):
    return byte_level.decode(example.after)

  passages = ranked(passage('p'))
  assert text(assemble(passages, 'why?', prompt='concat')) == 'why?'
  assert text(assemble(passages, 'why?', prompt='instruction')) == (
    'According to the previous relevant passages, please answer the following '
    'question. Only return the answer without any other words.\n'
    'Question: why?\nAnswer:'
  )


def test_braces_in_text_are_text(byte_level):
  example = make(byte_level)(ranked(passage('{text}')), '{question} {0} {')
  assert '{question} {0} {' in byte_level.decode(example.after)
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
  assert [*found.after] == [*inner.after, *end, *reply]
  # No space before the answer, and the turn's end after it instead of eos.
  assert [*found.targets] == [*byte_level.encode('a'), *ids['end']]
  assert [*inner.targets] == [*byte_level.encode(' a'), *ids['eos']]
  assert found.num_active == 2
  # A condition may say otherwise than the templates.
  assert lists(chat(*arguments, chat=False)) == lists(plain(*arguments))
  assert lists(plain(*arguments, chat=True)) == lists(chat(*arguments))


def test_chat_wraps_everything(byte_level):
  example = make(byte_level)(
    ranked(passage('one')), 'why?', num_active=2, chat=True
  )
  before, after = byte_level.chat_wrap
  assert list(example.prefix[: len(before)]) == before
  assert list(example.after[-len(after) :]) == after
  # All that is not virtual, read as text with its special tokens, is what
  # the template itself would have rendered.
  inner = '[1] one\n\nQuestion: why?\nAnswer:'
  ids = [*example.prefix, *example.after]
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
    # The frame of a passage, its space included, and one letter.
    example, text = self.fit(byte_level, 7)
    assert text == '[1] a\n\n'
    assert (example.passages_dropped, example.passages_cut) == (2, 1)
    # The frame alone is nothing.
    example, text = self.fit(byte_level, 5)
    assert text == ''
    assert (example.passages_dropped, example.passages_cut) == (3, 0)

  def test_the_line_break_after_a_cut_passage_stays(self, llama2):
    """Though two line breaks begin with the same token as one."""
    shown = [(1, passage('a b c d e f')), (0, passage('g'))]
    whole = make(llama2)(shown, 'q')
    example = make(llama2, max_prefix=len(whole.prefix) - 3)(shown, 'q')
    assert example.passages_cut == 1
    assert llama2.decode(example.prefix) == '[1] a b c\n[2] g\n\n'
    shown = [(0, passage('g')), (1, passage('a b c d e f'))]
    example = make(llama2, max_prefix=len(whole.prefix) - 3)(shown, 'q')
    assert llama2.decode(example.prefix) == '[1] g\n[2] a b c\n\n'

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
      assert lists(example) == lists(full)
    else:
      assert example.passages_dropped or example.passages_cut
    if example.passages_cut:
      assert len(example.prefix) == room
    assert list(example.after) == list(full.after)

  def test_no_room_even_for_the_template(self, byte_level):
    before = len(byte_level.chat_wrap[0])
    assemble = make(byte_level, max_prefix=before - 1)
    with pytest.raises(
      errors.UserError,
      match=f'^{before} tokens .* config.data.max_prefix_tokens={before - 1}$',
    ):
      assemble(ranked(passage('a')), 'q', chat=True)
    just = make(byte_level, max_prefix=before)
    example = just(ranked(passage('a')), 'q', chat=True)
    assert len(example.prefix) == before
    assert example.passages_dropped == 1

  def test_question_is_never_cut(self, byte_level):
    assemble = make(byte_level, max_suffix=40)
    with pytest.raises(errors.UserError) as e:
      assemble((), 'q' * 30, num_active=4, where='record 7')
    assert str(e.value) == (
      'record 7: 4 virtual tokens, 48 tokens of question and 0 of answer with '
      'eos do not fit config.data.max_suffix_tokens=40 and '
      'max_answer_tokens=60'
    )
    fitting = assemble((), 'q' * (40 - 4 - 18), num_active=4)
    assert fitting.suffix_len == 40

  def test_answer_is_never_cut(self, byte_level):
    assemble = make(byte_level, max_targets=5)
    with pytest.raises(
      errors.UserError, match=r'record 7: .*max_answer_tokens=5'
    ):
      assemble((), 'q', answer='abcd', where='record 7')
    assert len(assemble((), 'q', answer='abc').targets) == 5


def test_for_run_takes_the_limits_of_the_config(byte_level):
  cfg = config.Config()
  cfg.data.max_prefix_tokens = 64
  cfg.data.max_suffix_tokens = 120
  cfg.data.max_answer_tokens = 9
  # Those of rows are another matter.
  cfg.data.examples_per_row = 2
  cfg.data.shapes = ((128, 240),)
  cfg.templates.chat = True
  assembler = Assembler.for_run(byte_level, cfg)
  assert assembler.limits == Limits(prefix=64, suffix=120, targets=9)
  assert assembler.in_chat(None)


class TestFit:
  """Of lengths alone, as training plans its batches by them."""

  PASSAGES = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 4)),
    max_size=6,
  ).flatmap(
    lambda lengths: st.tuples(
      st.just(lengths), st.permutations(range(len(lengths)))
    )
  )

  @given(PASSAGES, st.lists(st.integers(0, 4), min_size=6, max_size=6))
  def test_every_room(self, passages, heads):
    lengths, ranks = passages
    bodies, ends, last_ends = (
      [length[part] for length in lengths] for part in range(3)
    )

    def length(kept):
      return assemble.prefix_len(0, heads, kept, ends, last_ends)

    for room in range(length(bodies) + 2):
      kept = assemble.fit(ranks, heads, bodies, ends, last_ends, room)
      assert length(kept) <= room
      changed = [i for i, n in enumerate(kept) if n < bodies[i]]
      if length(bodies) <= room:
        assert not changed
        continue
      # The worst ones gave way, all of each but the best of them.
      by_rank = sorted(range(len(ranks)), key=lambda i: -ranks[i])
      assert set(changed) == set(by_rank[: len(changed)])
      least = by_rank[len(changed) - 1]
      assert all(not kept[i] for i in changed if i != least)
      # Nor would one id more have fitted.
      kept[least] += 1
      assert length(kept) > room

  def test_lengths_are_those_of_the_ids(self, smollm2, quickstart):
    encoder = PromptEncoder(smollm2, config.Templates())
    heads = [len(encoder.head(i + 1)) for i in range(2)]
    cut = dropped = 0
    for number, record in enumerate(quickstart[:40]):
      pieces = encoder.passages(record.ranked())
      for room in (10 * number, 5000):
        example = assemble.join(
          encoder,
          list(enumerate(pieces)),
          np.array([1], np.int32),
          np.array([], np.int32),
          num_active=0,
          chat=False,
          max_prefix=room,
        )
        sizes = [
          [len(getattr(ids, part)) for ids in pieces]
          for part in ('body', 'end', 'last_end')
        ]
        kept = assemble.fit(range(2), heads, *sizes, room)
        expected = assemble.prefix_len(0, heads, kept, *sizes[1:])
        assert len(example.prefix) == expected
        cut += example.passages_cut
        dropped += example.passages_dropped
    assert cut > 10
    assert dropped > 10


class TestTemplates:
  """Passages in templates other than the default."""

  def text(self, tokenizer, template, *passages, **more):
    templates = config.Templates(passage=template, **more)
    example = make(tokenizer, templates)(ranked(*passages), 'q')
    return tokenizer.decode(example.prefix)

  @pytest.mark.parametrize('kind', KINDS)
  @pytest.mark.parametrize(
    'template',
    [
      '[{index}] {text}\n',
      'Doc {index} (Title: {title}) {text}\n',
      'Doc {index}: {text} (of {title})\n\n',
      '{{{index}}} {{text}} {title}: {text} {{}}\n',
      '{index}.{text}',
      '- {text}\n',
      '{index}\n  {title}\t{text} </doc>\n',
    ],
  )
  def test_text_is_that_of_the_template(self, kind, template, request):
    tokenizer = request.getfixturevalue(kind)
    rows = [('One', 'first.'), ('', 'second'), ('Drei {text}', '3rd {index}!')]
    found = self.text(
      tokenizer,
      template,
      *(passage(text, title) for title, text in rows),
      after_passages='--\n',
    )
    texts = [
      template.format(index=i, title=title, text=text)
      if '{title}' in template
      else template.format(index=i, text=f'{title}\n{text}' if title else text)
      for i, (title, text) in enumerate(rows, 1)
    ]
    # A tokenizer of the Llama 2 kind gives back a first space of its own.
    assert found.removeprefix(' ') == ''.join(texts) + '--\n'

  def test_headings_count_on_past_nine(self, smollm2):
    passages = [passage(f'of {i}') for i in range(12)]
    found = self.text(smollm2, '[{index}] {text}\n', *passages)
    lines = [f'[{i + 1}] of {i}\n' for i in range(12)]
    assert found == ''.join(lines) + '\n'

  @pytest.mark.parametrize(
    'template, parts',
    [
      ('[{index}] {text}\n', ('[{index}]', ' {text}', '\n')),
      ('{text}', ('', '{text}', '')),
      (
        'Doc {index} (Title: {title})  {text}\n',
        ('Doc {index} (Title:', ' {title})  {text}', '\n'),
      ),
      ('{index} \n {text}', ('{index}', ' \n {text}', '')),
      # Braces that are text, right beside those that are not.
      ('{{text}} {text}\n', ('{{text}}', ' {text}', '\n')),
      ('{{{index}}}{text} {{', ('{{{index}}}', '{text}', ' {')),
    ],
  )
  def test_split_passage(self, template, parts):
    assert prompt_encoder.split_passage(template) == parts


def test_an_encoder_can_be_sent_to_another_process(llama2):
  templates = config.Templates(passage='<{index}> {title}: {text}\n')
  before = make(llama2, templates)
  after = pickle.loads(pickle.dumps(before))
  arguments = (ranked(passage('one'), passage('two', 'Two')), 'why?')
  assert lists(after(*arguments, answer='so', num_active=2)) == lists(
    before(*arguments, answer='so', num_active=2)
  )
  assert after.encoder.templates == templates


def test_a_passage_has_the_same_ids_wherever_it_stands(llama3):
  """The invariant that lets it be encoded once."""
  shown = [passage('one.'), passage('two', title='Two'), passage('three?')]
  encoder = PromptEncoder(llama3, config.Templates())
  alone = [encoder.passages([p])[0] for p in shown]
  for together in (
    encoder.passages(shown),
    encoder.passages(shown[::-1])[::-1],
  ):
    for ids, expected in zip(together, alone, strict=True):
      for part in ('body', 'end', 'last_end'):
        np.testing.assert_array_equal(
          getattr(ids, part), getattr(expected, part)
        )


@pytest.mark.parametrize('kind', KINDS)
def test_pieces_are_the_ids_of_the_whole_text(kind, request, quickstart):
  """Real passages, several to a text, of which each was encoded by itself."""
  tokenizer = request.getfixturevalue(kind)
  encoder = PromptEncoder(tokenizer, config.Templates())
  passages = [p for record in quickstart[:150] for p in record.ranked()]
  texts = [f'{p.title}\n{p.text}' if p.title else p.text for p in passages]
  pieces = encoder.passages(passages)
  for text, ids in zip(texts, pieces, strict=True):
    inner = tokenizer.encode_after(f' {text}\n')
    assert [*ids.body, *ids.end] == inner
    last = tokenizer.encode_after(f' {text}\n\n')
    assert [*ids.body, *ids.last_end] == last
    # What is cut holds no line break that ends a passage.
    assert tokenizer.decode(ids.end).endswith('\n')
    assert tokenizer.decode(ids.last_end).endswith('\n\n')
  # Twelve to a text, so that headings have one digit and two.
  for start in range(0, len(passages), 12):
    group = range(start, min(start + 12, len(passages)))
    whole = ''.join(f'[{n}] {texts[i]}\n' for n, i in enumerate(group, 1))
    example = assemble.join(
      encoder,
      [(n, pieces[i]) for n, i in enumerate(group)],
      np.array([], np.int32),
      np.array([], np.int32),
      num_active=0,
      chat=False,
      max_prefix=100_000,
    )
    assert list(example.prefix) == [
      *tokenizer.prefix_ids,
      *tokenizer.encode(whole + '\n'),
    ]


@pytest.mark.parametrize('kind', ['smollm2', 'sentencepiece', 'byte_level'])
def test_ids_are_those_of_the_whole_text(kind, request, quickstart, tmp_path):
  """Without virtual tokens, where a token starts with the question."""
  tokenizer = request.getfixturevalue(kind)
  tokenizer.save(tmp_path)
  backend = tokenizers.Tokenizer.from_file(f'{tmp_path}/tokenizer.json')
  backend.encode_special_tokens = True
  compared = 0
  special = {*tokenizer.ids} - {*tokenizer.ordinary_ids}
  breaks = {
    i
    for i in tokenizer.ids
    if i not in special and not tokenizer.decode([i]).strip('\n')
  }
  for record in quickstart[:50]:
    example = make(tokenizer, max_prefix=5000)(
      ranked(*record.ranked()), record.question
    )
    texts = [
      f'{p.title}\n{p.text}' if p.title else p.text for p in record.ranked()
    ]
    before = ''.join(f'[{i}] {text}\n' for i, text in enumerate(texts, 1))
    after = f'Question: {record.question}\nAnswer:'
    # The same tokenizer, asked for the whole text at once.
    whole = backend.encode(f'{before}\n{after}')
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
    space = backend.token_to_id('▁')
    prompt = [*example.after]
    if kind == 'sentencepiece':
      assert prompt[0] == space
      del prompt[0]
    assert prompt == whole.ids[cut:]
  assert compared >= 40


def test_smollm2_ids(smollm2):
  """Ids of the real tokenizer, written out: nothing may shift them."""
  tokenizer = smollm2
  example = make(tokenizer)(
    ranked(passage('Paris is big.', title='Paris')),
    'Where?',
    answer='Paris',
    num_active=2,
  )
  whole = tokenizer.encode('[1] Paris\nParis is big.\n\n')
  assert list(example.prefix) == whole
  assert list(example.suffix(49152)[:2]) == [49152, 49153]
  assert tokenizer.decode(example.suffix(49152)[2:]) == (
    'Question: Where?\nAnswer: Paris'
  )
  assert example.targets[-1] == 2


@pytest.mark.parametrize('chat', [False, True])
@pytest.mark.parametrize('position', config.POSITIONS)
def test_virtual_tokens_that_are_not_in_the_suffix(byte_level, chat, position):
  """The same ids without them, at the same positions as with them."""
  table = dataclasses.replace(make(byte_level), position=position)
  keys_values = dataclasses.replace(table, in_suffix=False)
  shown = ranked(passage('a red fox'))
  if position == 'last' and not chat:
    with pytest.raises(
      errors.UserError, match=r'q9: .* nothing that would see'
    ):
      keys_values(shown, 'why?', num_active=4, where='q9')
    assert not keys_values(shown, 'why?').num_active
    return
  with_them, found = (
    assemble(shown, 'why?', answer='b', num_active=4, chat=chat)
    for assemble in (table, keys_values)
  )
  ids, positions = with_them.suffix(V), with_them.suffix_positions()
  ordinary = ids < V
  np.testing.assert_array_equal(found.suffix(V), ids[ordinary])
  np.testing.assert_array_equal(found.suffix_positions(), positions[ordinary])
  assert found.suffix_len == with_them.suffix_len - 4 == ordinary.sum()
  assert found.first_position == positions[~ordinary][0]
