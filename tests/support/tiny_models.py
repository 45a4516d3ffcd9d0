"""Tiny random models in Hugging Face format, made with transformers."""

import pathlib
from collections.abc import Sequence

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

# transformers has this decoder for images and texts alone.
transformers.AutoModelForCausalLM.register(
  transformers.Mistral4Config, transformers.Mistral4ForCausalLM, exist_ok=True
)

FULL, SLIDING = 'full_attention', 'sliding_attention'
# What tiny models of the Gemma families share.
GEMMA = {
  'head_dim': 24,
  'tie_word_embeddings': True,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  # 6 heads have to divide it in transformers, though head_dim says otherwise.
  'hidden_size': 60,
}


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


# Ends of names of matrices whose products are added to the residual stream, and
# of the norms of what the head reads.
_OUTPUTS = (
  *('o_proj.weight', 'o_proj.bias', 'down_proj.weight', 'down_proj.bias'),
  'out_proj.weight',
  *('conv.out_proj.bias', 'feed_forward.w2.weight'),
  *('dense.weight', 'dense.bias', '4h_to_h.weight', '4h_to_h.bias'),
  'per_layer_projection.weight',
  # Of Gemma 3n; the last ones add its other streams to the first one.
  'laurel.linear_right.weight',
  *(f'altup_unembed_projections.{i}.weight' for i in range(3)),
)
_FINAL_NORMS = (
  *('model.norm.weight', 'ln_f.weight', 'final_layer_norm.weight'),
  *('model.embedding_norm.weight', 'model.norm_f.weight'),
)
_FINAL_BIASES = ('ln_f.bias', 'final_layer_norm.bias')
# What the first dimension of all embeddings is where tokens are quiet.
LEVEL = 0.5


@torch.no_grad()
def silence(model: transformers.PreTrainedModel, ids: Sequence[int]) -> None:
  """Gives the first dimension to the logits of these ids, at every position."""
  embedding = model.get_input_embeddings().weight
  head = model.get_output_embeddings().weight
  if head is not embedding:
    head[:, 0] = 0
  embedding[:, 0] = LEVEL
  # No layer changes it, and the final norm keeps its sign.
  for name, weight in model.named_parameters():
    if name.endswith(_OUTPUTS):
      weight[0] = 0
    elif name.endswith('experts.down_proj'):
      # [experts, outputs, inputs], in gpt-oss [experts, inputs, outputs].
      last = model.config.model_type == 'gpt_oss'
      weight[(..., 0) if last else (slice(None), 0)] = 0
    elif name.endswith('experts.down_proj_bias'):
      weight[:, 0] = 0
    elif name.endswith('altup.prediction_coefs.weight'):
      # Other streams change the first one nowhere; it has to be the active one.
      weight[: len(weight[0])] = 0
    elif name.endswith('altup.correction_coefs.weight'):
      weight[0] = 0
    elif name.endswith(_FINAL_NORMS):
      weight[0] = 1
    elif name.endswith(_FINAL_BIASES):
      weight[0] = 3  # More than the mean that this norm subtracts.
  head[list(ids)] = 0
  head[list(ids), 0] = -60


def save(
  directory: pathlib.Path,
  *,
  seed: int = 0,
  scale: float = 0.2,
  max_shard_size: str = '1GB',
  dtype: torch.dtype = torch.float32,
  model_type: str = 'llama',
  quiet: Sequence[int] = (),
  **overrides,
) -> transformers.PreTrainedModel:
  """Saves a model and its tokenizer; returns the torch model (f32, eval).

  Weights have standard deviation `scale`: with transformers' own 0.02 the
  logits of a model this small hardly depend on its input. Norms, biases and
  what activations have are random as well: at their initial 1 and 0 a wrong
  one would not show.

  Tokens `quiet` are never said, like those of a trained model that no text of
  its training had.
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
    'tie_word_embeddings': False,
    'initializer_range': scale,
    'pad_token_id': None,
    'bos_token_id': None,
    'eos_token_id': 258,
    **overrides,
  }
  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(model_type, **settings)
  # Plain attention: its fast forms have other numbers, or no soft caps.
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager'
  )
  for name, weight in model.named_parameters():
    if 'norm' in name or name.endswith('.D'):
      # These families' norms add 1 to what is stored.
      offset = model_type in ('gemma', 'gemma2', 'gemma3_text')
      offset |= model_type.startswith(('qwen3_5', 'qwen3_next'))
      mean = 0.0 if offset and 'linear_attn' not in name else 1.0
      torch.nn.init.normal_(weight, mean, 0.1)
    elif name.endswith(
      ('router.scale', 'per_expert_scale', 'correct_output_scale')
    ):
      torch.nn.init.normal_(weight, 1.0, 0.3)
    elif name.endswith('bias') or '.act_fn.' in name:
      torch.nn.init.normal_(weight, 0.0, scale)
  for name, value in model.named_buffers():
    if name.endswith('e_score_correction_bias'):
      torch.nn.init.normal_(value, 0.0, scale)
    elif name.endswith('layer_scalar'):
      torch.nn.init.normal_(value, 1.0, 0.3)
  if len(quiet):
    silence(model, quiet)
  model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
  save_tokenizer(directory)
  return model.to(torch.float32).eval()
