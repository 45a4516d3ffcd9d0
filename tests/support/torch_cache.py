"""Trained keys and values in the cache of transformers' own Llama."""

from collections.abc import Mapping

import torch
import transformers
from transformers.models.llama import modeling_llama

from vtokens.data.assemble import Example


def target_logits(
  model: transformers.LlamaForCausalLM,
  trained: Mapping[str, torch.Tensor],
  example: Example,
) -> torch.Tensor:
  """Logits that predict an example's targets, array of shape [A, V].

  Args:
    model: the base.
    trained: keys before rotation, and values, each of shape [L, P, K, H]; the
      first `example.num_active` of each layer are used.
    example: has its virtual tokens right after the prefix.
  """
  cache = transformers.DynamicCache()
  start, k = len(example.prefix), example.num_active
  if start:
    with torch.no_grad():
      model(torch.tensor(example.prefix)[None], past_key_values=cache)
  keys, values = trained['keys'][:, :k], trained['values'][:, :k]
  cos, sin = model.model.rotary_emb(keys, torch.arange(start, start + k)[None])
  for i in range(len(keys)):
    plain = keys[i].transpose(0, 1)[None]
    _, turned = modeling_llama.apply_rotary_pos_emb(plain, plain, cos, sin)
    cache.update(turned, values[i].transpose(0, 1)[None], i)
  suffix = torch.tensor([*example.after, *example.targets[:-1]])
  positions = torch.arange(start + k, start + k + len(suffix))
  logits = model(
    suffix[None], past_key_values=cache, position_ids=positions[None]
  ).logits[0]
  return logits[-len(example.targets) :]
