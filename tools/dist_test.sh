#!/usr/bin/env bash
# Test in several processes: one a GPU, or on CPUs where there is none.
#
#     tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [what tools/test.py takes]
#
# Environment variables as for tools/dist_train.sh.
exec "$(dirname "$0")/launch.sh" test.py 2 "$@"
