"""Running the tools as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_tool(*arguments, code: int = 0) -> str:
    """Run a tool as a user does; returns what it printed, stderr included."""
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}
    env.pop('PYTHONUNBUFFERED', None)
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, env=env)
    assert result.returncode == code, result.stdout
    return result.stdout
