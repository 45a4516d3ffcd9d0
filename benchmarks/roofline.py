r"""Computes a lower bound on the time of each part of a training step.

    python benchmarks/roofline.py --model mistralai/Mistral-7B-Instruct-v0.1 \
      --chip 'NVIDIA H100 80GB HBM3' --batch 16 --prefix 900 --suffix 110

The bound is the larger of two times: arithmetic over the chip's peak, and bytes
over its memory bandwidth, both from data sheets (`vtokens/devices/chips.py`).
Nothing is measured. Between matrix products every array is assumed to be
written once and read once, as with perfect fusion by XLA.
"""

import dataclasses
import json
import pathlib

from absl import app, flags

from vtokens.devices import chips
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families.registry import from_hf
from vtokens.planning import flops, known_models

_MODEL = flags.DEFINE_string(
  'model', 'mistralai/Mistral-7B-Instruct-v0.1', 'Of those known by name.'
)
_CHIP = flags.DEFINE_string('chip', 'NVIDIA H100 80GB HBM3', 'Of chips.py.')
_BATCH = flags.DEFINE_integer('batch', 16, 'Examples of a step.')
_PREFIX = flags.DEFINE_integer('prefix', 900, 'Tokens of passages.')
_SUFFIX = flags.DEFINE_integer('suffix', 110, 'Tokens after them.')
_TARGETS = flags.DEFINE_integer('targets', 16, 'Of the suffix.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

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


def parts(
  config: DecoderConfig, batch: int, prefix: int, suffix: int, targets: int
) -> list[Part]:
  """Parts of a training step of `steps.make_train_step`."""
  layers, dim = config.num_layers, config.embed_dim
  heads = config.num_heads * config.head_dim
  keys = config.num_kv_heads * config.head_dim
  weights = flops.matrix_weights(config)
  # With thousands of tokens each expert has some, so all weights are read.
  stored = flops.matrix_weights(config, active=False) * _HALF
  count, width = flops.mlps(config)
  # Values of a token into and out of each matrix.
  around = (
    (dim + heads + 2 * keys)
    + (heads + dim)
    + count * (2 * dim + dim)
    + (3 * width + width)
  )
  # Between the matrices: norms, residuals, rotation, the gate.
  between = 2 * (2 * dim + 3 * dim) + 2 * (heads + keys) + 3 * width
  if count > 1:
    # Copies of a token for its experts, and the sum of their outputs.
    between += 2 * count * dim
  before, after = batch * prefix, batch * suffix
  # In the last layer the passages need keys and values only.
  last = weights / layers - 2 * dim * keys
  pairs = batch * (suffix * prefix + suffix * (suffix + 1) / 2)
  pair = 4.0 * layers * heads
  scores = (
    layers * config.num_heads * batch * suffix * (prefix + suffix) * _SINGLE
  )
  head = dim * config.vocab_size
  logits = batch * targets * config.vocab_size * _SINGLE
  kv = 2 * layers * keys * _HALF
  return [
    Part(
      'passages: matrices',
      2.0 * (weights - last) * before,
      stored + layers * before * around * _HALF,
    ),
    Part(
      'passages: attention',
      pair * batch * prefix * (prefix + 1) / 2,
      layers * before * 2 * (heads + keys) * _HALF,
    ),
    Part('passages: between products', 0, layers * before * between * _HALF),
    Part(
      'suffix: matrices, forward',
      2.0 * weights * after,
      stored + layers * after * around * _HALF,
    ),
    Part(
      'suffix: matrices, backward',
      2.0 * weights * after,
      stored + layers * after * around * _HALF,
    ),
    Part(
      'suffix: attention',
      pair * pairs * 2 + pair * batch * suffix * (suffix + 1) / 2,
      2 * kv * batch * (prefix + suffix),
    ),
    Part(
      'suffix: scores in memory',
      0,
      (_SCORES_FORWARD + _SCORES_BACKWARD) * scores,
      needed=False,
    ),
    Part('suffix: between products', 0, 3 * layers * after * between * _HALF),
    Part(
      'head and loss',
      4.0 * head * batch * targets,
      2 * head * _HALF + 4 * logits,
    ),
  ]


def main(argv: list[str]) -> None:
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
  app.run(main)
