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
