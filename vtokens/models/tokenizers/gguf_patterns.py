"""How byte-level BPE of GGUF files splits a text before merging.

llama.cpp defines the names and the patterns (src/llama-vocab.cpp).
"""

from typing import NamedTuple

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r'|\s+(?!\S)|\s+'
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_QWEN2 = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_QWEN35 = _QWEN2.replace(r'?\p{L}+', r'?[\p{L}\p{M}]+').replace(
  r' ?[^\s\p{L}\p{N}]', r' ?[^\s\p{L}\p{M}\p{N}]'
)
_SEED = _QWEN2.replace(r' ?[^\s\p{L}\p{N}]+[\r\n]*', r' ?[^\s\p{L}\p{N}\r\n]+')
# Punctuation and letters, punctuation, spaces.
_DEEPSEEK = (
  r'[!"#$%&\'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+'
  r'|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*'
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Letters with a case in an older Unicode, as DeepSeek's first tokenizers list
# them.
_CASED = (
  'A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293'
  '\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386'
  '\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f'
  '\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba'
  '\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15'
  '\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d'
  '\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc'
  '\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102'
  '\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d'
  '\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184'
  '\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d'
  '\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf'
  '\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f'
  '\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2'
  '\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943'
)
# Chinese characters, as llama.cpp lists them.
_HAN = (
  '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df'
  '\U0002a700-\U0002ebef\U0002f800-\U0002fa1f'
)
_CONTRACTION = r"(?:'(?:[sStTmMdD]|[rRvV][eE]|[lL][lL]))?"
# Chinese characters apart from other letters, of any case.
_KIMI = (
  rf'[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_HAN}])\p{{L}})+{_CONTRACTION}'
  r'|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Korean, Chinese punctuation, Bopomofo, Chinese and Japanese.
_YOUTU_SCRIPTS = (
  '[\uac00-\ud7a3\u3131-\u318e]+'
  '|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f'
  '\ufe30-\ufe4f]+'
  '|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+'
)
# llama.cpp takes letters of all categories for one.
_YOUTU = (
  rf'[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_FALCON = _GPT2.replace(r'|\s+(?!\S)|\s+', r'|\s+(?!\S)')


def _cased(ending: str, digits: str) -> str:
  """A pattern that splits words where capitals follow small letters.

  llama.cpp takes letters beyond ASCII for both. The pattern of the models
  themselves knows their case.

  Args:
    ending: pattern of what may follow a word.
    digits: pattern of numbers.
  """
  start = r'[^\r\n\p{L}\p{N}]?'
  capital, small = r'(?:(?=\p{L})[^a-z])', r'(?:(?=\p{L})[^A-Z])'
  return (
    f'{start}{capital}*{small}+{ending}|{start}{capital}+{small}*{ending}'
    rf'|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )


class PreTokenizer(NamedTuple):
  """How byte-level BPE splits a text before merging.

  Attributes:
    splits: patterns, applied in turn. Matches become pieces, and so does the
      text between matches.
    ignore_merges: whether a piece that is a token is taken whole.
    add_bos: whether bos precedes a text if the file does not say.
  """

  splits: tuple[str, ...]
  ignore_merges: bool = False
  add_bos: bool = False


# Keys: names of `tokenizer.ggml.pre`. Each is tested against llama.cpp, whose
# ids they give, even where the model's own tokenizer gives others.
PRE_TOKENIZERS = {
  ('gpt-2', 'phi-2', 'olmo', 'mpt', 'exaone4', 'granite-docling'): PreTokenizer(
    (_GPT2,)
  ),
  (
    'smollm',
    'starcoder',
    'refact',
    'command-r',
    'codeshell',
    'exaone',
    'minerva-7b',
  ): PreTokenizer((r'\p{N}', _GPT2)),
  (
    'llama-bpe',
    'llama3',
    'llama-v3',
    'falcon3',
    'falcon-h1',
    'pixtral',
    'midm-2.0',
    'lfm2',
  ): PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
  ('dbrx', 'smaug-bpe', 'glm4', 'chatglm-bpe'): PreTokenizer((_LLAMA3,)),
  (
    'qwen2',
    'deepseek-r1-qwen',
    'stablelm2',
    'megrez',
    'hunyuan',
  ): PreTokenizer((_QWEN2,)),
  ('qwen35',): PreTokenizer((_QWEN35,)),
  ('seed-coder',): PreTokenizer((_SEED,)),
  # Mistral Nemo, Small 3, Ministral 3.
  ('tekken',): PreTokenizer(
    (_cased('', r'\p{N}'),), ignore_merges=True, add_bos=True
  ),
  # Phi-4 mini.
  ('gpt-4o', 'llama4', 'kanana2', 'minimax-m2'): PreTokenizer(
    (_cased(_CONTRACTION, r'\p{N}{1,3}'),)
  ),
  ('hunyuan-dense', 'deepseek-v3'): PreTokenizer(
    (r'\p{N}{1,3}', '[一-龥぀-ゟ゠-ヿ]+', _DEEPSEEK)
  ),
  # DeepSeek-V2. llama.cpp finds spaces beyond ASCII by \s alone, in no range of
  # characters.
  ('deepseek-llm',): PreTokenizer(
    (
      r'[\r\n]',
      rf'\s?[{_CASED}]+',
      '\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+',
      r'\s+$',
      '(?:(?!\\s)[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff])+',
      r'\p{N}+',
    )
  ),
  ('kimi-k2',): PreTokenizer((_KIMI,)),
  ('youtu',): PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
  ('falcon',): PreTokenizer(
    (r'[\p{P}\$\+<=>\^~\|`]+', _FALCON, '[0-9][0-9][0-9]')
  ),
  # llama.cpp's choice for files whose converter knew no name.
  ('default',): PreTokenizer(
    (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', '[0-9][0-9][0-9]')
  ),
}
BY_NAME = {name: pre for names, pre in PRE_TOKENIZERS.items() for name in names}
