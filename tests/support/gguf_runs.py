"""Bases in GGUF with runs on them, for tests of exports."""

import family_models
import gguf
import gguf_models
import torch
import trained_runs
import transformers

from vtokens.exports import export_config

Type = gguf.GGMLQuantizationType

# name -> architecture, family, type of matrices, changes of the model, metadata
CASES = {
  'llama_q8_0': ('llama', 'llama2', Type.Q8_0, {}, {'vocab_size': 300}),
  # llama.cpp rearranges this type in memory.
  'llama_tied_q4_0': ('llama', 'llama3', Type.Q4_0, {}, {}),
  'qwen2_tied_q4_1_37_spare': ('qwen2', 'qwen', Type.Q4_1, {}, {}),
  'qwen2_f32_2_spare': ('qwen2', 'qwen_untied', Type.F32, {}, {}),
  'qwen3_tied_bf16': (
    'qwen3',
    'llama3',
    Type.BF16,
    {'model_type': 'qwen3', 'head_dim': 24},
    {'attention.key_length': 24, 'attention.value_length': 24},
  ),
  'gemma3_tied_f16': (
    'gemma3',
    'gemma',
    Type.F16,
    {'model_type': 'gemma3_text'},
    {
      'attention.key_length': 24,
      'attention.value_length': 24,
      'attention.sliding_window': 64,
    },
  ),
  'granite_tied_f32': (
    'granite',
    'llama3',
    Type.F32,
    {
      'model_type': 'granite',
      'embedding_multiplier': 3.0,
      'attention_multiplier': 0.4,
      'residual_multiplier': 0.7,
      'logits_scaling': 1.3,
    },
    {
      'embedding_scale': 3.0,
      'attention.scale': 0.4,
      'residual_scale': 0.7,
      'logit_scale': 1.3,
    },
  ),
  'phi_f32': (
    'phi2',
    'llama3',
    Type.F32,
    {
      'model_type': 'phi',
      'num_key_value_heads': 4,
      'tie_word_embeddings': False,
    },
    {'rope.dimension_count': 8},
  ),
}


def save(root, case, *, kind=None, line_breaks=0.0, quantize='none', **more):
  """The base and a run of it; the base's file.

  Args:
    root: where to.
    case: of CASES.
    kind: of matrices, in place of the case's.
    line_breaks: see `family_models.say_line_breaks`.
    quantize: `base.quantize` of the run.
    **more: changes of the model.
  """
  architecture, family, own, changes, metadata = CASES[case]
  family_models.save(root / 'hf', family, **changes, **more)
  if line_breaks:
    family_models.say_line_breaks(root / 'hf', line_breaks)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    root / 'hf', dtype=torch.float32
  )
  # Rows that pad a matrix are not said, as those of a random model would be.
  tokens = len(family_models.FAMILIES[family].backend().get_vocab())
  with torch.no_grad():
    for module in (
      model.get_input_embeddings(),
      model.get_output_embeddings(),
    ):
      module.weight[tokens:] = 0
  path = root / 'base.gguf'
  gguf_models.write(
    path,
    architecture,
    model,
    metadata,
    kind=own if kind is None else kind,
    tokenizer=gguf_models.tokenizer(family, model.config.vocab_size),
  )
  trained_runs.write_run(root / 'run', path, quantize=quantize)
  return path


def settings(root, **gate) -> export_config.Config:
  """Settings of an export of a run of `save`."""
  found = export_config.Config(
    workdir=str(root / 'run'),
    gate=export_config.Gate(
      **{
        'questions': 12,
        'logits': 3,
        'sampled': 1000,
        'batch_size': 4,
        **gate,
      }
    ),
  )
  export_config.validate(found)
  return found
