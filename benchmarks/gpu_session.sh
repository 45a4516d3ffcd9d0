#!/usr/bin/env bash
# Measures in 8 minutes on one GPU what only a GPU can tell.
#
#     pip install -r benchmarks/requirements.txt -e . 'jax[cuda12]'
#     benchmarks/gpu_session.sh OUT
#
# Each part has a time limit of its own, writes its figures to OUT while it runs,
# and has its output in OUT/log.txt. Run again, it does the parts that have not
# ended well. The most important parts come first.
#
#   LIMIT=480   seconds for all parts
#   PYTHON      the interpreter
#   TRIAL=1     tiny models and one passage, also without a GPU
set -u
[ $# -eq 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
limit=${LIMIT:-480}
# A second run finds the compiled programs of the first.
export JAX_COMPILATION_CACHE_DIR="$out/compiled"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
missed=0

# part NAME SECONDS SCRIPT ARGUMENT...
part() {
  local name=$1 most=$2 began=$SECONDS left=$((limit - SECONDS)) status
  shift 2
  [ -e "$out/$name.done" ] && return
  [ "$left" -lt "$most" ] && most=$left
  if [ "$most" -lt 5 ]; then
    echo "$name: no time left" | tee -a "$out/log.txt"
    missed=1
    return
  fi
  echo "== $name: $*" >> "$out/log.txt"
  timeout -k 10 "$most" "$python" "$@" >> "$out/log.txt" 2>&1
  status=$?
  [ $status -eq 0 ] && touch "$out/$name.done" || missed=1
  echo "$name: status $status, $((SECONDS - began)) s of $most" |
    tee -a "$out/log.txt"
}

step() { # step NAME SECONDS MODEL PASSAGES CONTENDERS [FLAG...]
  local name=$1 most=$2 model=$3 passages=$4 list=$5
  shift 5
  part "$name" "$most" benchmarks/train_step.py --model "$model" \
    --dtype bfloat16 --repeats 3 --passages "$passages" --contenders "$list" \
    --json "$out/$name.json" "$@"
}

if [ -n "${TRIAL:-}" ]; then
  part kernels 200 benchmarks/kernel_values.py --interpret --first 1 \
    --json "$out/kernels.json"
  part mistral_5 200 benchmarks/train_step.py --model tiny --passages 1 \
    --repeats 1 --contenders split:2,official:2 --json "$out/mistral_5.json"
  part moe 200 benchmarks/train_step.py --model tiny-moe --passages 1 \
    --repeats 1 --contenders split:2,official:2 --json "$out/moe.json"
  part hybrid 200 benchmarks/train_step.py --model tiny-hybrid --passages 1 \
    --repeats 1 --contenders split:2,official:2 --json "$out/hybrid.json"
  part unrolled 200 benchmarks/train_step.py --model tiny --passages 1 \
    --repeats 1 --contenders split:2 --noscan_layers --json "$out/unrolled.json"
  part decoding 200 benchmarks/answering.py --model tiny --repeats 1 \
    --batch 2 --prefix 32 --new 4 --out "$out/decoding.json"
  exit $missed
fi

part kernels 60 benchmarks/kernel_values.py --json "$out/kernels.json"
# The memory and time of the unsplit step and of PyTorch, and the best batch.
step mistral_5 150 mistral-7b 5 \
  packed:16:32:64,split:16,unsplit:16,official:16,peft:16 \
  --trace "$out/traces"
step moe_qwen3 70 qwen3-30b-a3b-12l 5 packed:16,official:16
step hybrid 60 qwen3.5-27b-16l 5 packed:16,official:16
step moe_gpt_oss 60 gpt-oss-20b-12l 5 packed:16,official:16
part decoding 60 benchmarks/answering.py --model llama-3.2-3b \
  --dtype bfloat16 --repeats 3 --out "$out/decoding.json"
# Without copies of weights out of the layers' stack.
step mistral_unrolled 70 mistral-7b 5 packed:16:32 --noscan_layers
step mistral_1_3 80 mistral-7b 1,3 packed:16,official:16
step qwen2_1_5b 40 qwen2.5-1.5b 5 packed:16,official:16
step llama_3b 40 llama-3.2-3b 5 packed:16,official:16
# XLA also joins the weights of products of one input. Not here.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_dot_merger_threshold_mb=0"
step mistral_apart 70 mistral-7b 5 packed:16:32 --noscan_layers
exit $missed
