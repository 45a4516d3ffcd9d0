"""Fields that AutoRound adds to checkpoints of GPTQ and AWQ.

Their names are those of `SerializedCompressorConfig` in auto-round 0.16.
"""

from vtokens.models.files.quantised.settings import Settings

# How the codes were found.
_SEARCH = (
  *('autoround_version', 'provider', 'amp', 'batch_size', 'iters', 'lr'),
  *('minmax_lr', 'nsamples', 'seqlen', 'gradient_accumulate_steps'),
  *('enable_minmax_tuning', 'enable_norm_bias_tuning', 'enable_quanted_input'),
  *('low_gpu_mem_usage', 'quant_block_list', 'to_quant_block_names'),
  *('scale_dtype', 'supported_types'),
)
# Of inputs of products that are not quantised.
_ACTIVATIONS = ('act_data_type', 'act_group_size', 'act_sym', 'act_dynamic')


def check(settings: Settings) -> None:
  """Reads the fields.

  Raises:
    errors.UserError: one says what is not supported.
  """
  settings.one_of('data_type', ('int',), 'int')
  settings.one_of('act_bits', (16,), 16)
  settings.absent(
    *('super_bits', 'super_group_size', 'regex_config', 'rotation_configs'),
    *('static_kv_dtype', 'static_attention_dtype'),
  )
  settings.ignore(*_SEARCH, *_ACTIVATIONS)
  settings.ignore('static_kv_granularity', 'static_attention_granularity')
