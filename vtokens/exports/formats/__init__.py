"""The formats of vtokens, one file a format, and formats of other packages.

They load torch, PEFT and llama.cpp only when they write or check.
"""

import functools
import importlib.metadata
from collections.abc import Mapping

from vtokens.exports import export_format
from vtokens.exports.export_format import FORMATS, Format
from vtokens.exports.formats.gguf_format import GGUFFormat
from vtokens.exports.formats.hf_base_format import HFBaseFormat
from vtokens.exports.formats.hf_format import HFFormat
from vtokens.exports.formats.peft_format import PEFTFormat
from vtokens.exports.formats.spring_format import SpringFormat
from vtokens.exports.formats.vtokens_format import VtokensFormat

__all__ = ['FORMATS', 'formats']

for _one in (
  VtokensFormat(),
  SpringFormat(),
  HFFormat(),
  HFBaseFormat(),
  PEFTFormat(),
  GGUFFormat(),
):
  export_format.register(_one)


def formats() -> Mapping[str, Format]:
  """All formats by name, with those that other packages' entry points name."""
  _load_entry_points()
  return FORMATS


# Not while this package is imported: the other packages import it too.
@functools.cache
def _load_entry_points() -> None:
  group = export_format.ENTRY_POINTS
  for entry in importlib.metadata.entry_points(group=group):
    export_format.register(entry.load()())
