"""Gemma 1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family
from vtokens.models.families.gguf_stored import Stored

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

_GELU = 'gelu_pytorch_tanh'


class Gemma(Family):
  """Parts that Gemma 1 to 3 share."""

  model_type = 'gemma'
  about = About(
    'Gemma 1',
    'scaled embeddings, GeGLU, norms with 1 + w',
    1.8e-05,
  )
  architecture = 'GemmaForCausalLM'
  gguf: str | None = 'gemma'

  def read(self, f: Fields) -> dict[str, Any]:
    # The first files say gelu and mean the tanh form; see transformers#29402.
    f.only('hidden_act', _GELU, 'gelu')
    f.only('hidden_activation', None, _GELU)
    f.no_window()
    kind = LayerKind(rope_json.read(f))
    return {**self.read_common(f), 'layer_pattern': (kind,)}

  def read_common(self, f: Fields) -> dict[str, Any]:
    """Parts that Gemma 1 to 3 share."""
    f.only('use_bidirectional_attention', False, None)
    return {
      **f.biases(),
      'activation': 'gelu_tanh',
      'norm_offset': 1.0,
      'scale_embeddings': True,
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values.update(hidden_act=_GELU, hidden_activation=_GELU)

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    values['hidden_act'] = _GELU

  def gguf_stored(
    self, config: DecoderConfig, name: str, shape: Sequence[int]
  ) -> Stored:
    # The converter adds the model's offset of 1 to the weights.
    return Stored(offset=1.0 if name.endswith('norm.weight') else 0.0)
