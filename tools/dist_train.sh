#!/usr/bin/env bash
# Train in several processes: one a GPU, or on CPUs where there is none.
#
#     tools/dist_train.sh CONFIG PROCESSES [what tools/train.py takes]
#
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmdet's script. PYTHON names
# another interpreter.
exec "$(dirname "$0")/launch.sh" train.py 1 "$@"
