"""Tiny random Llama models in Hugging Face format, made with transformers."""

import pathlib

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

VOCAB_SIZE = 320
CHAT_TEMPLATE = (
  "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + "
  "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|start|>assistant\n' }}{% endif %}"
)


def save_tokenizer(directory: pathlib.Path) -> None:
  """A byte-level tokenizer: 256 bytes, then <|start|>, <|end|>, <|eos|>."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(
    [
      AddedToken(t, special=True, normalized=False)
      for t in ('<|start|>', '<|end|>', '<|eos|>')
    ]
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token='<|eos|>',
    chat_template=CHAT_TEMPLATE,
  ).save_pretrained(directory)


def save(
  directory: pathlib.Path,
  *,
  seed: int = 0,
  scale: float = 0.2,
  max_shard_size: str = '1GB',
  dtype: torch.dtype = torch.float32,
  **overrides,
) -> transformers.LlamaForCausalLM:
  """Saves a model and its tokenizer; returns the torch model (f32, eval).

  Weights have standard deviation `scale`: with transformers' own 0.02 the
  logits of a model this small hardly depend on its input.
  """
  settings = {
    'vocab_size': VOCAB_SIZE,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 512,
    'rms_norm_eps': 1e-5,
    'rope_theta': 10_000.0,
    'tie_word_embeddings': False,
    'initializer_range': scale,
    'bos_token_id': None,
    'eos_token_id': 258,
    **overrides,
  }
  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
  for name, weight in model.named_parameters():
    if 'norm' in name:
      torch.nn.init.normal_(weight, 1.0, 0.1)
  model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
  save_tokenizer(directory)
  return model.to(torch.float32).eval()
