import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from maxq_mm.runtime import memory


@pytest.mark.parametrize('size', [(3, 5, 7, 2), (2, 64, 150, 151), (0, 4, 4, 4)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8])
def test_is_what_torch_gives(size, dtype):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = memory.empty(size, dtype=dtype, memory_format=memory_format)
        expected = torch.empty(size, dtype=dtype, memory_format=memory_format)
        assert (found.shape, found.dtype, found.stride()) == (size, dtype, expected.stride())
        assert (found.fill_(3) == 3).all()


def test_advises_large_ones_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, '_advise', lambda: lambda *args: calls.append(args))
    memory.empty(1000)
    assert not calls
    large = memory.empty(2 << 20)
    (begin, length, _), = calls
    assert begin % memory.mmap.PAGESIZE == 0
    assert 0 <= begin - large.data_ptr() < memory.mmap.PAGESIZE
    assert begin + length == large.data_ptr() + large.nbytes


def test_without_the_system_call(monkeypatch):
    monkeypatch.setattr(memory, '_advise', lambda: None)
    assert memory.empty(3 << 20, dtype=torch.float32).shape == (3 << 20, )


LARGE = (1, 2, 1024, 1024)  # 8 MiB


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, '_free', {})


@pytest.mark.parametrize('size', [(3, 5, 7, 2), (2, 64, 150, 151), (0, 4, 4, 4), (1 << 20, 2)])
def test_a_result_is_what_torch_gives(size):
    for memory_format in (torch.contiguous_format, torch.channels_last)[:len(size) - 1]:
        found = memory.result(size, memory_format)
        expected = torch.empty(size, memory_format=memory_format)
        assert (found.shape, found.dtype) == (size, torch.float32)
        assert found.stride() == expected.stride()
        assert not found._is_view()
        assert (found.fill_(3) == 3).all()


def test_a_result_that_nobody_has_is_used_again():
    first = memory.result(LARGE)
    place = first.data_ptr()
    del first
    assert memory.result((2, 2, 900, 1024)).data_ptr() != place  # too large for it
    assert memory.result((1, 2, 1000, 1024)).data_ptr() == place
    assert memory.result((1, 1, 1024, 1024)).data_ptr() != place  # half of it: too small
    small = memory.result((1, 64, 8, 8))
    del small
    assert {block.nbytes for block in memory._free.values()} >= {8 << 20}
    assert all(block.nbytes >= memory._LARGE for block in memory._free.values())


@pytest.mark.parametrize('held', [
    lambda x: x[0], lambda x: x.numpy(), lambda x: x.detach(), lambda x: x.untyped_storage(),
    lambda x: torch.from_dlpack(x), lambda x: x.permute(0, 2, 3, 1).numpy()[0]])
def test_a_result_that_somebody_has_stays(held):
    tensor = memory.result(LARGE).fill_(1)
    place, kept = tensor.data_ptr(), held(tensor)
    del tensor
    assert memory.result(LARGE).fill_(2).data_ptr() != place
    assert sum(block.nbytes for block in memory._free.values()) == 8 << 20
    del kept
    assert len(memory._free) == 2


def test_so_much_waits_at_most(monkeypatch):
    monkeypatch.setattr(memory, '_KEPT', 20 << 20)
    tensors = [memory.result(LARGE) for _ in range(5)]
    places = [tensor.data_ptr() for tensor in tensors]
    while tensors:
        del tensors[0]
    assert list(memory._free) == places[3:]


def test_threads_get_memory_of_their_own():
    def use(number):
        for i in range(20):
            tensor = memory.result(LARGE).fill_(number * 100 + i)
            assert (tensor == number * 100 + i).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert memory._free


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_result_after_a_fork():
    held, free = memory.result(LARGE).fill_(1), memory.result(LARGE)
    del free
    child = os.fork()
    if child == 0:
        other = memory.result(LARGE)
        other.numpy()[:] = 2
        os._exit(0 if held.numpy()[0, 0, 0, 0] == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (held == 1).all()
