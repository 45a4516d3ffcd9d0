"""What an export format is, and which formats there are.

A format is a subclass of `Format` in a file of its own, and `register`. The
rest is shared: `exporting.py` asks our own model, writes the table besides,
runs the gate, and puts the export in its place.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vtokens import config
from vtokens.exports.export_config import Config
from vtokens.exports.gate import Check
from vtokens.exports.reference import Probe
from vtokens.exports.trained_table import Source
from vtokens.host import errors
from vtokens.models.files import hf_directory
from vtokens.serving.artifact import Artifact, Meta, Tokens
from vtokens.serving.trained_file import Trained


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the virtual tokens are in an export.

  Attributes:
    tokens: their ids and names in the export.
    dtype: dtype of the table in the export, of numpy or ml_dtypes. Keys and
      values are float32.
    num_rows: rows of the embedding matrix and the head of the export; 0 if the
      format writes neither.
    unsaid: ids whose rows of the head hardly ever win; the rows of the virtual
      tokens are copies of the first one.
  """

  tokens: Tokens
  dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype('f4'))
  num_rows: int = 0
  unsaid: tuple[int, ...] = ()

  def stored(self, values: Trained) -> Trained:
    """The values as the export stores them, rounded, as float32."""
    if isinstance(values, Mapping):
      return values
    return values.astype(self.dtype).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class ExportJob:
  """An export that is being made.

  Attributes:
    directory: directory of the export, not yet in its place.
    settings: what is exported, and how it is checked.
    source: the virtual tokens and their base.
    base_path: directory or GGUF file of the base.
    placement: where the virtual tokens go; see `Format.place`.
    exported: the virtual tokens, with the ids and names of the export.
    probes: questions and the answers of our own model.
    max_new_tokens: most tokens of an answer.
  """

  directory: pathlib.Path
  settings: Config
  source: Source
  base_path: str
  placement: Placement
  exported: Artifact
  probes: Sequence[Probe]
  max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Usage:
  """How the card of an export says it is used.

  Attributes:
    recipe: Python that goes from `passages` and `question` to `answer`.
    serving: Markdown blocks about servers, after the recipe.
    notes: Markdown paragraphs after the ids of the tokens.
  """

  recipe: str
  serving: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


def refuse_wrapped(to: str, base_path: str) -> None:
  """Raises if the base is the text part of a multimodal model.

  Args:
    to: name of the format.
    base_path: see `Format.place`.

  Raises:
    errors.UserError: it is.
  """
  path = pathlib.Path(base_path)
  if path.is_dir() and hf_directory.read_wrapper(path):
    raise errors.UserError(
      f'--to {to}: {base_path} is a multimodal model, and virtual tokens were '
      'trained for its text part; this format names tensors of a plain '
      'decoder. --to vtokens writes the table for the model as it is'
    )


class Format(abc.ABC):
  """A format that virtual tokens are exported to.

  Attributes:
    name: value of --to.
    kinds: the kinds of virtual tokens that the format holds.
    library: the library that reads the export, as the Hugging Face hub names
      it.
    consumers: packages that the gate reads the export with, as they are
      imported; a message asks to install a missing one.
    from_directory: whether the base has to be a Hugging Face directory; of a
      GGUF file one is made first, and removed at the end.
  """

  name: ClassVar[str]
  kinds: ClassVar[tuple[config.Kind, ...]] = ('table',)
  library: ClassVar[str]
  consumers: ClassVar[tuple[str, ...]] = ('torch', 'transformers')
  from_directory: ClassVar[bool] = False

  @abc.abstractmethod
  def place(self, source: Source, base_path: str) -> Placement:
    """Says where the virtual tokens go.

    Args:
      source: the trained table and its base.
      base_path: directory or GGUF file of the base.

    Raises:
      errors.UserError: the format cannot hold this base or these tokens.
    """

  @abc.abstractmethod
  def write(self, job: ExportJob) -> None:
    """Writes the files of the format into `job.directory`.

    The virtual tokens themselves (`virtual_tokens/`, `vtokens.json`) are
    written besides.
    """

  @abc.abstractmethod
  def check(self, job: ExportJob) -> list[Check]:
    """Reads the export with its consumers and compares it with our model.

    `shared_checks.py` has the checks that most formats use.
    """

  @abc.abstractmethod
  def usage(self, meta: Meta, dtype: str) -> Usage:
    """How the export is used, for its card.

    Args:
      meta: of the export.
      dtype: dtype of the base's weights; '' if unknown.
    """


# Entry points by which other packages name the classes of their formats.
ENTRY_POINTS = 'vtokens.export_formats'

FORMATS: dict[str, Format] = {}


def register(one: Format) -> None:
  """Adds a format, which `--to` can then name.

  Raises:
    errors.UserError: another format has the name.
  """
  if type(FORMATS.get(one.name, one)) is not type(one):
    raise errors.UserError(
      f'export format {one.name}: there is another one of this name; choose a '
      'new name'
    )
  FORMATS[one.name] = one
