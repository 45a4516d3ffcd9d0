"""Tiny models of families, each with a tokenizer built as that family's is."""

import dataclasses
import json
import pathlib

import safetensors.torch
import tiny_models
import tokenizers
from tokenizers import (
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

# Enough for merges of letters, digits and line breaks.
TEXT = (
  'Question: When was the tower of London completed?\nAnswer: in 1859, or so.',
  '[1] The Elizabeth Tower\nThe tower, completed in 1859, houses Big Ben.\n\n',
  'According to the previous relevant passages, please answer the question.',
  'naïve Zürich 東京 1,024 metres;  two spaces\t[ref1] </s> <|im_end|>',
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_BYTES = [f'<0x{i:02X}>' for i in range(256)]


def _byte_level(pattern: str, special: list[str]) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    TEXT,
    trainers.BpeTrainer(
      vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    ),
  )
  backend.add_special_tokens(special)
  return backend


def _llama3() -> tokenizers.Tokenizer:
  backend = _byte_level(
    _LLAMA3,
    [
      '<|begin_of_text|>',
      '<|end_of_text|>',
      *(f'<|reserved_special_token_{i}|>' for i in range(4)),
      '<|eot_id|>',
    ],
  )
  backend.post_processor = processors.TemplateProcessing(
    single='<|begin_of_text|> $A',
    special_tokens=[
      ('<|begin_of_text|>', backend.token_to_id('<|begin_of_text|>'))
    ],
  )
  return backend


def _qwen() -> tokenizers.Tokenizer:
  backend = _byte_level(
    _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}'),
    ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
  )
  backend.normalizer = normalizers.NFC()
  return backend


def _spm(special: list[str], prepend: bool) -> tokenizers.Tokenizer:
  """SentencePiece BPE with bytes, as converted to tokenizer.json."""
  trained = tokenizers.Tokenizer(models.BPE())
  trained.train_from_iterator(
    [text.replace(' ', '▁') for text in TEXT],
    trainers.BpeTrainer(vocab_size=200),
  )
  learnt = json.loads(trained.to_str())['model']
  merges = [tuple(merge) for merge in learnt['merges']]
  tokens = dict.fromkeys([*special, *_BYTES, *learnt['vocab'], '▁'])
  backend = tokenizers.Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(tokens)},
      merges,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  steps: list = [normalizers.Replace(' ', '▁')]
  # Llama 2's: it is this that made added tokens get lost (tokenizers#1374).
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), *steps] if prepend else steps
  )
  ends: list = [decoders.Strip(' ', 1, 0)] if prepend else []
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *ends,
    ]
  )
  backend.post_processor = processors.TemplateProcessing(
    single=f'{special[-2]} $A',
    special_tokens=[(special[-2], backend.token_to_id(special[-2]))],
  )
  backend.add_special_tokens(special)
  return backend


def _padded(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """With a token for padding after all others."""
  backend.add_special_tokens(['<pad>'])
  return backend


@dataclasses.dataclass(frozen=True)
class Family:
  """A model and a tokenizer.

  Attributes:
    backend: makes the tokenizer.
    config: of the tokenizer.
    spare: rows that pad the embedding matrix; -1 for a last token without
      one.
    model: settings of `tiny_models.save`.
  """

  backend: object
  config: dict
  spare: int
  model: dict


FAMILIES = {
  'llama2': Family(
    lambda: _spm(['<unk>', '<s>', '</s>'], prepend=True),
    {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'},
    0,
    {'model_type': 'llama'},
  ),
  # Its tokenizer has one token more than the matrix has rows.
  'llama2_pad': Family(
    lambda: _padded(_spm(['<unk>', '<s>', '</s>'], prepend=True)),
    {
      'bos_token': '<s>',
      'eos_token': '</s>',
      'unk_token': '<unk>',
      'pad_token': '<pad>',
    },
    -1,
    {'model_type': 'llama'},
  ),
  'mistral': Family(
    lambda: _spm(['<unk>', '<s>', '</s>'], prepend=True),
    {
      'bos_token': '<s>',
      'eos_token': '</s>',
      'unk_token': '<unk>',
      'tokenizer_class': 'LlamaTokenizer',
      'legacy': True,
    },
    0,
    {'model_type': 'mistral', 'sliding_window': None},
  ),
  'llama3': Family(
    _llama3,
    {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'},
    0,
    {'model_type': 'llama', 'tie_word_embeddings': True},
  ),
  # One file of weights, to which the head is added.
  'llama3_whole': Family(
    _llama3,
    {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'},
    0,
    {
      'model_type': 'llama',
      'tie_word_embeddings': True,
      'max_shard_size': '1GB',
    },
  ),
  'qwen': Family(
    _qwen,
    {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'},
    37,
    {'model_type': 'qwen2', 'tie_word_embeddings': True},
  ),
  'qwen_untied': Family(
    _qwen,
    {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'},
    2,  # Fewer than virtual tokens.
    {'model_type': 'qwen2'},
  ),
  'gemma': Family(
    lambda: _spm(
      ['<pad>', '<unk>', *(f'<unused{i}>' for i in range(8)), '<bos>', '<eos>'],
      prepend=False,
    ),
    {
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'pad_token': '<pad>',
      'unk_token': '<unk>',
    },
    0,
    {'model_type': 'gemma2', **tiny_models.GEMMA},
  ),
}


def save(
  directory: pathlib.Path, name: str, *, ascii_only: bool = False, **changes
) -> None:
  """Writes a model of a family, with changes, in Hugging Face format.

  With `ascii_only` it says no token of other characters or of parts of them:
  its answers are the same text whatever a program makes of broken UTF-8.
  """
  family = FAMILIES[name]
  backend = family.backend()
  vocab = backend.get_vocab(with_added_tokens=True)
  eos = vocab[family.config['eos_token']]
  bos = vocab.get(family.config.get('bos_token', ''))
  first = max(vocab.values()) + 1
  rows = first + family.spare
  special = backend.get_added_tokens_decoder().keys() - {bos, eos}
  special = {i for i in special if i < rows}
  if ascii_only:
    special |= {
      i for i in {*vocab.values()} - {bos, eos} if not _is_ascii(backend, i)
    }
  tiny_models.save(
    directory,
    quiet=[*sorted(special), *range(first, rows)],
    **{
      'vocab_size': rows,
      'num_hidden_layers': 2,
      'max_shard_size': '60KB',
      'bos_token_id': bos,
      'eos_token_id': eos,
      **family.model,
      **changes,
    },
  )
  for file in directory.glob('*token*'):
    file.unlink()
  (directory / 'chat_template.jinja').unlink(missing_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  values = {'tokenizer_class': 'PreTrainedTokenizerFast', **family.config}
  values['added_tokens_decoder'] = {
    str(i): {
      'content': token.content,
      'lstrip': False,
      'normalized': token.normalized,
      'rstrip': False,
      'single_word': False,
      'special': token.special,
    }
    for i, token in backend.get_added_tokens_decoder().items()
  }
  (directory / 'tokenizer_config.json').write_text(json.dumps(values))


def say_line_breaks(directory: pathlib.Path, more: float) -> None:
  """Raises the logits of tokens with a line break, of a tied model of `save`.

  Answers of a random model have hardly any.

  Args:
    directory: of the model.
    more: added to the first dimension of their rows; see `tiny_models.LEVEL`.
  """
  backend = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  ids = [
    i
    for i in backend.get_vocab().values()
    if '\n' in backend.decode([i], skip_special_tokens=False)
  ]
  name = 'model.embed_tokens.weight'
  for file in directory.glob('*.safetensors'):
    tensors = safetensors.torch.load_file(file)
    if name in tensors:
      tensors[name][ids, 0] += more
      safetensors.torch.save_file(tensors, file, {'format': 'pt'})


def _is_ascii(backend: tokenizers.Tokenizer, i: int) -> bool:
  text = backend.decode([i], skip_special_tokens=False)
  return text.isascii() and (text.isprintable() or text.isspace())


def add_chat_template(directory: pathlib.Path, *, parts: bool = False) -> None:
  """Qwen's form of a chat, for a model of `save`.

  With `parts` it also takes content that is a list of parts, as Gemma 3's does,
  says the date, as Llama 3's, and can do without thinking, as Qwen 3's.
  """
  file = directory / 'tokenizer_config.json'
  values = json.loads(file.read_text())
  before, content, after = '', "{{ m['content'] }}", ''
  if parts:
    before = (
      '{% if not date_string is defined %}{% set date_string = '
      "strftime_now('%d %b %Y') %}{% endif %}"
      '<|im_start|>system\n{{ date_string }}<|im_end|>\n'
    )
    content = (
      "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
      "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    )
    after = (
      '{% if enable_thinking is defined and enable_thinking is false %}'
      'The answer: 1{% endif %}'
    )
  values['chat_template'] = (
    before
    + "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + content
    + '<|im_end|>\n{% endfor %}<|im_start|>assistant\n'
    + after
  )
  file.write_text(json.dumps(values))
