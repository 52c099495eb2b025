"""How a tool runs: one line for what the user gave wrong, and files written whole or not at all."""

import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import InputError
from ..utils.files import save_file, save_text

# Of mmengine and mmcv, at every config that they read.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
USAGE_ERROR = 2


def run(main: Callable[[], None]) -> None:
    """Run a tool: an InputError becomes one line on stderr and exit code 2.

    So does a file that is not there. Being terminated is an exit like others: what is half written
    is removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except InputError as error:
        # mmengine's registry raises errors of a constructor anew, with the original as context.
        original = error.__context__
        again = isinstance(original, InputError) and not error.__suppress_context__
        _fail(original if again else error)
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        _fail(f'file not found: {error.filename}')


def _fail(error: object) -> None:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(USAGE_ERROR)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def check_not_itself(out: Path, source: Path) -> None:
    """InputError if ``out`` is the file ``source`` that a tool reads."""
    if out.exists() and out.samefile(source):
        raise InputError(f'{out} is the input itself: give another file to write')


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """InputError if ``path`` cannot be written in here."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise InputError(f'cannot write {path}: {reason}') from error


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint whole or not at all; InputError if it cannot be written."""
    with writing(path):
        save_file(checkpoint, path)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all; InputError if it cannot be written."""
    with writing(path):
        save_text(json.dumps(content, indent=1), path)
