"""The licence of a base, as its own files state it."""

import contextlib
import importlib.metadata
import pathlib
import re
from typing import Any

import huggingface_hub

from vtokens.models import frozen_base
from vtokens.models.files import gguf_weights
from vtokens.models.files.weight_map import TensorSource

_PACKAGE = 'package:'


def of_base(path: str, source: TensorSource) -> dict[str, str]:
  """The licence fields of a model card; none if no file states a licence.

  `license` is an identifier such as apache-2.0, or `other`, perhaps with
  `license_name` and `license_link`. The licence is looked up in the metadata of
  a GGUF file, in the README.md of a directory or of a base on the hub, and in
  the metadata of a Python package.

  Args:
    path: the base, as in `config.base.path`.
    source: source of its weights.
  """
  if isinstance(source, gguf_weights.GGUFSource):
    found = _of_gguf(source)
  else:
    local = frozen_base.resolve(path)
    found = _of_card(pathlib.Path(local) / 'README.md')
    if not found and not pathlib.Path(path).exists():
      found = _of_hub(path, local)
  if not found and path.startswith(_PACKAGE):
    found = of_package(path)
  return found


def card_fields(license: Any, name: Any, link: Any) -> dict[str, str]:
  """The fields of values of any type; none without an identifier."""
  # The hub has identifiers in lower case.
  found = _word(license).lower()
  if not found:
    return {}
  fields = {'license': found}
  if found == 'other':
    if _word(name):
      fields['license_name'] = _word(name)
    if isinstance(link, str) and re.fullmatch(r'https?://[\x21-\x7e]+', link):
      fields['license_link'] = link
  return fields


def _word(value: Any) -> str:
  if isinstance(value, str) and re.fullmatch(r'[\w.+-]{1,60}', value.strip()):
    return value.strip()
  return ''


def _of_gguf(source: gguf_weights.GGUFSource) -> dict[str, str]:
  return card_fields(
    *(
      source.metadata(f'general.license{end}') for end in ('', '.name', '.link')
    )
  )


def _of_card(path: pathlib.Path) -> dict[str, str]:
  """The licence in the head of a model card."""
  # The card may hold anything; a card that cannot be read states no licence. A
  # pipe would be read without end.
  if not path.is_file():
    return {}
  try:
    values = huggingface_hub.metadata_load(path)
  except Exception:
    return {}
  if not isinstance(values, dict):
    return {}
  return card_fields(
    *(values.get(f'license{end}') for end in ('', '_name', '_link'))
  )


def _of_hub(name: str, local: str) -> dict[str, str]:
  """The licence in the card on the hub, which is not among the model files."""
  try:
    file = huggingface_hub.hf_hub_download(
      name, 'README.md', revision=frozen_base.commit(local) or None
    )
  # Offline, or no card: the errors differ between versions of the hub's client
  # and of its HTTP client.
  except Exception:
    return {}
  return _of_card(pathlib.Path(file))


def of_package(path: str) -> dict[str, str]:
  """The licence in the metadata of the package in `package:MODULE/FILE`."""
  module = path.removeprefix(_PACKAGE).partition('/')[0]
  for name in importlib.metadata.packages_distributions().get(module, ()):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      values = importlib.metadata.metadata(name).json
      for field in ('license_expression', 'license'):
        if found := card_fields(values.get(field), None, None):
          return found
  return {}
