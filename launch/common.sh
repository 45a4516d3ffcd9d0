# Functions of the launch scripts; sourced, not run.
# shellcheck shell=bash

# error MESSAGE: prints the message and exits with 2.
error() {
  echo "error: $1 (see ${0##*/} --help)" >&2
  exit 2
}

# check NAME VALUE PATTERN WHAT: VALUE must match the pattern.
check() {
  # In other locales a range of letters contains more letters.
  local LC_ALL=C
  [[ $2 =~ ^($3)$ ]] || error "$1: '$2', expected $4"
}

# parse VALUES FLAGS ARGUMENT...: sets a variable for each option in the two
# lists of names (--max-restarts 3: max_restarts=3; --spot: spot=1). The words
# after -- become $command.
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

# confirm WHAT NAME: asks the user to type the name before a deletion, unless
# $yes or $dry_run is set.
confirm() {
  local answer
  if [[ -z ${yes:-} && -z ${dry_run:-} ]]; then
    read -r -p "delete the $1 $2? its name again: " answer
    [[ $answer == "$2" ]] || error "'$answer' is not $2; nothing deleted"
  fi
}

# run COMMAND...: runs the command, or prints it if $dry_run is set.
run() {
  if [[ -n ${dry_run:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# quote WORD...: prints the words as one line for another shell.
quote() {
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}
