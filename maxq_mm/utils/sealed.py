"""Files with a checksum: what is in one is looked at only if it is whole.

Such a file is a dict that torch's safe loader reads::

    KEY           the version of the format
    sha256        of ``content``
    content       uint8: what torch.save makes of the dict that the file is for
    state_dict    a sentence: tools that do not know the format fail on it
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, first_line


@dataclass(frozen=True)
class Format:
    """A kind of such files: ``name`` is what it is called, ``use`` what to do with one."""

    key: str
    version: int
    name: str
    use: str

    def seal(self, inner: dict) -> dict:
        """What is to be written for ``inner``."""
        buffer = io.BytesIO()
        torch.save(inner, buffer)
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        return {self.key: self.version, 'sha256': sha256(content), 'content': content,
                'state_dict': f'{self.name} of maxq_mm: {self.use}'}

    def open(self, stored: Mapping, path: str | Path) -> Any:
        """What was sealed; ``stored`` is what the file ``path`` holds, and has the key.

        Raises:
            InputError: of another version, or damaged.
        """
        version, content = stored[self.key], stored.get('content')
        if type(version) is not int or version != self.version:
            found = version if type(version) is int else f'of type {type(version).__name__}'
            raise InputError(f'{path} is {self.name} of another version than {self.version}: '
                             f'{found}')
        if not isinstance(content, Tensor) or content.dtype != torch.uint8 or content.dim() != 1:
            raise InputError(f'{path} is {self.name} without content')
        if stored.get('sha256') != sha256(content):
            raise InputError(f'{path} is damaged: its content does not have its checksum')
        try:
            # It needs none of mmengine's classes, so any torch reads it safely.
            return torch.load(io.BytesIO(content.numpy()), map_location='cpu', weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise self.unsound(path, error) from error

    def unsound(self, path: str | Path, error: Exception) -> InputError:
        """What to say of content that is whole, and wrong."""
        return InputError(f'{path} is not sound as {self.name}: {first_line(error)}')


def sha256(content: Tensor) -> str:
    return hashlib.sha256(content.contiguous().numpy()).hexdigest()


def other_format(stored: Mapping) -> str | None:
    """What a file is, and what to do with it, if it is one of these; else None."""
    said = stored.get('state_dict')
    return said if isinstance(said, str) else None
