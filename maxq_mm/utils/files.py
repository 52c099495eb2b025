"""Checkpoint files, read by torch's safe loader, and files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from .errors import InputError, first_line


def load_file(path: str | Path) -> dict:
    """Read a checkpoint with torch's safe loader, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a checkpoint, cut short, or holding what the safe loader refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint not found: {path}')
    # torch < 2.6 cannot be told of mmengine's classes; there mmengine reads files like this, too.
    safe = torch.__version__ >= '2.6'
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=safe)
    except Exception as error:  # torch raises many kinds, from pickle to zip
        raise InputError(
            f'not a readable checkpoint: {path} ({first_line(error)})') from error
    if not isinstance(checkpoint, dict):
        raise InputError(f'not a checkpoint: {path} holds a {type(checkpoint).__name__}')
    return checkpoint


def save_file(checkpoint: dict, path: str | Path) -> None:
    """Write beside ``path``, then rename: what stood there is replaced whole or not at all."""
    with written_whole(path) as file:
        torch.save(checkpoint, file)


def save_text(text: str, path: str | Path) -> None:
    """The same for a text."""
    with written_whole(path) as file:
        file.write(text.encode())


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` at the end, if nothing went wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    beside = Path(name)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
