"""The formats of vtokens, one file a format, and formats of other packages.

They load torch and other consumers only when they write or check.
"""

import importlib.metadata

from vtokens.exports import export_format
from vtokens.exports.export_format import FORMATS
from vtokens.exports.formats.gguf_format import GGUFFormat
from vtokens.exports.formats.hf_base_format import HFBaseFormat
from vtokens.exports.formats.hf_format import HFFormat
from vtokens.exports.formats.peft_format import PEFTFormat
from vtokens.exports.formats.spring_format import SpringFormat
from vtokens.exports.formats.vtokens_format import VtokensFormat

__all__ = ['FORMATS']

for _one in (
  VtokensFormat(),
  SpringFormat(),
  HFFormat(),
  HFBaseFormat(),
  PEFTFormat(),
  GGUFFormat(),
):
  export_format.register(_one)

for _entry in importlib.metadata.entry_points(group=export_format.ENTRY_POINTS):
  export_format.register(_entry.load()())
