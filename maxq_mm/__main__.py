"""The tools by name, from anywhere: ``python -m maxq_mm train CONFIG`` is ``tools/train.py``."""

import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).parent / '.mim/tools'


def main() -> None:
    names = sorted(path.stem for path in TOOLS.glob('*.py'))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f'usage: python -m maxq_mm TOOL ..., with one of the tools {", ".join(names)}\n'
              f'They lie in {TOOLS}', file=sys.stderr)
        sys.exit(2)
    tool = TOOLS / f'{sys.argv.pop(1)}.py'
    sys.argv[0] = str(tool)
    sys.path[0] = str(TOOLS)  # as for a script, in place of the current folder
    runpy.run_path(str(tool), run_name='__main__')


if __name__ == '__main__':
    main()
