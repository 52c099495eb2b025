"""What a GPU alone can show: ``pytest tests/gpu``, by itself. See ``--device`` for a dry run."""

import pytest
import torch


@pytest.fixture(scope='session', autouse=True)
def device(request) -> torch.device:
    wanted = request.config.getoption('--device')
    if wanted == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a GPU, and to be run by itself: pytest tests/gpu')
    return torch.device(wanted)


@pytest.fixture
def gpu(device) -> torch.device:
    """For what has no counterpart on a CPU."""
    if device.type != 'cuda':
        pytest.skip('needs a GPU')
    return device
