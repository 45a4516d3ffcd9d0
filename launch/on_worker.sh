#!/usr/bin/env bash
# Commands that launch/tpu_vm.sh runs on each worker, in its copy of vtokens.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'USAGE'
usage: launch/on_worker.sh install | start COMMAND... | status | stop

  install  Python and vtokens with its TPU packages, in .venv
  start    COMMAND, detached; output in run.log, exit status in run.status;
           nothing if it is on already
  status   one word: none, on, or the exit status of a run that has ended
  stop     SIGTERM to the run, which saves its state and ends
USAGE
}

on() {
  [[ -e run.pid && ! -e run.status ]] && kill -0 "$(cat run.pid)" 2>/dev/null
}

case ${1:-} in
  install)
    # The images' Python is too old for vtokens.
    python3 -m pip install --user --quiet uv
    ~/.local/bin/uv venv --quiet --python 3.12 --allow-existing .venv
    ~/.local/bin/uv pip install --quiet --python .venv -e '.[gcs]' 'jax[tpu]'
    ;;
  start)
    shift
    [[ $# -gt 0 ]] || { usage >&2 && exit 2; }
    if on; then
      # For example, an earlier try may have reached only some workers.
      if printf '%q ' "$@" | cmp -s - run.command 2> /dev/null; then
        echo 'on already'
        exit 0
      fi
      echo 'error: a run is on already' >&2
      exit 1
    fi
    # First, since later lines may fail and these files are from an earlier run.
    rm -f run.status run.pid
    if [[ -e .venv/bin/activate ]]; then
      # shellcheck disable=SC1091
      source .venv/bin/activate
    fi
    # shellcheck disable=SC2016  # for the shell that is started
    setsid bash -c '"$@" & child=$!
      trap "kill -TERM $child" TERM
      while code=0; wait $child || code=$?; kill -0 $child 2>/dev/null; do :; done
      echo $code > run.status.partial && mv run.status.partial run.status
    ' run "$@" >> run.log 2>&1 < /dev/null &
    echo $! > run.pid
    printf '%q ' "$@" > run.command
    ;;
  status)
    if [[ -e run.status ]]; then
      cat run.status
    elif on; then
      echo on
    elif [[ -e run.pid ]]; then
      echo lost
    else
      echo none
    fi
    ;;
  stop)
    if on; then
      # A later `start` of the same command must not take this for its run.
      rm -f run.command
      kill -TERM "$(cat run.pid)"
    fi
    ;;
  --help | -h) usage ;;
  *) usage >&2 && exit 2 ;;
esac
