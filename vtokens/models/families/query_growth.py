"""Queries that are scaled by their position, as Mistral's families have them.

Their fields are those of Llama 4, inside `rope_parameters`.
"""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, QueryGrowth
from vtokens.models.families.config_json import Fields

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

BETA = 'llama_4_scaling_beta'
_LENGTH = 'original_max_position_embeddings'
# Fields inside `rope_parameters` beside those of the rotary embedding.
# transformers does not read the inner max_position_embeddings.
ALSO = (BETA, 'max_position_embeddings')


def read(f: Fields) -> QueryGrowth | None:
  """The scale of queries; None for none.

  Raises:
    errors.UserError: a field is missing or wrong.
  """
  inner = f.get('rope_parameters') or {}
  if inner.get(BETA) == 0:
    return None
  return QueryGrowth(
    f.number(BETA, float, inside=inner), f.number(_LENGTH, inside=inner)
  )


def written(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `read`: fields inside `rope_parameters`."""
  growth = config.query_growth
  if growth is None:
    return {BETA: 0.0}
  return {BETA: growth.beta, _LENGTH: growth.length}


def read_gguf(
  metadata: 'Metadata', values: dict[str, Any], length: Any = None
) -> None:
  """Sets `rope_parameters` from the metadata of a GGUF file.

  Args:
    metadata: metadata of the file.
    values: fields of config.json, to be changed in place.
    length: length without scale if the file does not say it; `...` raises.

  Raises:
    errors.UserError: the rotary embedding is not YaRN's, or queries grow from
      another length on than it does.
  """
  scaling = values.pop('rope_scaling')
  if not scaling or scaling['rope_type'] != 'yarn':
    raise metadata.unexpected(
      '{arch}.rope.scaling.type',
      metadata.get('{arch}.rope.scaling.type'),
      "'yarn' beside attention.temperature_scale",
    )
  beta = metadata.optional('{arch}.attention.temperature_scale', float) or 0.0
  key = '{arch}.attention.temperature_length'
  original = scaling[_LENGTH]
  if beta and metadata.number(key, default=length or original) != original:
    raise metadata.unexpected(key, metadata.get(key), str(original))
  values['rope_parameters'] = {
    **scaling,
    'rope_theta': values.pop('rope_theta'),
    BETA: beta,
  }
  del values[_LENGTH]
