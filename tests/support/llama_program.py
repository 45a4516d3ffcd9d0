"""A llama.cpp server on a port of choice, as users run one.

python tests/support/llama_program.py FILE PORT
"""

import signal
import sys

import xllamacpp


def main(path: str, port: int) -> None:
  params = xllamacpp.CommonParams()
  params.model.path = path
  params.port = port
  params.n_ctx = 2048
  params.n_parallel = 4
  params.warmup = False
  params.verbosity = -1
  params.cache_ram_mib = 0
  params.cpuparams.n_threads = 1
  # Nothing is rounded to float16: answers are those of float32.
  params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
  params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  flash = xllamacpp.llama_flash_attn_type
  params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
  params.n_gpu_layers = 0
  server = xllamacpp.Server(params)
  print(server.listening_address, flush=True)
  signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
