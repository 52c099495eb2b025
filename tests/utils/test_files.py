"""Files are written whole or not at all, and what is no file stays what it is."""

import os
import resource
import socket
import stat
import threading
from pathlib import Path

import pytest
import torch

from maxq_mm.utils.errors import InputError
from maxq_mm.utils.files import (
    check_folder,
    check_writable,
    load_file,
    save_file,
    save_text,
    written_whole,
)

BIG = dict(a=torch.arange(100_000.))


@pytest.fixture
def small_disk():
    """No file may grow above 20 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path, small_disk):
    path = tmp_path / 'a.pth'
    save_file(dict(a=1), path)
    with pytest.raises(OSError, match='File too large'):
        save_file(BIG, path)
    assert load_file(path) == dict(a=1)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / 'disk').mkdir()
    target, link = tmp_path / 'disk/file.txt', tmp_path / 'link.txt'
    link.symlink_to(target)
    for text in ('new', 'newer'):  # also where the target is not there yet
        save_text(text, link)
        assert link.is_symlink()
        assert target.read_text() == text
    assert [path.name for path in (tmp_path / 'disk').iterdir()] == ['file.txt']


def test_a_pipe_gets_the_content_and_stays(tmp_path):
    pipe, read = tmp_path / 'pipe', []
    os.mkfifo(pipe)
    check_writable(pipe)  # does not wait for a reader
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    save_text('content', pipe)
    reader.join()
    assert read == [b'content']
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_nothing_reaches_a_pipe_of_what_goes_wrong(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    with pytest.raises(KeyError), written_whole(pipe) as file:
        file.write(b'half')
        raise KeyError
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_devices_stay_devices():
    before = Path('/dev/null').stat()
    save_file(BIG, '/dev/null')
    assert stat.S_ISCHR(Path('/dev/null').stat().st_mode)
    assert Path('/dev/null').stat().st_rdev == before.st_rdev
    with pytest.raises(OSError, match='No space left on device'):
        save_file(BIG, '/dev/full')
    assert stat.S_ISCHR(Path('/dev/full').stat().st_mode)


def test_folders_and_sockets_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        save_text('x', tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'socket'))
        for write in (check_writable, lambda path: save_text('x', path)):
            with pytest.raises(OSError, match='neither a file nor a stream'):
                write(tmp_path / 'socket')
    assert stat.S_ISSOCK((tmp_path / 'socket').stat().st_mode)


@pytest.mark.parametrize('place', ['file/a', 'file/b/a', '/proc/a', '/proc/b/a', 'loop', '.'])
def test_what_cannot_be_written_is_found_before(tmp_path, place):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'loop').symlink_to('loop')
    before = sorted(tmp_path.rglob('*'))
    for write in (check_writable, lambda path: save_text('x', path)):
        with pytest.raises(OSError, match=r'\[Errno'):
            write(tmp_path / place)
    if place not in ('.', 'loop'):
        with pytest.raises(OSError, match=r'\[Errno'):
            check_folder(tmp_path / place)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_check_leaves_nothing(tmp_path):
    for place in ('a.txt', 'new/a.txt', 'new/newer/a.txt'):
        check_writable(tmp_path / place)
        check_folder(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_checkpoint_is_the_same_and_not_held_in_memory(tmp_path):
    path = tmp_path / 'large.pth'
    save_file(dict(a=torch.ones(25_000_000), b='text'), path)  # 100 MB

    def held() -> int:
        """Bytes of this process's own memory, without those of files that it has mapped."""
        with Path('/proc/self/status').open() as status:
            return 1024 * next(int(line.split()[1]) for line in status
                               if line.startswith('RssAnon'))

    before = held()
    mapped = load_file(path, mapped=True)
    assert mapped['a'].shape == (25_000_000, )
    assert mapped['a'][-1] == 1
    assert mapped['b'] == 'text'
    assert held() - before < 20_000_000
    mapped['a'][0] = 2  # a copy of a page, not the file
    assert load_file(path)['a'][0] == 1


def test_old_checkpoints_cannot_be_mapped_but_read(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(BIG, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_file(path, mapped=True)['a'], BIG['a'])


@pytest.mark.parametrize('mapped', [False, True])
def test_cut_short(tmp_path, mapped):
    path = tmp_path / 'a.pth'
    save_file(BIG, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match='not a readable checkpoint'):
        load_file(path, mapped)
