#!/bin/sh
# Make the environment in .venv (or the folder given) from constraints.txt. Running it again is
# quick, and finishes what an interrupted run left.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
stamp=$venv/made-from
wanted=$(cat constraints.txt setup.py tools/make_env.sh | cksum)
[ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && exit 0

python=$(command -v python3.11 || command -v python3) || {
    echo 'error: no python3 found; Python 3.11 is needed' >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "error: constraints.txt is for Python 3.11, and $python is another" >&2; exit 2; }

echo "setting up $venv"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
mmcv=$(grep '^mmcv==' constraints.txt)
others=$venv/others.txt
grep -v -e '^mmcv==' -e '^#' constraints.txt >"$others"

pip install --quiet -c constraints.txt torch setuptools wheel ninja
# Complete as it is: without --no-deps, opencv-python would come along.
pip install --quiet --no-deps -r "$others"

has_ops() { "$venv/bin/python" -c 'import mmcv.ops' 2>/dev/null; }
if ! has_ops; then
    echo "compiling $mmcv with its operators, once: about 10 minutes on 2 cores"
    install="install --quiet --no-deps --no-build-isolation"
    MMCV_WITH_OPS=1 pip $install "$mmcv"
    # pip keeps built wheels by source and not by torch version: one of another torch does not load.
    has_ops || MMCV_WITH_OPS=1 pip $install --force-reinstall --no-cache-dir "$mmcv"
    has_ops || { echo "error: $mmcv was built, but its operators do not load" >&2; exit 1; }
fi
pip install --quiet --no-deps --no-build-isolation -e .
echo "$wanted" >"$stamp"
