"""A llama.cpp server in a process of its own, which it may take down.

python -m vtokens.exports.gguf.llama_server FILE CONTEXT served|exact

Says where it listens, and ends when its standard input does. Needs xllamacpp.
"""

import sys

READY = 'vtokens: llama.cpp listens at '


def main(path: str, context: int, mode: str) -> None:
  """Serves a file.

  Args:
    path: of the file.
    context: most tokens of prompt and answer.
    mode: `served` for llama.cpp's own settings; `exact` for a cache and an
      attention that round nothing to f16, on the CPU.
  """
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path = path
  params.n_ctx = context
  params.n_parallel = 1
  params.warmup = False
  params.verbosity = -1
  params.cache_ram_mib = 0
  # Hidden states before the head, of every token.
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
