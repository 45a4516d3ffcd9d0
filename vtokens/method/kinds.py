"""Which trainable a config asks for."""

from vtokens import config
from vtokens.method.keys_values import KeysValues
from vtokens.method.trainable import Trainable
from vtokens.method.virtual_tokens import InputEmbeddings


def trainable_of(settings: config.VirtualTokens) -> Trainable:
  """Returns the trainable of `virtual_tokens.kind`."""
  kinds = {'table': InputEmbeddings, 'kv': KeysValues}
  return kinds[settings.kind](num_frozen=settings.num_frozen)
