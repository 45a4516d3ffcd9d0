"""Keys and values of virtual tokens in the cache of a transformers model.

A prompt runs up to its virtual tokens, with an ordinary token in the place of
each. Then trained keys and values replace the keys and values of these places.
The keys are rotated as the model has just rotated its own. Needs no JAX.
"""

import dataclasses
import inspect
import numbers
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.host import errors
from vtokens.serving import artifact
from vtokens.serving.artifact import Artifact, Meta

if TYPE_CHECKING:
  import torch
  from transformers import PreTrainedModel

# Model types whose keys are known to be rotated as in training.
MODEL_TYPES = (
  *('llama', 'mistral', 'ministral', 'qwen2', 'qwen3', 'phi3'),
  *('gemma', 'gemma2', 'gemma3_text', 'smollm3', 'olmo2', 'olmo3'),
)
# Rotary scaling by the length of the sequence.
_BY_LENGTH = ('dynamic', 'longrope')


@dataclasses.dataclass(frozen=True)
class Pieces:
  """The ids of a prompt.

  Attributes:
    before: ids before the virtual tokens.
    k: number of virtual tokens.
    after: ids after the virtual tokens.
  """

  before: tuple[int, ...]
  k: int
  after: tuple[int, ...]

  @property
  def filled(self) -> list[int]:
    """The prompt with an ordinary id in the place of each virtual token.

    It is an id of the prompt, so that a penalty on the prompt's ids spares all
    others.
    """
    filler = (*self.before, *self.after)[0]
    return [*self.before, *[filler] * self.k, *self.after]


def split(ids: Sequence[int], meta: Meta) -> Pieces:
  """Splits the ids of `plug.prompt_ids` at the virtual tokens.

  Args:
    ids: ids of a prompt.
    meta: metadata of the virtual tokens.

  Raises:
    errors.UserError: they are no such ids.
  """
  if (
    isinstance(ids, str)
    or getattr(ids, 'ndim', 1) != 1
    or not all(isinstance(i, numbers.Integral) for i in ids)
  ):
    raise errors.UserError(
      'ids: expected the ids of one prompt, as plug.prompt_ids gives them'
    )
  whole = [int(i) for i in ids]
  known = meta.tokens.ids
  virtual = [at for at, i in enumerate(whole) if i in set(known)]
  k = len(virtual)
  start = virtual[0] if virtual else len(whole)
  before, after = whole[:start], whole[start + k :]
  wrong = [i for i in (*before, *after) if not 0 <= i < meta.base.vocab_size]
  if whole[start : start + k] != list(known[:k]) or k > meta.num_trained:
    raise errors.UserError(
      f'ids: expected the first k of the {meta.num_trained} virtual tokens, '
      f'one after the other, as plug.prompt_ids gives them, got '
      f'{[whole[at] for at in virtual][:8]} at {virtual[:8]}'
    )
  if wrong or not (before or after):
    raise errors.UserError(
      f'ids: expected ids of {meta.base.id}, below {meta.base.vocab_size}, got '
      f'{wrong[:8]}'
    )
  if k and not after:
    raise errors.UserError(
      "ids: the virtual tokens end the prompt (virtual_tokens.position='last' "
      'without a chat), so that no token of it sees their keys and values; '
      'train with another position'
    )
  return Pieces(tuple(before), k, tuple(after))


def generate(
  model: 'PreTrainedModel', ids: Sequence[int], table: Artifact, **settings: Any
) -> Any:
  """Calls `model.generate` with keys and values of virtual tokens.

  The model is not changed. One prompt at a time; `num_return_sequences` and
  `num_beams` may be more than 1.

  Args:
    model: the base, in PyTorch.
    ids: ids of `plug.prompt_ids`. With k = 0 the model answers as without
      virtual tokens.
    table: virtual tokens with keys and values, as `--to vtokens` writes them.
    **settings: arguments of `model.generate`, such as max_new_tokens.

  Returns:
    What `model.generate` returns. Sequences begin with as many ids as `ids`
    has; the ids of virtual tokens are replaced by an ordinary one.

  Raises:
    errors.UserError: see `generate_inputs`; or the answer may reach the length
      from which the model's rotary embedding is scaled, or transformers has not
      used the cache.
  """
  from_config: Any = settings.get('generation_config', model.generation_config)

  def setting(name: str) -> int:
    found = settings.get(name, getattr(from_config, name, None))
    return int(found or 0)

  inputs = generate_inputs(
    model, ids, table, max_new_tokens=setting('max_new_tokens')
  )
  copies = max(setting('num_beams'), setting('num_return_sequences'), 1)
  cache: Any = inputs.get(_cache_name(model))
  if copies > 1 and cache is not None:
    cache.batch_repeat_interleave(copies)
  run: Any = model.generate
  out = run(**inputs, **settings)
  # Older versions (5.3) drop a cache of Phi-3 without a word.
  if (
    cache is not None and cache.get_seq_length() < inputs['input_ids'].shape[1]
  ):
    raise errors.UserError(
      f'{type(model).__name__}.generate has not used the cache that it was '
      'given, so that its answer is one without virtual tokens; pip install '
      "--upgrade 'transformers<6' (tested with 5.24)"
    )
  return out


def generate_inputs(
  model: 'PreTrainedModel',
  ids: Sequence[int],
  table: Artifact,
  *,
  max_new_tokens: int = 0,
) -> dict[str, Any]:
  """Runs a prompt up to the question, with keys and values of virtual tokens.

  For programs that call `model.generate` or the model themselves; others use
  `generate`. The cache is used up by one call. The model itself takes the ids
  that the cache lacks, `input_ids[:, cache.get_seq_length():]`.

  Args:
    model: the base, in PyTorch.
    ids: ids of `plug.prompt_ids`.
    table: virtual tokens with keys and values.
    max_new_tokens: longest answer, to check the length where it matters.

  Returns:
    Arguments of `model.generate`: `input_ids` and `attention_mask`, tensors of
    shape [1, T], int64; and unless k is 0 the cache, as `past_key_values` or,
    in later versions of transformers, `cache`.

  Raises:
    errors.UserError: the virtual tokens are a table, they were trained on
      another base than the model, the ids are not of such a prompt, or the
      model has other layers, dtypes or rotary embeddings than this can serve.
  """
  import torch

  meta = table.meta
  artifact.check_kind(meta, 'kv', 'keys and values are needed')
  pieces = split(ids, meta)
  _check_model(model, meta)
  length = len(pieces.before) + pieces.k
  device: Any = model.device
  whole = torch.tensor(
    [pieces.filled], device='cpu' if device.type == 'meta' else device
  )
  inputs = {'input_ids': whole, 'attention_mask': torch.ones_like(whole)}
  if pieces.k:
    _check_scaling(model, meta, length, len(pieces.filled) + max_new_tokens)
    inputs[_cache_name(model)] = _cache(
      model, whole[:, :length], table, pieces.k
    )
  return inputs


def _config(model: Any) -> Any:
  return model.config.get_text_config(decoder=True)


def _cache_name(model: Any) -> str:
  """The name of the argument, which transformers 5.24 has changed."""
  parameters = inspect.signature(model.forward).parameters
  return 'cache' if 'cache' in parameters else 'past_key_values'


def _check_model(model: Any, meta: Meta) -> None:
  config = _config(model)
  if config.model_type not in MODEL_TYPES:
    raise errors.UserError(
      f'keys and values are not served for models of type '
      f'{config.model_type!r}; expected one of {", ".join(MODEL_TYPES)}'
    )
  heads = getattr(config, 'num_key_value_heads', config.num_attention_heads)
  width = getattr(config, 'head_dim', None) or (
    config.hidden_size // config.num_attention_heads
  )
  layers, _, *rest = meta.shape
  found = (
    model.get_input_embeddings().weight.shape[0],
    config.num_hidden_layers,
    heads,
    width,
  )
  expected = (meta.base.vocab_size, layers, *rest)
  if found != expected:
    names = ('tokens', 'layers', 'key-value heads', 'values a head')
    raise errors.UserError(
      'the model has '
      + ', '.join(f'{n} {what}' for n, what in zip(found, names, strict=True))
      + f', but the virtual tokens were trained on {meta.base.id}, which has '
      + ', '.join(map(str, expected))
    )


def _check_scaling(model: Any, meta: Meta, cached: int, length: int) -> None:
  """Raises if transformers scales rotary embeddings otherwise than training.

  Some types have one form up to a length and another beyond it. Training has
  the form of its longest sequence at every length, transformers the form of the
  length at hand.

  Args:
    model: the model.
    meta: metadata of the virtual tokens.
    cached: length of the prompt up to its question.
    length: length of the prompt and the longest answer.
  """
  config = _config(model)
  given = getattr(config, 'rope_parameters', None) or {}
  several = [one for one in given.values() if isinstance(one, dict)]
  for rope in several or [given]:
    kind = rope.get('rope_type', 'default')
    if kind not in _BY_LENGTH:
      continue
    switch = (
      rope.get('original_max_position_embeddings')
      or getattr(config, 'original_max_position_embeddings', None)
      or config.max_position_embeddings
    )
    prompt, run = meta.prompt, meta.training.get('config', {})
    longest = (
      prompt.max_prefix_tokens
      + prompt.max_suffix_tokens
      + run.get('eval', {}).get('max_new_tokens', 0)
    )
    short = longest <= switch and length <= switch
    # The length of a dynamic type is that of the whole sequence: no two agree.
    long = kind == 'longrope' and longest > switch and cached > switch
    if not (short or long):
      raise errors.UserError(
        f'the rotary embedding of {meta.base.id} ({kind}) changes at '
        f'{switch:,} tokens. In training sequences had up to {longest:,}, here '
        f'the prompt has {cached:,} up to its question and {length:,} with '
        'question and answer, so that transformers rotates keys otherwise; use '
        'vtokens ask or vtokens evaluate, or train with '
        f'config.data.max_prefix_tokens such that all fit {switch:,}'
      )


def _cache(model: Any, ids: 'torch.Tensor', table: Artifact, k: int) -> Any:
  """The cache of ids of which the last k stand for virtual tokens."""
  import torch
  import transformers

  rotations: dict[int, tuple[Any, Any]] = {}
  thread = threading.get_ident()

  def note(module: Any, args: Any, kwargs: Any) -> None:
    # Another thread may run the model, too.
    if threading.get_ident() != thread:
      return
    found = kwargs.get('position_embeddings')
    if found is not None:
      rotations[module.layer_idx] = found

  attentions = [layer.self_attn for layer in model.get_decoder().layers]
  cache: Any = transformers.DynamicCache(config=_config(model))
  hooks = [
    one.register_forward_pre_hook(note, with_kwargs=True) for one in attentions
  ]
  try:
    with torch.no_grad():
      model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        use_cache=True,
        logits_to_keep=1,
        **{_cache_name(model): cache},
      )
  finally:
    for hook in hooks:
      hook.remove()
  for attention in attentions:
    at = attention.layer_idx
    if at not in rotations:
      raise errors.UserError(
        f'layer {at} of {type(model).__name__} was given no rotary embedding '
        'as other versions of transformers give it (position_embeddings); '
        f'transformers {transformers.__version__} cannot serve keys and values'
      )
    _replace(cache.layers[at], attention, rotations[at], table, k)
  return cache


def _replace(
  layer: Any, attention: Any, rotation: tuple[Any, Any], table: Artifact, k: int
) -> None:
  """Puts trained keys and values into the last k places of a layer's cache.

  Args:
    layer: the layer's cache. With a window it has only the last places.
    attention: the layer's attention.
    rotation: cosines and sines, each of shape [1, T, R].
    table: the virtual tokens.
    k: number of virtual tokens.
  """
  import torch

  dtype = layer.keys.dtype
  if dtype not in (torch.float32, torch.bfloat16, torch.float16):
    raise errors.UserError(
      f'the model keeps keys and values as {dtype}; expected float32, bfloat16 '
      'or float16'
    )
  keys, values = (
    torch.from_numpy(table.values[name][attention.layer_idx, :k].copy())
    .transpose(0, 1)[None]
    .to(layer.keys.device)
    for name in ('keys', 'values')
  )
  # Layers without a rotary embedding are given one and do not use it.
  if getattr(attention, 'use_rope', True):
    cos, sin = (x[:, -k:].to(keys.device, torch.float32) for x in rotation)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    _, keys = rotate(keys, keys, cos, sin)
  count = min(k, layer.keys.shape[2])
  kept = layer.keys.shape[2] - count
  new = []
  for name, trained in (('keys', keys), ('values', values)):
    found = trained[:, :, k - count :].to(dtype)
    if not torch.isfinite(found).all():
      raise errors.UserError(
        f'{name} of virtual tokens are too large for {dtype}, in which the '
        'model keeps them; load it in bfloat16 or float32'
      )
    new.append(torch.cat([getattr(layer, name)[:, :, :kept], found], dim=2))
  layer.keys, layer.values = new
