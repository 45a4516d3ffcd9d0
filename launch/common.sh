# What the launch scripts share; sourced, not run.
# shellcheck shell=bash

# error MESSAGE: says what is wrong, and ends the script with 2.
error() {
  echo "error: $1 (see ${0##*/} --help)" >&2
  exit 2
}

# check NAME VALUE PATTERN WHAT: VALUE must match the pattern.
check() {
  [[ $2 =~ ^($3)$ ]] || error "$1: '$2', expected $4"
}

# run COMMAND...: runs it, or prints it where $dry_run is set.
run() {
  if [[ -n ${dry_run:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# quote WORD...: the words as one line for another shell.
quote() {
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}
