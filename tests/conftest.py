"""Fixtures that tests of several layers share; GPUs are hidden from all but ``tests/gpu``."""

import json
import os
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope

from .running import ROOT

warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
for folder in ('tools', 'projects/nuclei'):
    sys.path.insert(0, str(ROOT / folder))


def pytest_addoption(parser) -> None:
    parser.addoption('--device', choices=('cuda', 'cpu'), default='cuda',
                     help='what tests/gpu runs on, as far as that can be on a CPU')


def pytest_configure(config) -> None:
    """Hide GPUs, before torch looks for them, from tests that compare with a CPU's results.

    ``pytest tests/gpu``, by itself, sees them.
    """
    asked = [Path(argument.split('::')[0]).resolve() for argument in config.args]
    alone = all((ROOT / 'tests/gpu') in (path, *path.parents) for path in asked)
    if not alone or config.getoption('--device') == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


@pytest.fixture(autouse=True)
def _mmdets_names() -> None:
    """No test finds the default scope that a model of another has left."""
    scope = DefaultScope.get_current_instance()
    if scope is not None and scope.scope_name != 'mmdet':
        init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A test, or a tool that it runs, may set torch's threads."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


class Golden:
    """What the method's reference implementation computed."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path, allow_pickle=False))
        meta = json.loads(str(self.arrays['meta']))
        self.masks = [case for case in meta if 'run' not in case]
        self.runs = {case['run']: case for case in meta if 'run' in case}

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): torch.from_numpy(array)
                for name, array in self.arrays.items() if name.startswith(prefix)}


@pytest.fixture(scope='session')
def golden() -> Golden:
    return Golden(ROOT / 'tests/data/maxq_golden.npz')


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A small sample data set: 8 training and 4 validation images of 64 pixels."""
    import make_shapes

    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes.make(root, train=8, val=4, size=64, seed=0)
    return root


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path):
    """Run a tool that must refuse; returns its one line of complaint."""

    def run(tool, *arguments):
        path = ROOT / (tool if '/' in tool else f'tools/{tool}')
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as exit, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            runpy.run_path(str(path), run_name='__main__')
        error = capsys.readouterr().err.strip()
        assert exit.value.code == 2, error
        assert error.startswith('error: ')
        assert '\n' not in error
        return error

    return run
