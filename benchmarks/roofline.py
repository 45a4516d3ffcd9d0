r"""Computes a lower bound on the time of each part of a training step.

    python benchmarks/roofline.py --model mistralai/Mistral-7B-Instruct-v0.1 \
      --chip 'NVIDIA H100 80GB HBM3' --batch 16 --prefix 900 --suffix 110

The bound is the larger of two times: arithmetic over the chip's peak, and bytes
over its memory bandwidth, both from data sheets (`vtokens/devices/chips.py`).
Nothing is measured. Between matrix products every array is assumed to be
written once and read once, as with perfect fusion by XLA. Attention includes
the states of recurrent layers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from absl import flags as absl_flags

from vtokens.devices import chips
from vtokens.models.decoder_config import DecoderConfig, attends
from vtokens.models.families.registry import from_hf
from vtokens.planning import flops, known_models, matrices
from vtokens.settings import flags

_MODEL = absl_flags.DEFINE_string(
  'model', 'mistralai/Mistral-7B-Instruct-v0.1', 'Of those known by name.'
)
_CHIP = absl_flags.DEFINE_string(
  'chip', 'NVIDIA H100 80GB HBM3', 'Of chips.py.'
)
_BATCH = absl_flags.DEFINE_integer('batch', 16, 'Examples of a step.')
_PREFIX = absl_flags.DEFINE_integer('prefix', 900, 'Tokens of passages.')
_SUFFIX = absl_flags.DEFINE_integer('suffix', 110, 'Tokens after them.')
_TARGETS = absl_flags.DEFINE_integer('targets', 16, 'Of the suffix.')
_JSON = absl_flags.DEFINE_string('json', None, 'File for the figures.')

# Bytes of a weight or activation, and of a score or logit.
_HALF, _SINGLE = 2, 4
# Transfers of scores from and to memory, without a kernel that keeps them on
# the chip. Forward: the product writes the scores; they are read for the
# maximum and again for the weights, which are written and read in half the
# bytes. Backward: scores and weights are read again; the weights' gradient is
# written and read; the scores' gradient is written in half the bytes and read
# twice.
_SCORES_FORWARD, _SCORES_BACKWARD = 3 + 1, 1 + 0.5 + 2 + 1.5


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a step.

  Attributes:
    name: name of the part.
    flops: number of floating point operations.
    bytes: bytes read from and written to memory.
    needed: whether the method needs this part.
  """

  name: str
  flops: float
  bytes: float
  needed: bool = True

  def seconds(self, chip: chips.Chip) -> float:
    """Lower bound of the part's time."""
    return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


def _around(found: Sequence[matrices.Layer]) -> float:
  """Numbers of a token into and out of the matrices of layers."""
  return sum(layer.around for layer in found)


def _between(found: Sequence[matrices.Layer], dim: int) -> float:
  """Numbers of a token that are moved between the matrices of layers.

  They are those of norms and residual sums, of rotations, convolutions and
  gates, and of the copies for experts.
  """
  return sum(
    5 * dim * layer.parts + layer.inner() + 2 * dim * layer.copies
    for layer in found
  )


def parts(
  config: DecoderConfig, batch: int, prefix: int, suffix: int, targets: int
) -> list[Part]:
  """Parts of a training step of `steps.make_train_step`."""
  dim = config.embed_dim
  weights = flops.matrix_weights(config)
  # With thousands of tokens each expert has some, so all weights are read.
  stored = flops.matrix_weights(config, active=False) * _HALF
  found = matrices.of_layers(config)
  # Of the last layer that has a cache, passages need the cache alone.
  cached = found[: matrices.cached_layers(config)]
  unused = sum(m.active_weights for m in cached[-1].matrices if not m.caches)
  of_passages = flops.passage_weights(config)
  before, after = batch * prefix, batch * suffix
  # Attention's pairs and the states: what is left without the matrices.
  passages = flops.train_flops(config, [(prefix, prefix, 0, 0)])
  passages -= 2.0 * of_passages * prefix
  later = flops.train_flops(config, [(0, prefix, suffix, 0)])
  later -= 4.0 * weights * suffix
  attending = sum(attends(kind.mixer) for kind in config.layer_kinds)
  scores = attending * config.num_heads * after * (prefix + suffix) * _SINGLE
  head = dim * config.vocab_size
  logits = batch * targets * config.vocab_size * _SINGLE
  return [
    Part(
      'passages: matrices',
      2.0 * (of_passages - unused) * before,
      stored + before * _around(cached) * _HALF,
    ),
    Part(
      'passages: attention',
      passages * batch,
      before * sum(layer.inner('attention') for layer in cached) * _HALF,
    ),
    Part(
      'passages: between products',
      0,
      before * _between(cached, dim) * _HALF,
    ),
    Part(
      'suffix: matrices, forward',
      2.0 * weights * after,
      stored + after * _around(found) * _HALF,
    ),
    Part(
      'suffix: matrices, backward',
      2.0 * weights * after,
      stored + after * _around(found) * _HALF,
    ),
    Part(
      'suffix: attention',
      later * batch,
      2 * batch * matrices.cache_bytes(config, prefix + suffix),
    ),
    Part(
      'suffix: scores in memory',
      0,
      (_SCORES_FORWARD + _SCORES_BACKWARD) * scores,
      needed=False,
    ),
    Part(
      'suffix: between products',
      0,
      3 * after * _between(found, dim) * _HALF,
    ),
    Part(
      'head and loss',
      4.0 * head * batch * targets,
      2 * head * _HALF + 4 * logits,
    ),
  ]


def main(argv: Sequence[str]) -> None:
  del argv
  values, _ = known_models.CONFIGS.get(_MODEL.value, (None, 0))
  if values is None:
    raise SystemExit(f'--model: one of {", ".join(known_models.CONFIGS)}')
  chip = chips.find(_CHIP.value)
  if chip is None:
    raise SystemExit(f'--chip: begins with one of {", ".join(chips.CHIPS)}')
  config = from_hf(values, _MODEL.value)
  shape = (_BATCH.value, _PREFIX.value, _SUFFIX.value, _TARGETS.value)
  found = parts(config, *shape)
  total = sum(part.seconds(chip) for part in found)
  floor = sum(part.seconds(chip) for part in found if part.needed)
  needed = _BATCH.value * flops.train_flops(
    config, [(_PREFIX.value, _PREFIX.value, _SUFFIX.value, _TARGETS.value)]
  )
  print(
    f'{_MODEL.value} on {chip.name}: {_BATCH.value} examples of '
    f'{_PREFIX.value} + {_SUFFIX.value} tokens'
  )
  print(f'{"":28} {"TFLOP":>8} {"GB":>7} {"ms":>7} {"share":>6}  limit')
  for part in found:
    seconds = part.seconds(chip)
    limit = 'products' if part.flops / chip.flops == seconds else 'memory'
    print(
      f'{part.name:28} {part.flops / 1e12:8.2f} {part.bytes / 1e9:7.2f} '
      f'{1e3 * seconds:7.2f} {seconds / total:6.1%}  {limit}'
    )
  print(
    f'floor {1e3 * total:.1f} ms: {_BATCH.value / total:.1f} examples/s, MFU '
    f'{needed / chip.flops / total:.1%}; without scores in memory '
    f'{1e3 * floor:.1f} ms, {needed / chip.flops / floor:.1%}'
  )
  if _JSON.value:
    report = {
      'model': _MODEL.value,
      'chip': chip.name,
      'batch': _BATCH.value,
      'prefix': _PREFIX.value,
      'suffix': _SUFFIX.value,
      'targets': _TARGETS.value,
      'parts': [
        {**dataclasses.asdict(p), 'seconds': p.seconds(chip)} for p in found
      ],
      'needed_flops': needed,
      'seconds': total,
      'seconds_without_scores': floor,
      'mfu': needed / chip.flops / total,
      'mfu_without_scores': needed / chip.flops / floor,
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  flags.run(main)
