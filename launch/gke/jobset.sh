#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, as a JobSet.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../common.sh"

usage() {
  cat <<'USAGE'
usage: launch/gke/jobset.sh ACTION --name NAME [options] [-- COMMAND...]

  launch/gke/jobset.sh submit --name spring --image REGISTRY/vtokens:tpu \
    --accelerator tpu-v5-lite-podslice --topology 4x4 --chips-per-host 4 \
    -- python -m vtokens.train --config configs/mistral_7b_instruct.py \
    --config.workdir=gs://bucket/run

actions:
  submit  create the JobSet; pods that fail or are preempted are replaced, all
          together, and the run continues from its last checkpoint
  logs    follow the output of the first process
  status  of the JobSet and its pods
  delete  the JobSet and its pods; asks for its name first, unless --yes

options:
  --image IMAGE         with vtokens; see launch/Dockerfile.tpu (submit)
  --accelerator LABEL   cloud.google.com/gke-tpu-accelerator of the node pool:
                        tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice,
                        tpu-v6e-slice (submit)
  --topology TOPOLOGY   of a slice, e.g. 4x4 or 2x2x4 (submit)
  --chips-per-host N    TPU chips of a node (default 4)
  --slices N            how many slices (default 1)
  --namespace NAME      default: that of kubectl's context
  --service-account NAME   of the pods, e.g. one that may write to the bucket
  --max-restarts N      of the whole set (default 20)
  --spot                on spot nodes
  --yes                 delete without asking
  --dry-run             print the manifest and every command, run none
  --help                this text

With several slices --config.mesh.shape of COMMAND needs a DATA that is a
multiple of their number, such as '(2,-1,1)' for --slices 2.

The cluster needs JobSet (https://jobset.sigs.k8s.io).
USAGE
}

action=${1:-}
case $action in
  --help | -h) usage && exit 0 ;;
  submit | logs | status | delete) ;;
  *) error "unknown action '$action'" ;;
esac
shift

name='' image='' accelerator='' topology='' chips_per_host=4 slices=1
namespace='' service_account='' max_restarts=20 spot='' yes='' dry_run=''
command=()
parse 'name image accelerator topology chips-per-host slices namespace service-account max-restarts' \
  'spot yes dry-run' "$@"

# Names of pods contain it and have at most 63 characters.
check --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
  'up to 40 small letters, digits and hyphens, a letter first'
check --chips-per-host "$chips_per_host" '[1-8]' 'a number from 1 to 8'
# Without a leading 0, which YAML reads as another base.
check --slices "$slices" '[1-9][0-9]{0,4}' 'a number from 1 to 99999'
check --max-restarts "$max_restarts" '0|[1-9][0-9]{0,8}' \
  'a number from 0 to 999999999'
[[ -z $namespace ]] || check --namespace "$namespace" \
  '[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?' \
  'up to 63 small letters, digits and hyphens'
[[ -z $service_account ]] || check --service-account "$service_account" \
  '[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?' \
  'up to 253 small letters, digits, hyphens and dots'

kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=(--namespace="$namespace")

# Prints a YAML string; JSON strings are valid YAML.
yaml() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

# Prints a word of a command. Kubernetes replaces $(NAME) by values and $$ by $.
command_word() {
  yaml "${1//\$/\$\$}"
}

# check_word WORD: fails if YAML would change a word of the command.
check_word() {
  local LC_ALL=C
  # Control characters, and YAML's line breaks U+0085, U+2028, U+2029.
  local refused=$'[\x01-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]'
  [[ ! $1 =~ $refused ]] || error \
    "submit: a line break or control character in the command: $(printf %q "$1")"
}

manifest() {
  local hosts=$1 word
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$name")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          backoffLimit: 0
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          template:
            spec:
              restartPolicy: Never
              # To save a checkpoint when the node is taken away.
              terminationGracePeriodSeconds: 120
YAML
  if [[ -n $service_account ]]; then
    echo "              serviceAccountName: $(yaml "$service_account")"
  fi
  cat <<YAML
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(yaml "$accelerator")
                cloud.google.com/gke-tpu-topology: $(yaml "$topology")
YAML
  if [[ -n $spot ]]; then
    echo '                cloud.google.com/gke-spot: "true"'
  fi
  cat <<YAML
              containers:
                - name: vtokens
                  image: $(yaml "$image")
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
                  command:
YAML
  for word in "${command[@]}"; do
    echo "                    - $(command_word "$word")"
  done
}

case $action in
  submit)
    [[ ${#command[@]} -gt 0 ]] || error 'submit: no command after --'
    check --image "$image" '[A-Za-z0-9][-A-Za-z0-9._/:@]*' \
      'an image such as REGISTRY/vtokens:tpu'
    check --accelerator "$accelerator" 'tpu-[-a-z0-9]+' \
      'a label such as tpu-v5-lite-podslice'
    check --topology "$topology" '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' \
      'e.g. 4x4 or 2x2x4'
    for word in "${command[@]}"; do
      check_word "$word"
    done
    chips=$((${topology//x/ * }))
    [[ $((chips % chips_per_host)) -eq 0 ]] ||
      error "--topology: $chips chips, no multiple of $chips_per_host a host"
    text=$(manifest $((chips / chips_per_host)))
    if [[ -n $dry_run ]]; then
      echo "$text"
      echo '---'
      run "${kubectl[@]}" create -f -
    else
      "${kubectl[@]}" create -f - <<< "$text"
    fi
    ;;
  logs)
    run "${kubectl[@]}" logs --follow --tail=100 \
      "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0,jobset.sigs.k8s.io/job-index=0"
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods \
      "--selector=jobset.sigs.k8s.io/jobset-name=$name"
    ;;
  delete)
    confirm 'JobSet' "$name"
    run "${kubectl[@]}" delete jobset "$name"
    ;;
esac
