#!/usr/bin/env bash
# Runs a command on a cluster made by XPK (github.com/AI-Hypercomputer/xpk).
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"

usage() {
  cat <<'USAGE'
usage: launch/gke/xpk.sh ACTION --name NAME --cluster CLUSTER [options] \
  [-- COMMAND...]

  launch/gke/xpk.sh submit --name spring --cluster tpus --type v5litepod-16 \
    --image REGISTRY/vtokens:tpu -- python -m vtokens.train \
    --config configs/mistral_7b_instruct.py --config.workdir=gs://bucket/run

actions:
  submit  create the workload; it is restarted when it fails or is preempted,
          and continues from its last checkpoint
  status  of the cluster's workloads
  delete  the workload; asks for its name first, unless --yes

options:
  --image IMAGE       with vtokens; see launch/Dockerfile.tpu (submit)
  --type TYPE         of a slice, e.g. v5litepod-16 (submit)
  --slices N          how many (default 1)
  --zone ZONE         default: that of gcloud's configuration
  --project PROJECT   likewise
  --max-restarts N    (default 20)
  --yes               delete without asking
  --dry-run           print the command, do not run it
  --help              this text

With several slices --config.mesh.shape of COMMAND needs a DATA that is a
multiple of their number, such as '(2,-1,1)' for --slices 2.
USAGE
}

action=${1:-}
case $action in
  --help | -h) usage && exit 0 ;;
  submit | status | delete) ;;
  *) error "unknown action '$action'" ;;
esac
shift

name='' cluster='' image='' type='' slices=1 zone='' project=''
max_restarts=20 yes='' dry_run=''
command=()
parse 'name cluster image type slices zone project max-restarts' \
  'yes dry-run' "$@"

check --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
  'up to 40 small letters, digits and hyphens, a letter first'
check --cluster "$cluster" '[a-z]([-a-z0-9]*[a-z0-9])?' 'the name of a cluster'
check --slices "$slices" '[1-9][0-9]*' 'a number above 0'
check --max-restarts "$max_restarts" '[0-9]+' 'a number'

[[ -z $zone ]] || check --zone "$zone" '[a-z0-9]([-a-z0-9]*[a-z0-9])?' \
  'a zone such as us-west4-a'
[[ -z $project ]] || check --project "$project" \
  '([a-z0-9.-]+:)?[a-z0-9]([-a-z0-9]*[a-z0-9])?' 'the id or number of a project'

where=(--cluster="$cluster")
[[ -z $zone ]] || where+=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")

case $action in
  submit)
    [[ ${#command[@]} -gt 0 ]] || error 'submit: no command after --'
    check --image "$image" '[A-Za-z0-9][-A-Za-z0-9._/:@]*' \
      'an image such as REGISTRY/vtokens:tpu'
    check --type "$type" 'v[0-9]+[a-z]*-[0-9]+' 'e.g. v5litepod-16'
    run xpk workload create --workload="$name" "${where[@]}" \
      --tpu-type="$type" --num-slices="$slices" --docker-image="$image" \
      --max-restarts="$max_restarts" --command="$(quote "${command[@]}")"
    ;;
  status) run xpk workload list "${where[@]}" ;;
  delete)
    confirm 'workload' "$name"
    run xpk workload delete --workload="$name" "${where[@]}"
    ;;
esac
