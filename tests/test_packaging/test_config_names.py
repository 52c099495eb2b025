import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from maxq_mm.engine.config_names import config_path, resolve_config_names

from ..running import ROOT

NAMES = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


def by_name(name: str, folder: Path) -> Config:
    """A config of the user's own, somewhere, that builds on a ready one."""
    path = folder / 'own.py'
    path.write_text(f"_base_ = 'maxq_mm::{name}'\n")
    return Config.fromfile(path)


@pytest.mark.parametrize('name', NAMES)
def test_name_is_the_file(name, tmp_path):
    assert by_name(name, tmp_path).to_dict() == Config.fromfile(ROOT / 'configs' / name).to_dict()


def test_own_settings_come_on_top(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("_base_ = 'maxq_mm::maxq_mask_rcnn_r50.py'\n"
                    "maxq = _base_.maxq\nmaxq.update(pattern='1:8')\ncustom_hooks = [maxq]\n")
    cfg = Config.fromfile(path)
    assert cfg.custom_hooks[0].pattern == '1:8'
    assert cfg.default_scope == 'mmdet'
    assert '_scope_' not in cfg.custom_hooks[0]


def test_unknown_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no config maxq_mm::maxq_mask\.py; .*'
                       r'maxq_mask_rcnn_r50\.py'):
        by_name('maxq_mask.py', tmp_path)
    with pytest.raises(FileNotFoundError):
        config_path('_base_')


def test_other_packages_resolve_as_before(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n")
    assert Config.fromfile(path).model.type == 'MaskRCNN'
    path.write_text("_base_ = 'nowhere::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n")
    with pytest.raises(AssertionError, match='nowhere'):
        Config.fromfile(path)


def test_resolving_twice_is_resolving_once():
    ours = Config._get_cfg_path
    resolve_config_names()
    assert Config._get_cfg_path is ours


def test_index_lists_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = [model for file in index['Import']
              for model in yaml.safe_load((ROOT / file).read_text())['Models']]
    assert sorted(Path(model['Config']).name for model in models) == NAMES
    assert all(model['Name'] == Path(model['Config']).stem for model in models)


def test_tools_by_name(tmp_path):
    result = subprocess.run([sys.executable, '-m', 'maxq_mm', 'fold', 'nothing.pth', 'out.pth'],
                            cwd=tmp_path, text=True, capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == 'error: checkpoint not found: nothing.pth'
    result = subprocess.run([sys.executable, '-m', 'maxq_mm', 'folds'], cwd=tmp_path, text=True,
                            capture_output=True, check=False)
    assert result.returncode == 2
    assert 'fold, ' in result.stderr
