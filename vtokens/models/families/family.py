"""What a family of models says of its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import tensor_names
from vtokens.models.families.config_json import FULL, SLIDING, Fields

if TYPE_CHECKING:
  # It brings the gguf package.
  from vtokens.models.files.gguf_metadata import Metadata


class Family:
  """One `model_type`; see `registry.register`.

  Attributes:
    model_type: as in config.json.
    architecture: its class in transformers.
    names: parameter path -> name of the tensor; see `tensor_names`.
    gguf: its architecture in GGUF files, or None where these are not read.
  """

  model_type: str
  architecture: str
  names: Mapping[str, str] = tensor_names.PRE_NORM
  gguf: str | None = None

  def read(self, f: Fields) -> dict[str, Any]:
    """What the config sets in `DecoderConfig` beyond the common fields.

    Every field that may matter has to be read: one that is not is refused
    where its value is not the default.

    Args:
      f: config.json, without the fields that `registry.from_hf` reads.

    Raises:
      errors.UserError: a value is not supported.
    """
    raise NotImplementedError

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    """Completes a config.json.

    Args:
      config: the architecture, as `read` gave it.
      values: the fields that all families have, to be changed in place.
    """

  def read_gguf(self, metadata: Metadata, values: dict[str, Any]) -> None:
    """Completes the config.json that stands for the metadata of a GGUF file.

    Args:
      metadata: of the file.
      values: the fields that all files give, to be changed in place.

    Raises:
      errors.UserError: a value is not supported.
    """

  def gguf_rows(
    self, config: DecoderConfig, name: str, rows: int
  ) -> np.ndarray | None:
    """Where a GGUF file has the rows of a tensor; None for their own order.

    Args:
      config: the architecture.
      name: of the tensor, in Hugging Face's words.
      rows: how many it has.

    Returns:
      For each row in Hugging Face's order, its row in the file.
    """
    del config, name, rows  # Of the families that need them.
    return None

  def gguf_offset(self, name: str) -> float:
    """What a GGUF file has added to a tensor.

    Args:
      name: of the tensor, in Hugging Face's words.
    """
    del name  # Of the families that need it.
    return 0.0


def write_window(config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets `sliding_window`."""
  windows = {kind.window for kind in config.layer_pattern} - {None}
  values['sliding_window'] = next(iter(windows), None)


def write_layer_types(config: DecoderConfig, values: dict[str, Any]) -> None:
  """Sets `sliding_window` and `layer_types`."""
  write_window(config, values)
  values['layer_types'] = [
    SLIDING if kind.window else FULL for kind in config.layer_kinds
  ]
