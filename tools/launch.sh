#!/usr/bin/env bash
# Start a tool in several processes; called by dist_train.sh and dist_test.sh.
#
#     tools/launch.sh TOOL K ARGUMENT_1 ... ARGUMENT_K PROCESSES [further arguments]
set -eu
here=$(dirname "$0")
tool=$1 files=$2
shift 2
processes=${*:files+1:1}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of processes comes after $files file name(s), got '$processes'" >&2
    exit 2
fi
if [ -n "${PORT:-}${NNODES:-}" ]; then
    meet=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
          --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
else
    meet=(--standalone)  # any free port
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" --nproc_per_node="$processes" \
    "$here/$tool" "${@:1:files}" --launcher pytorch "${@:files+2}"
