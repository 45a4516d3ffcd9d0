"""Granite 3."""

from typing import TYPE_CHECKING, Any

from vtokens.models.decoder_config import DecoderConfig, LayerKind
from vtokens.models.families import rope_json
from vtokens.models.families.config_json import Fields
from vtokens.models.families.family import About, Family

if TYPE_CHECKING:
  from vtokens.models.files.gguf_metadata import Metadata

# The converter of Granite 4 writes these also where no layer has Mamba 2 or
# experts.
_OF_OTHER_LAYERS = (
  'ssm.conv_kernel',
  'ssm.state_size',
  'ssm.group_count',
  'ssm.inner_size',
  'ssm.time_step_rank',
  'expert_shared_feed_forward_length',
)


class Granite(Family):
  """Llama with four multipliers."""

  model_type = 'granite'
  about = About(
    'Granite 3',
    'multipliers of embeddings, scores, residuals and logits',
    2.9e-06,
  )
  architecture = 'GraniteForCausalLM'
  gguf: str | None = 'granite'
  gguf_interleaved = True
  gguf_by_layer: tuple[str, ...] = ('attention.head_count_kv',)

  def read(self, f: Fields) -> dict[str, Any]:
    f.only('hidden_act', 'silu')
    f.no_window()
    return {
      **self.read_multipliers(f),
      'layer_pattern': (LayerKind(rope_json.read(f)),),
    }

  def read_multipliers(self, f: Fields) -> dict[str, Any]:
    """The multipliers and biases.

    Args:
      f: config.json.

    Raises:
      errors.UserError: a value is not supported.
    """
    return {
      **f.biases(),
      'embedding_scale': f.number('embedding_multiplier', float),
      'attention_scale': f.number('attention_multiplier', float),
      'residual_scale': f.number('residual_multiplier', float),
      'logit_divisor': f.number('logits_scaling', float),
    }

  def write(self, config: DecoderConfig, values: dict[str, Any]) -> None:
    values.update(
      embedding_multiplier=config.embedding_scale,
      attention_multiplier=config.attention_scale,
      residual_multiplier=config.residual_scale,
      logits_scaling=config.logit_divisor,
    )

  def read_gguf(self, metadata: 'Metadata', values: dict[str, Any]) -> None:
    self.read_gguf_multipliers(metadata, values)
    key, heads = '{arch}.attention.head_count_kv', values['num_key_value_heads']
    found = metadata.per_layer(key, values['num_hidden_layers'], heads)
    if set(found) != {heads}:
      raise metadata.unexpected(key, found, 'one number for all layers')
    for end in _OF_OTHER_LAYERS:
      metadata.get('{arch}.' + end)
    if not metadata.get('{arch}.rope.scaling.finetuned', True):
      raise metadata.unexpected(
        '{arch}.rope.scaling.finetuned',
        False,
        'true: llama.cpp rotates nothing otherwise',
      )

  def read_gguf_multipliers(
    self, metadata: 'Metadata', values: dict[str, Any]
  ) -> None:
    """Sets the fields of multipliers; see `read_gguf`."""
    # llama.cpp takes 0 for missing.
    for field, key, default in (
      ('embedding_multiplier', 'embedding_scale', 1.0),
      ('attention_multiplier', 'attention.scale', values['head_dim'] ** -0.5),
      ('residual_multiplier', 'residual_scale', 1.0),
      ('logits_scaling', 'logit_scale', 1.0),
    ):
      values[field] = metadata.optional('{arch}.' + key, float) or default
