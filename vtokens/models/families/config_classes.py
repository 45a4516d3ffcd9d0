"""Config classes of transformers: their fields, and how they are called."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Fields of config classes that concern training, generation or speed. Fields of
# the common parent class have no effect either.
_WITHOUT_EFFECT = {
  'initializer_range',
  'use_cache',
  'attention_dropout',
  'resid_pdrop',
  'embd_pdrop',
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
}


def is_known(model_type: Any) -> bool:
  """Whether transformers has a config class of this `model_type`."""
  return (
    isinstance(model_type, str) and model_type in _transformers().CONFIG_MAPPING
  )


def defaults(model_type: str) -> Mapping[str, Any]:
  """The relevant fields of a type's config class and their defaults."""
  return of_type(model_type)[1]


@functools.cache
def of_type(model_type: str) -> tuple[Any, dict[str, Any]]:
  """The config class of a type, and its relevant fields and their defaults.

  Where the class's last check, of the config as a whole, fails, the config has
  all its fields nevertheless, and an attribute `is_complete`.
  """
  cls: Any = _transformers().CONFIG_MAPPING[model_type]
  unused = unused_fields()
  found = _defaults(cls).items()

  class Unchecked(cls):
    """Notes that all fields are set."""

    def __post_init__(self, **kwargs: Any) -> None:
      super().__post_init__(**kwargs)
      # Sizes of layers that differ are read from fields of their own.
      self.allow_global_per_layer_attribute_access = True
      self.is_complete = True

    def validate_rope(self, *unused: Any, **unused_too: Any) -> None:
      """Transformers 5.3 calls it before all fields are set."""

  known = {field: value for field, value in found if field not in unused}
  return Unchecked, known


@functools.cache
def unused_fields() -> frozenset[str]:
  """Fields that do not concern the numbers of the model."""
  common = _defaults(_transformers().PreTrainedConfig)
  return frozenset({'model_type', *common, *_WITHOUT_EFFECT})


def _transformers() -> Any:
  # Imported late: it takes a second, and imports torch if that is installed.
  return importlib.import_module('transformers')


def _defaults(cls: type) -> dict[str, Any]:
  """The fields of a config class and their defaults."""
  if dataclasses.is_dataclass(cls):
    return {field.name: field.default for field in dataclasses.fields(cls)}
  # transformers 5.3
  found = inspect.signature(cls).parameters.values()
  return {p.name: p.default for p in found if p.kind is not p.VAR_KEYWORD}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences transformers' warnings; their subjects are checked here."""
  logging = _transformers().logging
  before = logging.get_verbosity()
  logging.set_verbosity_error()
  try:
    yield
  finally:
    logging.set_verbosity(before)


def expected(message: str) -> str:
  """The expected value of a field, from the message of a failed check."""
  types = re.findall(r'expected (?:an? )?([\w\[\]., |]+?), got', message)
  return ' or '.join(types).replace('NoneType', 'null') or message
