import pytest

from maxq_mm.functional import native


@pytest.fixture(params=['native', 'torch'])
def path(request, monkeypatch) -> str:
    """Both ways to a mask: compiled operators, and torch alone."""
    if request.param == 'torch':
        monkeypatch.setattr(native, 'available', lambda: False)
    else:
        assert native.available(), 'the C++ operators do not compile here'
    return request.param
