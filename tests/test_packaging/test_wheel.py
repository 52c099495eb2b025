"""The wheel, installed into an empty folder, has all that training from anywhere needs."""

import json
import os
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
import torch

from maxq_mm import satisfies

from ..running import ROOT

PACKED = 'maxq_mm', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'README.md', 'model-index.yml'


def pip(*arguments) -> None:
    subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet',
                    *map(str, arguments), '--no-deps', '--no-index'], check=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    source = tmp_path_factory.mktemp('source')  # setuptools writes into it
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, source)
    wheels, site = tmp_path_factory.mktemp('wheels'), tmp_path_factory.mktemp('site')
    pip('wheel', '--no-build-isolation', '--wheel-dir', wheels, source)
    pip('install', '--target', site, *wheels.glob('*.whl'))
    shutil.rmtree(source)  # nothing leads back to it
    return site


def python(site: Path, folder: Path, *arguments) -> str:
    """Run Python in ``folder`` with the installed wheel; returns what it printed."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
        env={**os.environ, 'PYTHONPATH': str(site), 'PYTHONWARNINGS': 'ignore',
             'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stdout
    return result.stdout


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob('*') if path.is_file()
            and not {'__pycache__', '.mim'} & set(path.relative_to(folder).parts)}


def test_holds_all_of_the_package(site):
    assert files(site / 'maxq_mm') == files(ROOT / 'maxq_mm')


def test_holds_configs_tools_and_index(site):
    mim = site / 'maxq_mm/.mim'
    assert not any(path.is_symlink() for path in site.rglob('*'))
    left_out = {Path('tools/benchmark.py'), Path('tools/make_env.sh')}
    wanted = {Path(folder) / path for folder in ('configs', 'tools')
              for path in files(ROOT / folder)} - left_out
    assert files(mim) == {Path('model-index.yml'), *wanted}
    assert os.access(mim / 'tools/dist_train.sh', os.X_OK)


def test_description_leads_nowhere_else(site):
    metadata = Parser().parsestr(next(site.glob('*.dist-info/METADATA')).read_text())
    description = metadata.get_payload()
    assert 'maxq_mm' in description
    targets = re.findall(r'\]\(([^)]*)\)', description)
    assert targets
    assert all(target.startswith('https://') for target in targets)


def test_trains_one_step_from_anywhere(site, shapes, tmp_path):
    (tmp_path / 'own.py').write_text(
        "_base_ = 'maxq_mm::quickstart_mask_rcnn_r18.py'\n"
        "maxq = _base_.custom_hooks[0]\n"
        "maxq.update(pattern='1:4', ramp=None)\n"
        "custom_hooks = [maxq]\n"
        "train_cfg = dict(max_epochs=1)\n")
    where = python(site, tmp_path, '-c', 'import maxq_mm; print(maxq_mm.__file__)')
    assert Path(where.strip()) == site / 'maxq_mm/__init__.py'
    python(site, tmp_path, '-m', 'maxq_mm', 'train', 'own.py', '--data-root', shapes,
           '--work-dir', 'run')
    images = json.loads((shapes / 'annotations/train.json').read_text())['images']
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 1
    assert len(images) == 8  # one batch
    assert len(checkpoint['maxq']['raw']) == 19
    assert all(satisfies(checkpoint['state_dict'][name], '1:4')
               for name in checkpoint['maxq']['raw'])
