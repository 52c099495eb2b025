"""Checkpoint files, read by torch's safe loader, and files that are written whole or not at all."""

import errno
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from .errors import InputError, first_line


def load_file(path: str | Path, mapped: bool = False) -> dict:
    """Read a checkpoint with torch's safe loader, onto the CPU.

    ``mapped`` reads names, types and shapes now, and a tensor's values when they are used: to look
    into a large file without holding it in memory. It must not be written to meanwhile.

    Raises:
        FileNotFoundError: no such file.
        InputError: no file, not a checkpoint, cut short, or holding what the safe loader refuses.
    """
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise InputError(f'checkpoint not found: {path} is a folder or a device')
        raise FileNotFoundError(f'checkpoint not found: {path}')
    # torch < 2.6 cannot be told of mmengine's classes; there mmengine reads files like this, too.
    safe = torch.__version__ >= '2.6'
    try:
        # What torch wrote before 1.6 is no zip file and cannot be mapped.
        checkpoint = torch.load(path, map_location='cpu', weights_only=safe,
                                mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds, from pickle to zip
        raise InputError(
            f'not a readable checkpoint: {path} ({first_line(error)})') from error
    if not isinstance(checkpoint, dict):
        raise InputError(f'not a checkpoint: {path} holds a {type(checkpoint).__name__}')
    return checkpoint


def save_file(checkpoint: dict, path: str | Path) -> None:
    """Write a checkpoint as :func:`written_whole` does."""
    with written_whole(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_text(text: str, path: str | Path) -> None:
    """The same for a text."""
    with written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` at the end, if nothing went wrong.

    What ``path`` links to is replaced, not the link. A pipe or a character device gets the content
    at the end, too, and stays what it is.

    Raises:
        OSError: it cannot be written; a folder, a socket or a disk never is.
    """
    target = Path(os.path.realpath(path))
    if _is_stream(target, path):
        content = io.BytesIO()
        yield content
        with Path(path).open('wb') as stream:
            stream.write(content.getbuffer())
    else:
        with replacing(target) as beside, beside.open('wb') as file:
            yield file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path``, to be written by its name, that takes its place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name[:200]}.')
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """See that :func:`written_whole` can write ``path``, and leave nothing behind.

    Raises:
        OSError: it cannot.
    """
    target = Path(os.path.realpath(path))
    if _is_stream(target, path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    else:
        check_folder(target.parent)


def check_folder(path: str | Path) -> None:
    """See that files can be written in a folder, which may not be there yet, and leave nothing.

    Raises:
        OSError: they cannot.
    """
    folder = Path(os.path.realpath(path))
    while not os.path.lexists(folder):
        folder = folder.parent
    tempfile.TemporaryFile(dir=folder).close()


def _is_stream(target: Path, path: str | Path) -> bool:
    """Whether to write into what is there; OSError if it can neither be that nor be replaced."""
    try:
        mode = Path(path).stat().st_mode  # ``target`` of /dev/stdout may be a nameless pipe
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, 'neither a file nor a stream', str(path))
    return not stat.S_ISREG(mode)
