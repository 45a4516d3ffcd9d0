"""Shape and constants of a decoder."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeGuard

if TYPE_CHECKING:
  import flax.nnx as nnx
  import jax.numpy as jnp


# Metadata of a field that `identity` omits while the field has its default.
# Every new field needs it; otherwise the fingerprints of all bases change.
_LATER = {'later': True}


class Settings:
  """A dataclass whose `repr` omits fields that have their default.

  Fingerprints of bases contain the `repr`: a field that is added later leaves
  those of existing bases as they are.
  """

  def __repr__(self) -> str:
    fields = [
      f'{field.name}={getattr(self, field.name)!r}'
      for field in dataclasses.fields(self)  # type: ignore[arg-type]
      if getattr(self, field.name) != field.default
    ]
    return f'{type(self).__name__}({", ".join(fields)})'


class BlockPart(Protocol):
  """A token mixer or MLP that replaces the default one, with its own settings.

  It is a frozen dataclass of `Settings`, which distinguish architectures.
  Calling it makes the module of one layer. The module's weights come from
  `layers.param`, and its call has the arguments of `attention.Attention` or
  `layers.GatedMLP`. An attention whose cached keys and values are not
  `head_dim` wide has a property `cache_widths`.
  """

  def __call__(
    self, config: 'DecoderConfig', dtype: 'jnp.dtype', rngs: 'nnx.Rngs'
  ) -> Any:
    """Makes the module, an `nnx.Module`."""


class RecurrentPart(BlockPart, Protocol):
  """A token mixer that keeps a state, alone or beside keys and values.

  One that also has keys and values has an attribute `attends`, which is True.

  Attributes:
    recurrent: True.
  """

  recurrent: ClassVar[bool]

  @property
  def token_flops(self) -> float:
    """FLOPs of a token besides the products with weights."""


@dataclasses.dataclass(frozen=True)
class Without:
  """Stands for the token mixer or the MLP of a layer that has none."""

  def __call__(
    self, config: 'DecoderConfig', dtype: 'jnp.dtype', rngs: 'nnx.Rngs'
  ) -> None:
    """Makes nothing."""


class StreamsPart(Protocol):
  """Several residual streams, of which layers change one."""

  def ends(
    self, config: 'DecoderConfig', dtype: 'jnp.dtype', rngs: 'nnx.Rngs'
  ) -> Any:
    """Makes the module before the first layer and after the last."""

  def block(
    self,
    config: 'DecoderConfig',
    dtype: 'jnp.dtype',
    rngs: 'nnx.Rngs',
    kind: 'LayerKind',
  ) -> Any:
    """Makes one layer, a `Block`."""


@dataclasses.dataclass(frozen=True)
class Rope:
  """A rotary embedding (arXiv 2104.09864) and its scaling.

  Attributes:
    theta: base of the frequencies.
    type: default, linear, dynamic, yarn, llama3, longrope or proportional; see
      `rope.frequencies`. Only the types named read the other fields.
    factor: factor that stretches contexts (linear, dynamic, yarn, llama3,
      proportional).
    original_max_positions: longest sequence before stretching (all but
      default, linear and proportional).
    low_freq_factor: llama3.
    high_freq_factor: llama3.
    beta_fast: yarn.
    beta_slow: yarn.
    truncate: yarn; whether the bounds of its ramp are rounded to integers.
    short_factor: longrope, one per frequency, up to `original_max_positions`.
    long_factor: longrope, one per frequency, beyond that.
    attention_factor: multiplies cosines and sines (yarn, longrope).
    share: proportional; share of the pairs of values that turn, with the
      frequencies that they have in a head that turns as a whole.
  """

  theta: float = 10_000.0
  type: str = 'default'
  factor: float = 1.0
  original_max_positions: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  short_factor: tuple[float, ...] = ()
  long_factor: tuple[float, ...] = ()
  attention_factor: float = 1.0
  share: float = dataclasses.field(default=1.0, metadata=_LATER)


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """Settings that may differ between the layers of one model.

  Attributes:
    rope: rotary embedding; None for a layer without positions (NoPE).
    window: tokens that a query sees, itself included; None for all.
    mlp: makes the layer's MLP; None for the MLP of the config. With `Without`
      the layer has the mixer alone.
    mixer: makes the layer's token mixer; None for the attention of the config.
      With `Without` the layer has the MLP alone.
  """

  rope: Rope | None = Rope()
  window: int | None = None
  mlp: BlockPart | None = dataclasses.field(default=None, metadata=_LATER)
  mixer: BlockPart | None = dataclasses.field(default=None, metadata=_LATER)

  @property
  def source(self) -> int | None:
    """Number of the layer whose keys and values this layer reads, if any."""
    found: int | None = getattr(self.mixer, 'source', None)
    return found

  @property
  def has_cache(self) -> bool:
    """Whether later tokens read something that this layer keeps."""
    return self.source is None and not isinstance(self.mixer, Without)


@dataclasses.dataclass(frozen=True)
class QueryGrowth:
  """A scale of queries that grows with their position (Llama 4, Ministral 3).

  Queries are multiplied by `1 + beta * log(1 + floor(position / length))`.

  Attributes:
    beta: see above.
    length: positions without growth, in tokens.
  """

  beta: float
  length: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture of a decoder.

  Attributes:
    vocab_size: rows of the embedding matrix (V); virtual token i has the id
      `vocab_size + i`.
    embed_dim: width of the residual stream (D).
    num_layers: decoder blocks (L).
    num_heads: query heads (N).
    num_kv_heads: key and value heads (K), a divisor of N.
    head_dim: width of a head (H).
    mlp_dim: width of the gated MLP (F).
    model_type: family, in Hugging Face's words; see `families`.
    norm_eps: added to the mean square in norms.
    max_positions: Hugging Face's max_position_embeddings, in tokens; see
      `longest_sequence`.
    tie_embeddings: whether the head is the embedding matrix.
    layer_pattern: kinds of layers, starting at the first layer and repeated to
      the last.
    rotary_dim: number of leading values of a head that are rotated, even; None
      for all.
    activation: activation of the MLP; see `layers.ACTIVATIONS`.
    qkv_bias: whether the projections to q, k and v have a bias.
    out_bias: whether the output projection of attention has a bias.
    qk_norm: norm of queries and keys: none, head (each head separately, with
      one shared scale), heads (the same with a scale for each head) or
      projection (all heads together).
    pre_norm: whether attention and MLP read a normed residual stream.
    post_norm: whether the outputs of attention and MLP are normed before they
      are added.
    norm_offset: added to the scales of all norms.
    scale_embeddings: whether embeddings are multiplied by sqrt(D).
    query_scalar: attention scores are divided by its square root; None for H.
    attention_softcap: c in `c * tanh(score / c)`; None for no softcap.
    logit_softcap: softcap of the logits; None for no softcap.
    context_length: longest sequence that will be run; None for
      `longest_sequence`. Only rope types dynamic and longrope depend on it.
    kernels: whether attention may use kernels; see `config.Base.attention`.
    scan_layers: whether layers of one shape run under one scan; see
      `layer_runs`.
    attention: makes each block's attention; None for `attention.Attention`.
    mlp: makes each block's MLP; None for `layers.GatedMLP`.
    norm: rms, or layer for a norm that subtracts the mean (arXiv 1607.06450).
    norm_bias: whether the norms of the residual stream have a bias; for
      `norm='layer'`.
    parallel: whether attention and MLP read the same normed residual stream,
      and both outputs are added to it.
    interleaved: whether rotary embeddings turn neighbouring values of a head;
      else values that are half the rotated width apart.
    query_growth: scale of queries that grows with the position; None for none.
    embedding_scale: multiplies embeddings, besides `scale_embeddings`.
    attention_scale: multiplies attention scores; None for `query_scalar`.
    residual_scale: multiplies the outputs of attention and MLP.
    logit_scale: multiplies the logits.
    logit_divisor: divides the logits.
    head_bias: whether the head has a bias.
    norm_scale: whether norms have a scale.
    parallel_norms: with `parallel`, whether the MLP has a norm of its own.
    embedding_norm: whether embeddings are normed before the first layer.
    qk_norm_last: whether queries and keys are normed after their rotation.
    turn_back: whether rotary embeddings turn by negative angles.
    clip_qkv: bound of queries, keys and values; None for none.
    sinks: whether the softmax of each head has one more, learned score, whose
      value is zero (arXiv 2309.17453).
    output_gate: whether the output of each head is multiplied by the sigmoid of
      a projection of the layer's input.
    layer_scale: whether each layer has a scale, which multiplies the residual
      stream after it.
    per_layer_dim: width of the inputs of each layer besides the residual
      stream; see `per_layer`. 0 for none.
    per_layer_rows: tokens that have a row of their own for these inputs; 0 for
      all.
    streams: makes several residual streams; None for one.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  model_type: str = 'llama'
  norm_eps: float = 1e-6
  max_positions: int = 2048
  tie_embeddings: bool = False
  layer_pattern: tuple[LayerKind, ...] = (LayerKind(),)
  rotary_dim: int | None = None
  activation: str = 'silu'
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: str = 'none'
  pre_norm: bool = True
  post_norm: bool = False
  norm_offset: float = 0.0
  scale_embeddings: bool = False
  query_scalar: int | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  context_length: int | None = None
  # These change how a result is computed, not the result, so they do not
  # identify a base.
  kernels: bool = dataclasses.field(default=True, repr=False, compare=False)
  scan_layers: bool = dataclasses.field(default=True, repr=False, compare=False)
  attention: BlockPart | None = dataclasses.field(default=None, metadata=_LATER)
  mlp: BlockPart | None = dataclasses.field(default=None, metadata=_LATER)
  norm: str = dataclasses.field(default='rms', metadata=_LATER)
  norm_bias: bool = dataclasses.field(default=False, metadata=_LATER)
  parallel: bool = dataclasses.field(default=False, metadata=_LATER)
  interleaved: bool = dataclasses.field(default=False, metadata=_LATER)
  query_growth: QueryGrowth | None = dataclasses.field(
    default=None, metadata=_LATER
  )
  embedding_scale: float = dataclasses.field(default=1.0, metadata=_LATER)
  attention_scale: float | None = dataclasses.field(
    default=None, metadata=_LATER
  )
  residual_scale: float = dataclasses.field(default=1.0, metadata=_LATER)
  logit_scale: float = dataclasses.field(default=1.0, metadata=_LATER)
  logit_divisor: float = dataclasses.field(default=1.0, metadata=_LATER)
  head_bias: bool = dataclasses.field(default=False, metadata=_LATER)
  norm_scale: bool = dataclasses.field(default=True, metadata=_LATER)
  parallel_norms: bool = dataclasses.field(default=False, metadata=_LATER)
  embedding_norm: bool = dataclasses.field(default=False, metadata=_LATER)
  qk_norm_last: bool = dataclasses.field(default=False, metadata=_LATER)
  turn_back: bool = dataclasses.field(default=False, metadata=_LATER)
  clip_qkv: float | None = dataclasses.field(default=None, metadata=_LATER)
  sinks: bool = dataclasses.field(default=False, metadata=_LATER)
  output_gate: bool = dataclasses.field(default=False, metadata=_LATER)
  layer_scale: bool = dataclasses.field(default=False, metadata=_LATER)
  per_layer_dim: int = dataclasses.field(default=0, metadata=_LATER)
  per_layer_rows: int = dataclasses.field(default=0, metadata=_LATER)
  streams: StreamsPart | None = dataclasses.field(default=None, metadata=_LATER)

  def __post_init__(self) -> None:
    # ValueError: the caller that reads the file adds its name.
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    rotary_dim = self.head_dim if self.rotary_dim is None else self.rotary_dim
    if rotary_dim % 2 or not 0 < rotary_dim <= self.head_dim:
      raise ValueError(
        f'{rotary_dim} of the {self.head_dim} values of a head would be '
        'rotated: rotary embeddings turn pairs'
      )

  @property
  def is_recurrent(self) -> bool:
    """Whether some layers keep a state; see `RecurrentPart`."""
    return any(is_recurrent(kind.mixer) for kind in self.layer_kinds)

  @property
  def cache_widths(self) -> tuple[int, int]:
    """Widths of a key and of a value in the cache of `attention`."""
    widths = getattr(self.attention, 'cache_widths', None)
    return widths or (self.head_dim, self.head_dim)

  @property
  def layer_kinds(self) -> tuple[LayerKind, ...]:
    """The kind of each layer."""
    pattern = self.layer_pattern
    return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

  def head_width(self, kind: LayerKind) -> int:
    """Width of a head in a layer."""
    width: int = getattr(kind.mixer, 'head_dim', self.head_dim)
    return width

  def rotated_width(self, kind: LayerKind) -> int:
    """Number of leading values of a head that are rotated in a layer."""
    return self.rotary_dim or self.head_width(kind)

  @property
  def longest_sequence(self) -> int:
    """Longest sequence that the model supports, in tokens.

    Configs with scaled positions give the length before or after scaling. A
    length before scaling is stretched here.
    """
    lengths = [self.max_positions]
    for kind in self.layer_pattern:
      rope = kind.rope
      if rope is not None and kind.window is None:
        if rope.type in ('linear', 'dynamic'):
          lengths.append(int(self.max_positions * rope.factor))
        if rope.type == 'yarn':
          lengths.append(int(rope.original_max_positions * rope.factor))
    return max(lengths)


def attends(mixer: BlockPart | None) -> bool:
  """Whether a token mixer has keys and values."""
  if isinstance(mixer, Without):
    return False
  return not is_recurrent(mixer) or getattr(mixer, 'attends', False)


def is_recurrent(mixer: BlockPart | None) -> TypeGuard[RecurrentPart]:
  """Whether a token mixer keeps a state; see `RecurrentPart`."""
  return getattr(mixer, 'recurrent', False)


def identity(value: Any) -> str:
  """The text of a config that fingerprints are computed from.

  It is the `repr` of the first version of these classes. A field that was added
  later appears only if it differs from its default.

  Args:
    value: a config, or a part of one.
  """
  if isinstance(value, tuple):
    parts = [identity(part) for part in value]
    return f'({", ".join(parts)}{"," if len(parts) == 1 else ""})'
  if not isinstance(value, DecoderConfig | LayerKind | Rope):
    return repr(value)
  fields = []
  for field in dataclasses.fields(value):
    found = getattr(value, field.name)
    later = field.metadata == _LATER and found == field.default
    if field.repr and not later:
      fields.append(f'{field.name}={identity(found)}')
  return f'{type(value).__name__}({", ".join(fields)})'
