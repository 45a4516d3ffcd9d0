#!/usr/bin/env bash
# Runs a command as several processes of one program on this machine.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'USAGE'
usage: launch/local_multiprocess.sh [options] -- COMMAND...

  launch/local_multiprocess.sh --processes 2 --devices 4 -- \
    python -m vtokens.train --config configs/x.py

Each process is given JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID. The output of the first one is shown as it is; what the others
say (only when something is wrong) begins with their number. SIGTERM and SIGINT
go on to all processes.

  --processes N  how many (default 2)
  --devices N    simulated CPU devices of each process; without it each process
                 has one of this machine's GPUs, in order
  --port PORT    of the first process (default: a free one)
  --dry-run      print the commands, run nothing
  --help         this text

Exit status: 0 if all processes end with 0, or else that of the first that does
not.
USAGE
}

processes=2 devices='' port='' dry_run='' command=()
parse 'processes devices port' 'dry-run' "$@"
number='[1-9][0-9]*'
check --processes "$processes" "$number" 'a number above 0'
[[ -z $devices ]] || check --devices "$devices" "$number" 'a number above 0'
[[ -z $port ]] || check --port "$port" "$number" 'a number above 0'
[[ ${#command[@]} -gt 0 ]] || error 'no command after --'

if [[ -z $port ]]; then
  port=$(python3 -c 'import socket; s = socket.socket()
s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

settings() {
  echo "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
  echo "JAX_NUM_PROCESSES=$processes"
  echo "JAX_PROCESS_ID=$1"
  if [[ -n $devices ]]; then
    echo 'JAX_PLATFORMS=cpu'
    local flag="--xla_force_host_platform_device_count=$devices"
    echo "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flag"
  else
    echo "CUDA_VISIBLE_DEVICES=$1"
  fi
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    mapfile -t environment < <(settings "$i")
    run env "${environment[@]}" "${command[@]}"
  done
  exit 0
fi

children=() printers=()
# shellcheck disable=SC2317,SC2329  # called by the traps
pass_on() {
  kill -s "$1" "${children[@]}" 2>/dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((i = 0; i < processes; i++)); do
  mapfile -t environment < <(settings "$i")
  if [[ $i -eq 0 ]]; then
    env "${environment[@]}" "${command[@]}" &
    children+=($!)
  else
    exec {lines}> >(trap '' INT TERM; exec sed -u "s/^/[$i] /" >&2)
    printers+=($!)
    env "${environment[@]}" "${command[@]}" >&"$lines" 2>&1 &
    children+=($!)
    exec {lines}>&-
  fi
done

status=0
for child in "${children[@]}"; do
  # A signal ends `wait`, but not the child.
  while code=0; wait "$child" || code=$?; kill -0 "$child" 2>/dev/null; do :; done
  [[ $status -ne 0 ]] || status=$code
done
for printer in "${printers[@]}"; do
  wait "$printer" || true
done
exit "$status"
