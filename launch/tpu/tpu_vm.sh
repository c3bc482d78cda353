#!/usr/bin/env bash
# A run on every worker of a TPU slice, by gcloud's ssh. JAX finds the other workers by itself.
#   launch/tpu/tpu_vm.sh [--dry_run] setup  NAME ZONE              this repository and its environment, on every worker
#   launch/tpu/tpu_vm.sh [--dry_run] start  NAME ZONE [flags]      launch.train with these flags, in the background
#   launch/tpu/tpu_vm.sh [--dry_run] watch  NAME ZONE              what worker 0 says
#   launch/tpu/tpu_vm.sh [--dry_run] status NAME ZONE              the last line of every worker, and whether it runs
#   launch/tpu/tpu_vm.sh [--dry_run] stop   NAME ZONE              end the step, save, end; start goes on from there
# --dry_run prints the commands and runs none. PYTHON is the interpreter that makes the environment (3.11 or later).
set -euo pipefail
DRY=
if [ "${1:-}" = --dry_run ]; then
  DRY=1
  shift
fi
USAGE="usage: launch/tpu/tpu_vm.sh [--dry_run] setup|start|watch|status|stop NAME ZONE [flags of launch.train]"
ACTION=${1:?$USAGE} NAME=${2:?$USAGE} ZONE=${3:?$USAGE}
shift 3
PYTHON=${PYTHON:-python3.11}

run() {
  if [ -z "$DRY" ]; then
    "$@"
    return
  fi
  local word words=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] && words+=("$word") || words+=("${word@Q}")
  done
  echo "${words[*]}"
}

on() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" "--worker=$1" --command "$2"
}

case $ACTION in
  setup)
    cd "$(dirname "$0")/../.."
    run git archive --prefix=creason/ --output=/tmp/creason.tar HEAD
    run gcloud compute tpus tpu-vm scp /tmp/creason.tar "$NAME:" "--zone=$ZONE" --worker=all
    on all "tar -xf creason.tar && cd creason && $PYTHON -m venv .venv-tpu && .venv-tpu/bin/python -m pip install --quiet -c constraints.txt -e '.[tpu]'"
    ;;
  start)
    FLAGS=$([ $# -eq 0 ] || printf ' %q' "$@")
    # Compiled programs are kept, so that the same command given again does not compile them again.
    on all "cd creason && export JAX_COMPILATION_CACHE_DIR=\$PWD/compiled && { nohup setsid .venv-tpu/bin/python -m launch.train$FLAGS >> train.log 2>&1 < /dev/null & echo \$! > train.pid; }"
    ;;
  watch) on 0 "tail -n 50 -F creason/train.log" ;;
  status) on all "cd creason && tail -n 1 train.log && { ps -o etime= -p \$(cat train.pid) || echo 'not running'; }" ;;
  stop) on all "kill -TERM \$(cat creason/train.pid)" ;;
  *)
    echo "error: $ACTION: is none of setup, start, watch, status, stop" >&2
    exit 2
    ;;
esac
