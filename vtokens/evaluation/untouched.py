"""Proves that the model without virtual tokens is the base, bit for bit.

It compares hashes of the weights and bits of the logits: after loading, after
the use of virtual tokens, and after loading the same base again from its files.
If the base is quantised while loading, the quantised weights are compared with
each other; their distance to the original weights is not measured.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtokens.data.batch import Spans
from vtokens.devices import distributed
from vtokens.evaluation.trained_tokens import BranchTokens, TrainedTokens
from vtokens.host import errors
from vtokens.method import generate, steps
from vtokens.method.trainable import Trainable, Values
from vtokens.models.abstract import num_params
from vtokens.models.decoder import Decoder
from vtokens.models.files import weights
from vtokens.models.frozen_base import FrozenBase

# Texts of many kinds; their logits are compared.
PROBE = (
  'Question: When was the Elizabeth Tower completed?\nAnswer:',
  '[1] Big Ben is the nickname of the Great Bell of the clock in London.\n'
  '[2] The Elizabeth Tower, completed in 1859, houses Big Ben.\n\n'
  'Question: When was the tower that houses Big Ben completed?\nAnswer:',
  'According to the previous relevant passages, please answer the following '
  'question. Only return the answer without any other words.',
  'The quick brown fox jumps over the lazy dog.',
  'def fibonacci(n):\n  return n if n < 2 else fibonacci(n - 1) + '
  'fibonacci(n - 2)\n',
  '{"id": 7, "name": "x", "values": [1.5, -2e-3, null], "ok": true}',
  '<html><body class="a">&lt;p&gt; A &amp; B</body></html>',
  'Der Turm wurde im Jahr 1859 fertiggestellt; er ist 96 Meter hoch.',
  "L'été, la tour élevée à côté du fleuve était déjà achevée.",
  '伊丽莎白塔于1859年建成，高96米。',
  'Башня была построена в 1859 году.',
  'برج إليزابيث اكتمل بناؤه عام ١٨٥٩',
  '3.14159265358979 2.71828182845905 1,234,567 0x1F 10^-9 1859/05/31',
  '😀 naïve café — “quotes” … ½ × ∑ √2 ≠ ∞',
  'a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a',
  ' ',
)
# Numbers of active tokens, up to all, with which each table is used.
_USES = 3
_NEW_TOKENS = 4
# Bytes of a weight that are copied to the host at a time.
BLOCK_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Observation:
  """Hashes of a base at one moment.

  Attributes:
    weights: name -> SHA-256 of name, dtype, shape and bytes, hexadecimal.
    logits: SHA-256 of each probe's logits, in the order of `PROBE`.
  """

  weights: Mapping[str, str]
  logits: tuple[str, ...]


def observe(base: FrozenBase) -> Observation:
  """Hashes the weights and the logits of the probes.

  All processes must call it. The host holds one block of a weight and the
  devices hold the logits of one probe at a time.
  """
  return Observation(weights=hash_weights(base), logits=_hash_logits(base))


def hash_weights(base: FrozenBase) -> dict[str, str]:
  """Name -> SHA-256 of a weight's name, dtype, shape and bytes."""
  hashes = {}
  for name, array in weights.iter_arrays(base.decoder()):
    digest = hashlib.sha256(f'{name} {array.dtype} {array.shape}'.encode())
    length = array.shape[0]
    rows = max(1, BLOCK_BYTES // max(1, array.nbytes // length))
    for start in range(0, length, rows):
      # The last block starts earlier, to have the size of the others.
      first = max(0, min(start, length - rows))
      block = distributed.fetch(_block(array, first, min(rows, length)))
      digest.update(np.ascontiguousarray(block[start - first :]).tobytes())
    hashes[name] = digest.hexdigest()
  return hashes


def prove(
  load: Callable[[], FrozenBase],
  base: FrozenBase,
  trained: Sequence[TrainedTokens],
  *,
  loaded: Observation | None = None,
  release: bool = False,
) -> dict[str, Any]:
  """Proves that virtual tokens do not change the base.

  Args:
    load: loads the same base from its files again.
    base: the base.
    trained: virtual tokens to use between the comparisons.
    loaded: the observation after loading, to cover everything since then; None
      to start now.
    release: whether to delete the base's weights before they are loaded again,
      so that devices never hold them twice. Then `base` is unusable afterwards.

  Returns:
    JSON values for reports: hashes, and the comparisons that were made.

  Raises:
    errors.UserError: something differs; the message names the weights.
  """
  before = observe(base)
  # A backend that is not deterministic would look like a changed base.
  if _hash_logits(base) != before.logits:
    raise errors.UserError(
      'untouched: the same weights gave other logits a second time: this '
      'backend is not deterministic. On GPUs try '
      'XLA_FLAGS=--xla_gpu_deterministic_ops=true'
    )
  uses = [
    {'table': number, 'num_active': k, 'tokens': _use(base, one, k)}
    for number, one in enumerate(trained)
    for k in _numbers_active(len(one))
  ]
  alone = _check_without_tokens(base, trained)
  after = observe(base)
  if loaded is not None:
    compare('when it was loaded', loaded, 'before the tables', before)
  compare('before the tables were used', before, 'after', after)
  if release:
    for leaf in jax.tree.leaves(base.params):
      leaf.delete()
  fresh_base = load()
  fresh = observe(fresh_base)
  compare('after the tables were used', after, 'loaded afresh', fresh)
  everything = hashlib.sha256(
    ''.join(f'{n} {h}\n' for n, h in sorted(after.weights.items())).encode()
  )
  return {
    'untouched': True,
    'quantize': base.quantize,
    'weights': {
      'compared': 'as loaded, after use, loaded afresh from the files',
      'tensors': len(after.weights),
      'parameters': num_params(base.config),
      'sha256': everything.hexdigest(),
      'sha256_of': dict(after.weights),
    },
    'logits': {
      'compared': 'likewise, of the plain decoder in one pass',
      'probes': len(PROBE),
      'sha256_of': list(after.logits),
    },
    'without_tokens': alone,
    'uses': uses,
  }


@functools.partial(jax.jit, static_argnames='rows')
def _block(array: Array, start: Int[Array, ''], rows: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(array, start, rows)


@functools.partial(jax.jit, static_argnames='graph')
def _plain(
  base: nnx.State[str, Any],
  ids: Int[Array, '1 T'],
  positions: Int[Array, '1 T'],
  *,
  graph: nnx.GraphDef[Decoder],
) -> Float[Array, '1 T V']:
  """Logits of the decoder in one pass, without a table."""
  decoder = nnx.merge(graph, base)
  hidden, _ = decoder(decoder.embed(ids), positions, ids=ids)
  return decoder.logits(hidden)


@functools.partial(jax.jit, static_argnames=('graph', 'trainable'))
def _piped(
  base: nnx.State[str, Any],
  trained: Values,
  prefix: Int[Array, '1 P'],
  prefix_positions: Int[Array, '1 P'],
  suffix: Int[Array, '1 S'],
  positions: Int[Array, '1 S'],
  *,
  graph: nnx.GraphDef[Decoder],
  trainable: Trainable,
) -> Float[Array, '1 S V']:
  """Logits computed as in training and evaluation, with the trained values."""
  decoder = nnx.merge(graph, base)
  cache = steps.encode_prefix(decoder, prefix, prefix_positions)
  hidden, _ = decoder(
    trainable.embed(decoder, trained, suffix),
    positions,
    [cache],
    ids=suffix,
    trained_caches=trainable.caches(
      decoder, trained, _spans(trainable, positions[:, :1], 0)
    ),
  )
  return decoder.logits(hidden)


def _hash_logits(base: FrozenBase) -> tuple[str, ...]:
  hashes = []
  size = max(map(len, _probe_ids(base)))
  for ids in _probe_ids(base):
    logits = distributed.fetch(
      _plain(base.params, *_padded(ids, size, 0), graph=base.graph)
    )
    hashes.append(_sha256(logits[0, : len(ids)]))
  return tuple(hashes)


def _check_without_tokens(
  base: FrozenBase, trained: Sequence[TrainedTokens]
) -> dict[str, Any]:
  """Checks that with k = 0 logits do not depend on the trained values.

  Raises:
    errors.UserError: they depend on them.
  """
  size = max(map(len, _probe_ids(base)))
  others = [BranchTokens(one.values, one.trainable) for one in trained]
  if not others:
    others = [BranchTokens(np.zeros((1, base.config.embed_dim), np.float32))]
  poison = [
    dataclasses.replace(
      one, values=jax.tree.map(lambda x: np.full_like(x, np.nan), one.values)
    )
    for one in others
  ]
  for number, (text, ids) in enumerate(
    zip(PROBE, _probe_ids(base), strict=True)
  ):
    # The suffix keeps at least one token.
    cut = len(ids) // 2
    inputs = (
      *_padded(ids[:cut], size, 0),
      *_padded(ids[cut:], size, cut),
    )
    found = [
      distributed.fetch(
        _piped(
          base.params,
          one.values,
          *inputs,
          graph=base.graph,
          trainable=one.trainable,
        )
      )[0, : len(ids) - cut]
      for one in [*poison, *others]
    ]
    if not all(np.isfinite(logits).all() for logits in found):
      raise errors.UserError(
        f'untouched: probe {number}, {text[:40]!r}: without virtual tokens the '
        'logits are not finite once the table holds NaN: the table leaks into '
        'the base'
      )
    if len({_sha256(logits) for logits in found}) > 1:
      raise errors.UserError(
        f'untouched: probe {number}, {text[:40]!r}: without virtual tokens the '
        'logits depend on the table: it leaks into the base'
      )
  return {
    'compared': 'logits through cache and table at k = 0, of a table of NaN '
    'and of the others: finite and bit-identical',
    'probes': len(PROBE),
    'tables': len(others),
  }


def _spans(
  trainable: Trainable, starts: Int[Array, 'B 1'], num_active: int
) -> Spans | None:
  """The places of `num_active` virtual tokens that are not in the suffix."""
  if trainable.in_suffix:
    return None
  return Spans(starts, jnp.full_like(starts, num_active))


def _use(base: FrozenBase, trained: TrainedTokens, num_active: int) -> int:
  """Answers the probes with virtual tokens; returns how many tokens came."""
  probes = _probe_ids(base)
  size = max(map(len, probes))
  vocab = base.config.vocab_size
  trainable = trained.trainable
  inputs = num_active if trainable.in_suffix else 0
  virtual = np.arange(vocab, vocab + inputs, dtype=np.int32)
  before = [_padded(ids, size, 0) for ids in probes]
  after = [
    _padded(
      np.concatenate([virtual, ids]),
      len(trained) + size,
      len(ids) + num_active - inputs,
    )
    for ids in probes
  ]
  cache = generate.encode_prefix(
    base.params,
    *map(np.concatenate, zip(*before, strict=True)),
    graph=base.graph,
  )
  suffix: Any
  positions: Any
  suffix, positions = map(np.concatenate, zip(*after, strict=True))
  lengths: Any = np.array([[len(ids)] for ids in probes], np.int32)
  nothing: Any = np.zeros(vocab, bool)
  eos_id: Any = np.int32(base.tokenizer.eos_id)
  out = generate.generate(
    base.params,
    trained.values,
    cache,
    generate.Suffixes(
      ids=suffix,
      positions=positions,
      segments=None,
      last=(positions >= 0).sum(axis=1, dtype=np.int32)[:, None] - 1,
      spans=_spans(trainable, lengths, num_active),
    ),
    generate.Endings(eos_id, nothing, nothing, nothing),
    graph=base.graph,
    max_new_tokens=_NEW_TOKENS,
    trainable=trainable,
  )
  return distributed.fetch(out.ids).size


def _numbers_active(rows: int) -> list[int]:
  """1, all, and a number between them."""
  return sorted({1, (rows + 1) // 2, rows})[:_USES]


def _probe_ids(base: FrozenBase) -> list[np.ndarray]:
  tokenizer = base.tokenizer
  found = []
  for text in PROBE:
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    # A tokenizer may have no id for a text of white space.
    found.append(np.asarray(ids or [tokenizer.eos_id], np.int32))
  return found


def _padded(
  ids: Int[np.ndarray, 'T'], size: int, first: int
) -> tuple[Int[np.ndarray, '1 S'], Int[np.ndarray, '1 S']]:
  """Ids, and positions from `first` on, padded to a row of `size`."""
  row, positions = np.zeros((1, size), np.int32), np.full((1, size), -1)
  row[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(first, first + len(ids))
  return row, positions.astype(np.int32)


def compare(when: str, old: Observation, then: str, new: Observation) -> None:
  """Raises a `UserError` that names the differences of two observations.

  Args:
    when: moment of the first observation, for the message.
    old: the first observation.
    then: moment of the second observation, for the message.
    new: the second observation.
  """
  names = [
    name
    for name in sorted(old.weights.keys() | new.weights.keys())
    if old.weights.get(name) != new.weights.get(name)
  ]
  if names:
    lines = errors.lines(
      f'{name}: SHA-256 {old.weights.get(name, "(no such weight)")[:16]}, '
      f'then {new.weights.get(name, "(no such weight)")[:16]}'
      for name in names
    )
    raise errors.UserError(
      f'untouched: {len(names)} of {len(old.weights)} weights of the base '
      f'differ: {when}, and {then}:{lines}'
    )
  probes = [
    repr(text[:40])
    for text, a, b in zip(PROBE, old.logits, new.logits, strict=True)
    if a != b
  ]
  if probes:
    raise errors.UserError(
      f'untouched: the weights of the base are the same, but its logits are '
      f'not: {when}, and {then}, for the probes {", ".join(probes)}'
    )


def _sha256(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
