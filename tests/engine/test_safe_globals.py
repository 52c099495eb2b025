import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

import maxq_mm  # noqa: F401  (registers what the safe loader may read)


def test_log_history_round_trip(tmp_path):
    history = HistoryBuffer([1., 2.], [1, 3])
    torch.save(dict(history=history, value=np.float32(3), table=np.arange(3)), tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['history'].mean() == history.mean()
    assert loaded['history'].statistics('max') == 2
    assert loaded['table'].tolist() == [0, 1, 2]


class LooksUp:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


class Calls:
    def __reduce__(self):
        import os
        return os.system, ('true', )


@pytest.mark.parametrize('hostile', [
    LooksUp(HistoryBuffer, '__init__'), LooksUp(HistoryBuffer, '__globals__'),
    LooksUp(np.ndarray, 'tofile'), Calls()])
def test_hostile_code_is_refused(tmp_path, hostile):
    torch.save(dict(state_dict={}, extra=hostile), tmp_path / 'a.pth')
    with pytest.raises((pickle.UnpicklingError, AttributeError),
                       match='look up|[Uu]nsupported'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
