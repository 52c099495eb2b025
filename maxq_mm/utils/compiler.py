"""C++ libraries that are compiled on first use, with the machine's own compiler.

They are kept in the user's cache folder, one file for each source, machine and set of flags, and
checked before they are loaded: a file cut short would kill the process. What does not compile is
the caller's to replace.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from .errors import first_line

Loaded = TypeVar('Loaded')


class Unit(NamedTuple):
    """One source file and the flags it is compiled with."""

    source: Path
    flags: tuple[str, ...] = ()


def load(name: str, units: Sequence[Unit], loader: Callable[[Path], Loaded], *,
         headers: Sequence[Path] = (), flags: Sequence[str] = (), with_torch: bool = False
         ) -> Loaded:
    """Compile a library, or take it from the cache, and hand its file to ``loader``.

    Args:
        name: what the file is called.
        units: what is compiled, each with flags of its own.
        loader: takes the file, which may be gone once it has returned.
        headers: files that the units include.
        flags: of all units and the link.
        with_torch: whether the units include torch's headers.

    Returns:
        What ``loader`` returns.

    Raises:
        OSError: no compiler, or no space.
        RuntimeError: the compiler refuses; with its first error.
    """
    compiler = shlex.split(os.environ.get('CXX') or 'c++')
    parts = (*(file.read_text() for file in (*(unit.source for unit in units), *headers)),
             *(' '.join(unit.flags) for unit in units), *flags, platform.platform(), sys.version,
             torch.__version__ if with_torch else '')
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))  # noqa: PTH111
    library = root / 'maxq_mm' / f'{name}-{key}.so'
    if _is_whole(library):
        return loader(library)
    logging.getLogger('maxq_mm').warning(
        f'maxq_mm: compiling C++ ({name}), once on this machine (about 15 s)')
    folder = _folder(library.parent)
    try:
        built = folder / library.name
        includes, libraries = _torch_flags() if with_torch else ((), ())
        _compile(compiler, units, (*flags, *includes), libraries, built)
        loaded = loader(built)
        if folder.parent == library.parent:
            _keep(built, library)
        return loaded
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(library: Path) -> bool:
    """Whether the file ends with its own checksum."""
    if not library.is_file():
        return False
    content = library.read_bytes()
    size = hashlib.sha256().digest_size
    return content[-size:] == hashlib.sha256(content[:-size]).digest()


def _folder(parent: Path) -> Path:
    """A folder of its own to compile in: a compilation that was killed leaves no lock to others."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        warnings.warn(f'maxq_mm cannot keep its compiled operators ({error}); the next process '
                      'compiles them again', stacklevel=5)
        return Path(tempfile.mkdtemp(prefix='maxq_mm-'))


def _torch_flags() -> tuple[Sequence[str], Sequence[str]]:
    from torch.utils import cpp_extension  # slow to import

    return ([*(flag for path in cpp_extension.include_paths() for flag in ('-isystem', path)),
             f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}'],
            [*(f'-L{path}' for path in cpp_extension.library_paths()),
             '-lc10', '-ltorch_cpu', '-ltorch'])


def _compile(compiler: Sequence[str], units: Sequence[Unit], flags: Sequence[str],
             link: Sequence[str], library: Path) -> None:
    objects = [library.parent / f'{number}.o' for number in range(len(units))]
    commands = [(*compiler, '-fPIC', *flags, *unit.flags, '-c', str(unit.source), '-o', str(file))
                for unit, file in zip(units, objects, strict=True)]
    _run(commands)
    _run([(*compiler, '-shared', *flags, *map(str, objects), *link, '-o', str(library))])


def _run(commands: Sequence[Sequence[str]]) -> None:
    """Run commands side by side; the error is that of the first that fails."""
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        for process in running:
            said = process.communicate()[1]
            if process.returncode:
                errors = [line for line in said.splitlines() if 'error' in line.lower()]
                raise RuntimeError((errors or [said.strip() or f'{process.args[0]} failed'])[0])
    finally:
        for process in running:
            if process.poll() is None:  # others are of no use then
                process.kill()
                process.wait()
            process.stderr.close()


def _keep(built: Path, library: Path) -> None:
    """Put the file into the cache, whole or not at all."""
    content = built.read_bytes()
    beside = built.with_suffix('.kept')
    with beside.open('wb') as file:
        file.write(content + hashlib.sha256(content).digest())
        file.flush()
        os.fsync(file.fileno())
    beside.replace(library)


def say_fallback(what: str, error: Exception, instead: str, stacklevel: int = 4) -> None:
    """Warn that ``what`` could not be compiled, and of what happens instead."""
    warnings.warn(f'maxq_mm could not compile its {what} ({first_line(error)}); {instead}',
                  stacklevel=stacklevel)
