#!/usr/bin/env bash
# Creates TPU VMs on Google Cloud, runs a command on them, and deletes them.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'USAGE'
usage: launch/tpu_vm.sh ACTION --name NAME --zone ZONE [options] [-- COMMAND...]

  launch/tpu_vm.sh up --name spring --zone us-west4-a --type v5litepod-16 \
    --spot --queued -- python -m vtokens.train \
    --config configs/mistral_7b_instruct.py --config.workdir=gs://bucket/run

actions:
  create    make the TPU VM (--queued: ask for it, and wait until it is there)
  copy      this repository, as git tracks it, to all workers
  install   Python and vtokens on all workers
  run       start COMMAND on all workers, detached; the same COMMAND continues
            a run that was stopped
  up        create, copy, install and run, as far as not done yet
  keep      like up, and again whenever the TPU VM was preempted or the run
            failed, until it has finished; deletes and replaces, without asking,
            a TPU VM that is PREEMPTED or TERMINATED and a queued resource that
            is SUSPENDED or FAILED, and waits in any other state
  status    of the TPU VM and of the run on each worker
  logs      follow the output of a worker (--worker, default 0)
  stop      ask the run to save its state and end; the TPU VM stays (end keep
            first, which would start it again)
  delete    the TPU VM; asks for its name first, unless --yes

options:
  --project PROJECT   default: that of gcloud's configuration
  --type TYPE         e.g. v4-32, v5litepod-16, v5p-32, v6e-64 (create, up, keep)
  --version VERSION   of the TPU VM's software; default: by type
  --spot              cheaper, and may be preempted
  --queued            by a queued resource, which waits for capacity
  --worker N          for logs
  --max-restarts N    for keep (default 20)
  --poll SECONDS      for keep and --queued (default 60)
  --yes               delete (the action) without asking
  --dry-run           print every command, run none
  --help              this text

COMMAND's work directory has to be one that all workers see, such as
gs://bucket/run.
USAGE
}

action=${1:-}
case $action in
  --help | -h) usage && exit 0 ;;
  create | copy | install | run | up | keep | status | logs | stop | delete) ;;
  *) error "unknown action '$action'" ;;
esac
shift

name='' zone='' project='' type='' version='' spot='' queued='' yes=''
worker=0 max_restarts=20 poll=60 dry_run=''
command=()
parse 'name zone project type version worker poll max-restarts' \
  'spot queued yes dry-run' "$@"

check --name "$name" '[a-z]([-a-z0-9]*[a-z0-9])?' \
  'small letters, digits and hyphens, a letter first'
check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-west4-a'
check --worker "$worker" '[0-9]+' 'a number'
check --poll "$poll" '[1-9][0-9]*' 'seconds'
check --max-restarts "$max_restarts" '[0-9]+' 'a number'
case $action in
  create | up | keep)
    check --type "$type" 'v[0-9]+[a-z]*-[0-9]+' \
      'an accelerator type such as v5litepod-16'
    ;;
esac
case $action in
  run | up | keep)
    [[ ${#command[@]} -gt 0 ]] || error "$action: no command after --"
    ;;
  *)
    [[ ${#command[@]} -eq 0 ]] || error "$action takes no command"
    ;;
esac

if [[ -z $version ]]; then
  # https://docs.cloud.google.com/tpu/docs/runtimes
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version='tpu-ubuntu2204-base' ;;
  esac
fi

where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
tpu=(gcloud compute tpus)
# On the TPU VMs, relative to the home directory.
home=vtokens-run

on_all() {
  run "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# describe KIND FIELD: prints the state of the TPU VM or of the queued resource;
# none if it does not exist; unknown if gcloud fails, because a failure of the
# network or of a token must not look like a deleted TPU VM.
describe() {
  local answer
  if answer=$("${tpu[@]}" "$1" describe "$name" "${where[@]}" \
    --format="value($2)" 2>&1); then
    # Drops other output of gcloud, such as warnings.
    answer=$(grep -xE '[A-Z_]+' <<< "$answer" | tail -n 1) || true
    echo "${answer:-unknown}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo none
  else
    echo "$answer" >&2
    echo unknown
  fi
}

state() {
  describe tpu-vm state
}

request_state() {
  describe queued-resources state.state
}

# Callers use the functions below with && and ||, which disable errexit.

create() {
  local flags=()
  [[ -z $spot ]] || flags+=(--spot)
  if [[ -z $queued ]]; then
    run "${tpu[@]}" tpu-vm create "$name" "${where[@]}" \
      --accelerator-type="$type" --version="$version" "${flags[@]}"
    return
  fi
  run "${tpu[@]}" queued-resources create "$name" --node-id="$name" \
    "${where[@]}" --accelerator-type="$type" --runtime-version="$version" \
    "${flags[@]}" || return
  [[ -z $dry_run ]] || return 0
  local now=''
  while [[ $now != ACTIVE ]]; do
    now=$(request_state)
    echo "$name: $now"
    case $now in
      FAILED | SUSPENDED) return 1 ;;
      ACTIVE) ;;
      *) sleep "$poll" ;;
    esac
  done
}

copy() {
  local archive=vtokens.tar.gz root code=0
  root=$(dirname "$0")/..
  [[ -n $dry_run ]] || archive=$(mktemp -d)/$archive
  {
    run git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
      run "${tpu[@]}" tpu-vm scp "$archive" "$name:vtokens.tar.gz" \
        "${where[@]}" --worker=all &&
      on_all "mkdir -p $home && tar -xzf vtokens.tar.gz -C $home"
  } || code=$?
  [[ -n $dry_run ]] || rm -r "$(dirname "$archive")"
  return "$code"
}

install() {
  on_all "$home/launch/on_worker.sh install"
}

start() {
  on_all "$home/launch/on_worker.sh start $(quote "${command[@]}")"
}

# Prints a line for each worker: on, or the exit status of an ended run.
statuses() {
  "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --command="$home/launch/on_worker.sh status" 2>/dev/null || echo lost
}

delete_vm() {
  # A queued resource is deleted with its TPU VM, or it would still count.
  case $(request_state) in
    none) run "${tpu[@]}" tpu-vm delete "$name" "${where[@]}" --quiet ;;
    unknown)
      echo "error: is there a queued resource $name? nothing deleted" >&2
      return 1
      ;;
    *)
      run "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force \
        --quiet
      ;;
  esac
}

# set_up STATE: creates the TPU VM if needed and starts the run. If STATE is
# neither READY nor none, it deletes the TPU VM first; only keep does that, when
# the TPU VM is lost anyway.
set_up() {
  if [[ $1 != READY && $1 != none ]]; then
    delete_vm || return
  fi
  [[ $1 == READY ]] || create || return
  copy && install && start
}

up() {
  local now=none
  [[ -n $dry_run ]] || now=$(state)
  case $now in
    READY | none) set_up "$now" ;;
    *)
      echo "$name is $now" >&2
      return 1
      ;;
  esac
}

keep() {
  if [[ -n $dry_run ]]; then
    up
    return
  fi
  # started: this script has started COMMAND on the present TPU VM. Otherwise a
  # status may belong to an earlier command, and copying or installing may have
  # failed.
  local restarts=-1 started='' now found
  while true; do
    now=$(state)
    [[ $now != none ]] || now=$(request_state)
    found=''
    case $now in
      READY) [[ -z $started ]] || found=$(statuses | sort -u) ;;
      none | PREEMPTED | TERMINATED | SUSPENDED | FAILED) started='' ;;
      *)
        # In creation, in repair or unknown: the run may still be on.
        echo "$name is $now"
        found=on
        ;;
    esac
    case $found in
      0) echo 'the run has finished' && return 0 ;;
      # If only some workers have ended, the others will soon notice.
      on | *$'\n'on) sleep "$poll" && continue ;;
    esac
    restarts=$((restarts + 1))
    if [[ $restarts -gt $max_restarts ]]; then
      echo "error: gave up after $max_restarts restarts" >&2
      return 1
    fi
    [[ $restarts -eq 0 ]] || echo "restart $restarts: $name is ${now/none/gone}"
    if [[ -n $started ]]; then
      start || started=''
    elif set_up "$now"; then
      started=1
    fi
    sleep "$poll"
  done
}

case $action in
  create) create ;;
  copy) copy ;;
  install) install ;;
  run) start ;;
  up) up ;;
  keep) keep ;;
  status)
    run "${tpu[@]}" tpu-vm describe "$name" "${where[@]}" --format='value(state)'
    on_all "$home/launch/on_worker.sh status"
    ;;
  logs)
    run "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker="$worker" \
      --command="tail -n 100 -F $home/run.log"
    ;;
  stop)
    on_all "$home/launch/on_worker.sh stop"
    ;;
  delete)
    confirm 'TPU VM' "$name"
    delete_vm
    ;;
esac
