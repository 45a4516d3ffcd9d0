#!/usr/bin/env bash
# TPU VMs on Google Cloud: from nothing to a run, and away again.
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
            failed, until it has finished
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
  --yes               delete without asking
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

# The TPU VM's state, or nothing if there is none.
state() {
  "${tpu[@]}" tpu-vm describe "$name" "${where[@]}" \
    --format='value(state)' 2>/dev/null || true
}

request_state() {
  "${tpu[@]}" queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

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
    "${flags[@]}"
  [[ -z $dry_run ]] || return 0
  local now=''
  while [[ $now != ACTIVE ]]; do
    now=$(request_state)
    echo "$name: ${now:-asked for}"
    case $now in
      FAILED | SUSPENDED) return 1 ;;
      ACTIVE) ;;
      *) sleep "$poll" ;;
    esac
  done
}

copy() {
  local archive=vtokens.tar.gz root
  root=$(dirname "$0")/..
  [[ -n $dry_run ]] || archive=$(mktemp -d)/$archive
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run "${tpu[@]}" tpu-vm scp "$archive" "$name:vtokens.tar.gz" "${where[@]}" \
    --worker=all
  on_all "mkdir -p $home && tar -xzf vtokens.tar.gz -C $home"
  [[ -n $dry_run ]] || rm -r "$(dirname "$archive")"
}

install() {
  on_all "$home/launch/on_worker.sh install"
}

start() {
  on_all "$home/launch/on_worker.sh start $(quote "${command[@]}")"
}

# One line a worker: on, or the exit status of a run that has ended.
statuses() {
  "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --command="$home/launch/on_worker.sh status" 2>/dev/null || echo lost
}

delete_vm() {
  # A queued resource is deleted with its TPU VM, or it would go on to count.
  if [[ -n $(request_state) ]]; then
    run "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run "${tpu[@]}" tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

up() {
  local now=''
  [[ -n $dry_run ]] || now=$(state)
  case $now in
    READY) ;;
    '') create ;;
    *)
      # Only ever one that this script was told to replace: a preempted one.
      echo "$name is $now" >&2
      return 1
      ;;
  esac
  copy && install && start
}

keep() {
  if [[ -n $dry_run ]]; then
    up
    return
  fi
  local restarts=0 now found
  up || true
  while true; do
    sleep "$poll"
    now=$(state)
    if [[ $now == READY ]]; then
      found=$(statuses | sort -u)
      case $found in
        0) echo 'the run has finished' && return 0 ;;
        # Where only some have ended, the others are about to notice.
        on | *$'\n'on) continue ;;
      esac
    fi
    restarts=$((restarts + 1))
    if [[ $restarts -gt $max_restarts ]]; then
      echo "error: gave up after $max_restarts restarts" >&2
      return 1
    fi
    echo "restart $restarts: $name is ${now:-gone}"
    if [[ $now == READY ]]; then
      start || true
    else
      [[ -z $now && -z $(request_state) ]] || delete_vm || true
      up || true
    fi
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
