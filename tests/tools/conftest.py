"""A small detector, trained with the tools as a user would, for the tests of the tools."""

from pathlib import Path

import pytest

from ..running import run_tool

CONFIG = 'configs/quickstart_mask_rcnn_r18.py'
# Tested on the few images that it learns by heart, so that there is a score to compare.
SETTINGS = [
    'train_dataloader.batch_size=4', 'train_cfg.max_epochs=40', 'train_cfg.val_interval=40',
    'param_scheduler.0.end=5', 'param_scheduler.1.T_max=40', 'custom_hooks.0.ramp.end=30',
    'default_hooks.checkpoint.interval=20',
    *(f'{split}_dataloader.dataset.{setting}' for split in ('val', 'test')
      for setting in ('ann_file=annotations/train.json', 'data_prefix.img=train/')),
]


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
