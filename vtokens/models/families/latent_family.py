"""Base class of the families with latent attention."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind, Rope
from vtokens.models.families import latent_fields, rope_json, tensor_names
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import Family
from vtokens.models.families.gguf_stored import Part

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata


class LatentFamily(Family):
  """Latent attention; a dense MLP in every layer, unless `read` adds others."""

  names = latent_fields.names(tensor_names.PRE_NORM)
  own_rotation = True

  def names_of(self, config: DecoderConfig) -> Mapping[str, str]:
    return latent_fields.names_of(config, self.names)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    self.check_width(f)
    rope = self.read_rope(f)
    return {**latent_fields.read(f, rope), 'layer_pattern': (LayerKind(rope),)}

  def check_width(self, f: Fields) -> None:
    """Checks `head_dim`; see `latent_fields.check_width`."""
    latent_fields.check_width(f, 'qk_rope_head_dim')

  def read_rope(self, f: Fields) -> Rope:
    """Reads the rotary embedding; see `rope_json.read`."""
    return rope_json.read(f)

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    latent_fields.write(config, values)

  def gguf_joined(self, config: DecoderConfig) -> Mapping[str, Sequence[Part]]:
    return latent_fields.GGUF_PARTS

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    latent_fields.read_gguf(metadata, values)
