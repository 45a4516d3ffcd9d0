"""Runs a llama.cpp server in a process of its own, which llama.cpp may abort.

python -m vtokens.exports.gguf.llama_server FILE CONTEXT served|exact

It prints its address and ends when its standard input ends. Needs xllamacpp.
"""

import sys

READY = 'vtokens: llama.cpp listens at '


def main(path: str, context: int, mode: str) -> None:
  """Serves a file.

  Args:
    path: the file.
    context: most tokens of prompt and answer.
    mode: `served` for llama.cpp's own settings; `exact` to round nothing to
      float16 in cache and attention, on the CPU.
  """
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path = path
  params.n_ctx = context
  params.n_parallel = 1
  params.warmup = False
  params.verbosity = -1
  params.cache_ram_mib = 0
  # Return the hidden states before the head for every token.
  params.embedding = True
  params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
  params.embd_normalize = -1
  if mode == 'exact':
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers = 0
  server = xllamacpp.Server(params)
  print(READY + server.listening_address, flush=True)
  sys.stdin.read()


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
