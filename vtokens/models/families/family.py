"""Base class of model families: how their files differ."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import gguf_stored, tensor_names
from vtokens.models.families.config_json import FULL, SLIDING, Fields
from vtokens.models.families.gguf_stored import Part, Stored

if TYPE_CHECKING:
  # It imports the gguf package.
  from vtokens.models.files.gguf_metadata import Metadata


@dataclasses.dataclass(frozen=True)
class About:
  """What lists of supported models say about a family.

  Attributes:
    models: names of models.
    beyond: what it has beyond Llama 2.
    difference: largest difference between our logits and transformers', in
      float32, as `benchmarks/parity.py` measures it; 0 if it was not measured.
    gguf: which of its GGUF files are read; '' if `Family.gguf` says it.
  """

  models: str = ''
  beyond: str = ''
  difference: float = 0.0
  gguf: str = ''


class Family(abc.ABC):
  """One `model_type`; see `registry.register`.

  Attributes:
    model_type: as in config.json.
    architecture: name of the model class in transformers.
    names: parameter path -> name of the tensor; see `tensor_names`.
    gguf: name of the architecture in GGUF files; None if they are not
      supported.
    about: see `About`.
    gguf_interleaved: whether GGUF files have the rows of q and k in the order
      of `gguf_stored.interleaved_rows`.
    gguf_by_layer: ends of metadata keys whose values may be lists with a number
      for each layer. The largest counts; `read_gguf` checks the others.
    norm_eps: field of config.json with the number that norms add.
    gguf_epsilon: end of its metadata key; '' if `norm_eps` tells it.
    aliases: older name of a field of config.json -> name.
    qkv_by_head: whether a tensor with queries, keys and values has them one
      key-value head after the other.
    extra_layers: whether files may have one more layer, which predicts a
      further token. It is not read.
    own_rotation: whether `read` decides by other fields than
      `partial_rotary_factor` how many values of a head are rotated.
    scales_lookup: whether servers multiply embeddings by a number where they
      look them up, so that embeddings that are sent to them miss it.
    unused: ends of names of tensors that files may have and that are not read.
    unused_parts: beginnings of names of such tensors.
  """

  model_type: str
  architecture: str
  names: Mapping[str, str] = tensor_names.PRE_NORM
  gguf: str | None = None
  gguf_interleaved: bool = False
  gguf_by_layer: tuple[str, ...] = ()
  norm_eps: str = 'rms_norm_eps'
  gguf_epsilon: str = ''
  aliases: Mapping[str, str] = {}
  qkv_by_head: bool = False
  extra_layers: bool = False
  own_rotation: bool = False
  scales_lookup: bool = False
  unused: tuple[str, ...] = ()
  unused_parts: tuple[str, ...] = ()
  about: About = About()

  @property
  def predicts_further(self) -> bool:
    """Whether files may have layers that predict further tokens."""
    return self.extra_layers or 'mtp.' in self.unused_parts

  def read_sizes(self, f: Fields) -> dict[str, Any]:
    """Sizes whose fields differ between families.

    Args:
      f: config.json.

    Raises:
      errors.UserError: a value is missing or wrong.
    """
    return {
      # null means as many as query heads; a missing field may mean something
      # else.
      'num_kv_heads': f.number(
        'num_key_value_heads', default=f.number('num_attention_heads')
      ),
      'mlp_dim': f.size('intermediate_size'),
      'norm_eps': f.size(self.norm_eps, float),
      'max_positions': f.size('max_position_embeddings'),
    }

  def complete(self, values: dict[str, Any]) -> None:
    """Brings a config.json into the form that `read` expects.

    Args:
      values: its fields, not yet checked, to be changed in place.
    """
    del values  # For families whose files have several forms.

  def unused_tensors(self, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of names of tensors that files may have but are not read.

    Args:
      values: fields of config.json, not checked.
    """
    number = values.get('num_hidden_layers')
    further = self.extra_layers and type(number) is int
    return (f'model.layers.{number}.',) if further else ()

  @abc.abstractmethod
  def read(self, f: Fields) -> dict[str, Any]:
    """Fields of `DecoderConfig` besides the common fields.

    It must read every field that may matter. A field that it does not read is
    refused if the value is not the default.

    Args:
      f: config.json; `registry.from_hf` reads the common fields.

    Raises:
      errors.UserError: a value is not supported.
    """

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    """`names` of one model, where they depend on its config."""
    del config  # For families that need it.
    return self.names

  def forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    """Forms of the files. The first is the one that is written."""
    return (tensor_names.Form(self.names_of(config)),)

  def row_groups(self, config: DecoderConfig, path: str) -> int:
    """Number of groups of rows in the tensor of a parameter.

    Several parameters may share a tensor. Each group has rows of every one of
    them. With one group the parameters follow one another.

    Args:
      config: the architecture.
      path: path of the parameter in `names`.
    """
    if self.qkv_by_head and path.startswith('layers.attention.'):
      return config.num_kv_heads
    return 1

  def gguf_form(self, config: DecoderConfig) -> tensor_names.Form:
    """Form of GGUF files: their tensors under names like Hugging Face's."""
    return self.forms(config)[0]

  def gguf_forms(self, config: DecoderConfig) -> tuple[tensor_names.Form, ...]:
    """`gguf_form`, and the same with gates and ups of experts in one tensor."""
    form = self.gguf_form(config)
    joined = tensor_names.with_joined_gguf_experts(form.names)
    if joined == form.names:
      return (form,)
    return form, dataclasses.replace(form, names=joined)

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    """Completes a config.json.

    Args:
      config: the architecture, as returned by `read`.
      values: the common fields, to be changed in place.
    """
    del config, values  # By default there is nothing to add.

  def read_gguf(self, metadata: Metadata, values: dict[str, Any]) -> None:
    """Completes the config.json made from the metadata of a GGUF file.

    Args:
      metadata: metadata of the file.
      values: the common fields, to be changed in place.

    Raises:
      errors.UserError: a value is not supported.
    """
    del metadata, values  # By default there is nothing to add.

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    """How a tensor differs in a GGUF file.

    Args:
      config: the architecture.
      name: Hugging Face's name of the tensor.
      shape: its shape in the file.
    """
    rows = None
    if self.gguf_interleaved and '.q_proj.' in name:
      rows = gguf_stored.interleaved_rows(shape[0], config.num_heads)
    elif self.gguf_interleaved and '.k_proj.' in name:
      rows = gguf_stored.interleaved_rows(shape[0], config.num_kv_heads)
    elif self.qkv_by_head and '.query_key_value.' in name:
      rows = gguf_stored.grouped_rows(config)
    return Stored(rows)

  def gguf_joined(self, config: DecoderConfig) -> Mapping[str, Sequence[Part]]:
    """Tensors that a GGUF file has in parts.

    Args:
      config: the architecture.

    Returns:
      Name of a tensor as in `names` -> its parts.
    """
    del config  # For families that have them.
    return {}

  def gguf_numbers(
    self, metadata: Metadata, config: DecoderConfig
  ) -> dict[str, np.ndarray]:
    """Weights that a GGUF file has in its metadata.

    Args:
      metadata: metadata of the file.
      config: the architecture.

    Returns:
      Hugging Face's name -> array, float32.

    Raises:
      errors.UserError: a value is missing or wrong.
    """
    del metadata, config  # For families that need them.
    return {}


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
