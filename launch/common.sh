# What the launch scripts share; sourced, not run.
# shellcheck shell=bash

# error MESSAGE: says what is wrong, and ends the script with 2.
error() {
  echo "error: $1 (see ${0##*/} --help)" >&2
  exit 2
}

# check NAME VALUE PATTERN WHAT: VALUE must match the pattern.
check() {
  # Else a range of letters has others of the language in it.
  local LC_ALL=C
  [[ $2 =~ ^($3)$ ]] || error "$1: '$2', expected $4"
}

# parse VALUES FLAGS ARGUMENT...: options of the two lists of names become
# variables (--max-restarts 3: max_restarts=3; --spot: spot=1), and what follows
# -- becomes $command.
parse() {
  local values=" $1 " flags=" $2 " option
  shift 2
  while [[ $# -gt 0 && $1 != -- ]]; do
    option=${1#--}
    if [[ $1 == --help || $1 == -h ]]; then
      usage && exit 0
    elif [[ $1 == --* && $values == *" $option "* ]]; then
      [[ $# -ge 2 ]] || error "$1 needs a value"
      declare -g "${option//-/_}=$2"
      shift 2
    elif [[ $1 == --* && $flags == *" $option "* ]]; then
      declare -g "${option//-/_}=1"
      shift
    else
      error "unknown argument '$1'"
    fi
  done
  # shellcheck disable=SC2034  # read by the scripts
  command=("${@:2}")
}

# confirm WHAT NAME: asks for the name before something is deleted, unless $yes
# or $dry_run is set.
confirm() {
  local answer
  if [[ -z ${yes:-} && -z ${dry_run:-} ]]; then
    read -r -p "delete the $1 $2? its name again: " answer
    [[ $answer == "$2" ]] || error "'$answer' is not $2; nothing deleted"
  fi
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
