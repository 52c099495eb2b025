"""A small detector, trained with the tools as a user would, for the tests of the tools."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/quickstart_mask_rcnn_r18.py'
# Tested on the few images that it learns by heart, so that there is a score to compare.
SETTINGS = [
    'train_dataloader.batch_size=4', 'train_cfg.max_epochs=40', 'train_cfg.val_interval=40',
    'param_scheduler.0.end=5', 'param_scheduler.1.T_max=40', 'custom_hooks.0.ramp.end=30',
    'default_hooks.checkpoint.interval=20',
    *(f'{split}_dataloader.dataset.{setting}' for split in ('val', 'test')
      for setting in ('ann_file=annotations/train.json', 'data_prefix.img=train/')),
]


def run_tool(*arguments, code: int = 0) -> str:
    """Run a tool as a user does; returns what it printed, stderr included."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'})
    assert result.returncode == code, result.stdout
    return result.stdout


@pytest.fixture(scope='session')
def options(shapes) -> list[str]:
    """What follows the config in every call."""
    annotations = shapes / 'annotations/train.json'
    return ['--data-root', str(shapes), '--cfg-options', *SETTINGS,
            *(f'{split}_evaluator.ann_file={annotations}' for split in ('val', 'test'))]


@pytest.fixture(scope='session')
def trained(options, tmp_path_factory) -> Path:
    """The work dir of a training run: epoch_20.pth in the ramp, epoch_40.pth fully N:M."""
    work_dir = tmp_path_factory.mktemp('trained')
    run_tool('tools/train.py', CONFIG, '--work-dir', work_dir, *options)
    return work_dir


@pytest.fixture(scope='session')
def folded(trained) -> Path:
    out = trained / 'folded.pth'
    run_tool('tools/fold.py', trained / 'epoch_40.pth', out, '--strict')
    return out


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path):
    """Run a tool that must refuse; returns its one line of complaint."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as exit, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        error = capsys.readouterr().err.strip()
        assert exit.value.code == 2, error
        assert error.startswith('error: ')
        assert '\n' not in error
        return error

    return run
