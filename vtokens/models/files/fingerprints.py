"""The identity of a base."""

import hashlib

from vtokens.models.decoder_config import DecoderConfig, identity
from vtokens.models.files.weight_map import TensorSource


def of_base(source: TensorSource, config: DecoderConfig) -> str:
  """Hashes a base: its config, and name, shape and samples of each tensor.

  It does not depend on the split into files, on the dtype after loading, or on
  tensors that a source leaves out: those of a vision part, and of layers that
  predict further tokens. It hashes samples because a fine-tune changes every
  tensor and hashing all bytes of a 70B model would take minutes.

  Returns:
    64 hexadecimal digits.
  """
  digest = hashlib.sha256(identity(config).encode())
  for name, shape in sorted(source.shapes().items()):
    digest.update(f'{name}{shape}'.encode())
    digest.update(source.sample(name))
  return digest.hexdigest()
