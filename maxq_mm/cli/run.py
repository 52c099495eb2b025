"""How a tool runs: one line for what the user gave wrong, and files written whole or not at all."""

import argparse
import errno
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ..utils.errors import InputError, first_line
from ..utils.files import check_folder, check_writable, save_file, save_text

# Of mmengine and mmcv, at every config that they read.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
USAGE_ERROR = 2
# What mmengine says of a type that nobody registered, after its name and that of the registry.
_NO_SUCH_TYPE = ' registry. Please check whether'
# What a disk says, whoever writes to it.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def run(main: Callable[[], None]) -> None:
    """Run a tool: an InputError becomes one line on stderr and exit code 2.

    So does a file that is not there, a full disk, and a type in a config that does not exist.
    Other errors are bugs, and keep their traceback. Being terminated is an exit like others: what
    is half written is removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except InputError as error:
        _fail(_message(error))
    except KeyError as error:
        if _NO_SUCH_TYPE not in str(error):
            raise
        _fail(str(error.args[0]).split(_NO_SUCH_TYPE)[0] + ' registry: is its name right, and '
              'what defines it in custom_imports?')
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        _fail(f'file not found: {error.filename}')
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        _fail(f'cannot write {error.filename or "a file"}: {error.strerror}')


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or may not be written to."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def _message(error: InputError) -> str:
    """What the user gave wrong, in one line."""
    original = error.__context__
    # Some of mmengine's registries raise errors of a constructor anew, in longer words.
    if isinstance(original, InputError) and not error.__suppress_context__ and (
            str(original) in str(error)):
        error = original
    lines = str(error).strip().splitlines()
    worker = f'{InputError.__module__}.{InputError.__qualname__}: '
    if len(lines) > 1 and lines[-1].startswith(worker):
        return lines[-1].removeprefix(worker)  # torch's dataloaders hand on the whole traceback
    return ' '.join(line.strip() for line in lines) or type(error).__name__


def _fail(message: str) -> None:
    with suppress(OSError):
        sys.stdout.flush()  # into a file or a pipe, too, the error comes last
    print(f'error: {message}', file=sys.stderr)
    sys.exit(USAGE_ERROR)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.strip().removeprefix('-').isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, got {text}')
    return int(text)


def check_device(name: str) -> None:
    """InputError unless torch can compute on this device."""
    try:
        torch.zeros(1, device=name).item()  # which 'meta' has none of
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f'--device {name}: {first_line(error)}') from error


def check_outputs(*outputs: Path | None, inputs: Iterable[Path | str | None] = (),
                  folders: Iterable[Path | None] = ()) -> None:
    """See, before the work, that what a tool is to write can be written; leaves nothing behind.

    None stands for an output or input that was not asked for.

    Raises:
        InputError: it cannot, or would take the place of an input or of another output.
    """
    wanted = [Path(path) for path in outputs if path is not None]
    given = [Path(path) for path in inputs if path is not None]
    for number, path in enumerate(wanted):
        if any(_same(path, other) for other in given):
            raise InputError(f'{path} is the input itself: give another file to write')
        if any(_same(path, other) for other in wanted[:number]):
            raise InputError(f'{path} would be written twice: give another file')
        with writing(path):
            check_writable(path)
    for folder in folders:
        if folder is not None:
            with writing(folder):
                check_folder(folder)


def _same(path: Path, other: Path) -> bool:
    """Whether two names are of one file; what is no file, such as /dev/null, takes many."""
    if path.is_file() and other.is_file():
        return path.samefile(other)
    return path.resolve() == other.resolve() and not path.exists()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """InputError if ``path`` cannot be written in here."""
    try:
        yield
    except OSError as error:
        raise InputError(f'cannot write {path}: {error.strerror or first_line(error)}') from error


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint whole or not at all; InputError if it cannot be written."""
    with writing(path):
        save_file(checkpoint, path)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all; InputError if it cannot be written."""
    with writing(path):
        save_text(json.dumps(content, indent=1), path)
