"""Quantisation in numpy, written anew, for PyTorch's models."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

_MATRIX = re.compile(
  r'layers\.\d+\.\w+\.(?:shared_experts\.)?(\w+)_proj(?:_with_mqa)?\.weight$'
)


def quantise(
  weight: np.ndarray, method: str, head_dim: int
) -> tuple[np.ndarray, np.ndarray]:
  """Values, int64, and the scale of each, f32, of rows of outputs.

  Those of int4 are bfloat16's.

  Args:
    weight: `[out, in]`.
    method: int8 or int4.
    head_dim: of which the groups are parts; of matrices without heads, in.
  """
  largest, group = 127, weight.shape[1]
  if method == 'int4':
    largest = 7
    group = max(g for g in range(1, 65) if head_dim % g == 0)
  scales = np.empty(weight.shape, np.float32)
  for start in range(0, weight.shape[1], group):
    part = weight[:, start : start + group]
    scales[:, start : start + group] = np.abs(part).max(
      axis=1, keepdims=True
    ) / np.float32(largest)
  if method == 'int4':
    scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
  return np.rint(weight / scales).astype(np.int64), scales


@torch.no_grad()
def quantise_model(model: transformers.PreTrainedModel, method: str) -> None:
  """Gives the matrices of the layers the values that quantised ones have."""
  config = model.config
  heads = config.num_attention_heads
  head_dim = (
    getattr(config, 'v_head_dim', None)
    or getattr(config, 'head_dim', None)
    or config.hidden_size // heads
  )
  count = 0
  for name, weight in model.named_parameters():
    found = _MATRIX.search(name)
    if name.endswith(('experts.gate_up_proj', 'experts.down_proj')):
      for matrix in weight:
        values, scales = quantise(matrix.numpy(), method, matrix.shape[1])
        matrix.copy_(torch.from_numpy(values.astype(np.float32) * scales))
      continue
    # Latent attention keeps the matrix of keys and values as it is.
    if not found or found[1] == 'kv_b':
      continue
    rows = head_dim if found[1] == 'o' else weight.shape[1]
    values, scales = quantise(weight.numpy(), method, rows)
    weight.copy_(torch.from_numpy(values.astype(np.float32) * scales))
    count += 1
  assert count >= 4 * config.num_hidden_layers


class _RoundedProduct(torch.autograd.Function):
  """`x @ weight.T` of factors that are rounded to bfloat16."""

  @staticmethod
  def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ctx.save_for_backward(weight)
    return _rounded(x) @ _rounded(weight).T

  @staticmethod
  def backward(ctx: Any, grad: torch.Tensor) -> Any:
    (weight,) = ctx.saved_tensors
    return _rounded(grad) @ _rounded(weight), None


def _rounded(x: torch.Tensor) -> torch.Tensor:
  # float64 is rounded to float32 first, which the tested program computes in.
  return x.float().bfloat16().to(x.dtype)


class _RoundedLinear(torch.nn.Module):
  """A linear layer whose product rounds its factors to bfloat16."""

  def __init__(self, linear: torch.nn.Linear):
    super().__init__()
    self.weight, self.bias = linear.weight, linear.bias

  def forward(self, x: torch.Tensor) -> Any:
    y: Any = _RoundedProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
    return y if self.bias is None else y + self.bias


def round_products(model: transformers.PreTrainedModel) -> None:
  """Rounds the factors of the layers' products to bfloat16, also backwards."""
  found = [
    (parent, name, linear)
    for parent in model.model.layers.modules()
    for name, linear in parent.named_children()
    if isinstance(linear, torch.nn.Linear)
  ]
  assert len(found) >= 4 * model.config.num_hidden_layers
  for parent, name, linear in found:
    setattr(parent, name, _RoundedLinear(linear))
