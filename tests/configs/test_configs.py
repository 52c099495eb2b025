import json
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner

from maxq_mm import MaxQHook, satisfies
from maxq_mm.nn.select import select

FOLDER = Path(__file__).parents[2] / 'configs'
NAMES = sorted(path.relative_to(FOLDER).with_suffix('').as_posix()
               for path in FOLDER.glob('**/*_rcnn_*.py'))
COCO = [name for name in NAMES if name.endswith('r50') or '_r50_' in name]


def read(name: str) -> Config:
    cfg = Config.fromfile(FOLDER / f'{name}.py')
    cfg.model.backbone.init_cfg = None  # no download
    init_default_scope('mmdet')
    return cfg


def test_the_set_is_complete():
    expected = {f'{method}_{detector}_rcnn_r50{pattern}'
                for detector in ('faster', 'mask')
                for method, pattern in [('maxq', p) for p in ('', '_1x4', '_2x8', '_1x16')]
                + [(m, '') for m in ('dense', 'asp', 'fade', 'srste', 'ste')]}
    assert set(COCO) == expected


@pytest.mark.parametrize('name', NAMES)
def test_builds(name):
    cfg = read(name)
    model = MODELS.build(cfg.model)
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    hooks = [hook for hook in hooks if isinstance(hook, MaxQHook)]
    assert len(hooks) == ('dense_' not in name)
    drops = [epoch for scheduler in cfg.param_scheduler
             for epoch in scheduler.get('milestones', [cfg.train_cfg.max_epochs])]
    for hook in hooks:
        assert hook.settings.ramp(min(drops) - 1) == 0, 'the ramp is not over before the first drop'
        selection = select(model, hook.settings)
        in_backbone = {name: reason for name, reason in selection.skipped.items()
                       if name.startswith('backbone')}
        assert in_backbone == {'backbone.conv1': '3 input channels, not divisible by '
                               f'{next(iter(selection.sparse.values())).m}'}
        assert len(selection.sparse) == (52 if name in COCO else 19)
        assert all(name.startswith('backbone') for name in selection.sparse)


@pytest.mark.parametrize('name', COCO)
def test_methods_differ_in_the_hook_alone(name):
    cfg, base = read(name), read(f'maxq_{"mask" if "mask" in name else "faster"}_rcnn_r50')
    for key in ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'train_dataloader'):
        assert cfg[key] == base[key]
    settings = {} if name.startswith('dense') else dict(cfg.custom_hooks[0])
    expected = dict(base.custom_hooks[0])
    method = name.split('_')[0]
    if method != 'maxq':
        expected.update(axes=(), ramp=None)
    if method in ('ste', 'asp'):
        expected.update(decay=0.)
    if method == 'fade':
        expected['ramp'] = dict(base.custom_hooks[0].ramp, fade=True)
    if method == 'asp':
        expected.update(fixed=True)
        assert cfg.load_from.startswith('work_dirs/dense_')
    if '_r50_' in name:
        expected.update(pattern=name.rsplit('_', 1)[1].replace('x', ':'))
    assert settings == ({} if method == 'dense' else expected)


@pytest.fixture(scope='module')
def coco(shapes, tmp_path_factory) -> Path:
    """The shapes in COCO's layout, under COCO's 80 class names."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    names = CocoDataset.METAINFO['classes']
    for split in ('train', 'val'):
        data = json.loads((shapes / f'annotations/{split}.json').read_text())
        data['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        for annotation in data['annotations']:
            annotation['category_id'] = 1 + annotation['id'] % 80
        (root / f'annotations/instances_{split}2017.json').write_text(json.dumps(data))
        (root / f'{split}2017').symlink_to(shapes / split)
    return root


@pytest.mark.parametrize('name', ['maxq_faster_rcnn_r50', 'maxq_mask_rcnn_r50'])
def test_one_step_of_each_family(name, coco, tmp_path):
    from maxq_mm import cli
    cfg = read(name)
    cli.use_data_root(cfg, coco)
    cli.check_data(cfg, 'train', 'val')
    assert cfg.model.roi_head.bbox_head.num_classes == 80
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.update(indices=2, filter_cfg=None)
    next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale = (64, 64)
    cfg.model.train_cfg.rcnn.sampler.num = 16
    cfg.custom_hooks[0].update(ramp=None)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None,
               param_scheduler=None, work_dir=str(tmp_path),
               log_level='ERROR')
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert runner.iter == 1
    loss = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(loss) == 1
    assert loss[0] > 0
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())
    stored = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    for key, raw in stored['maxq']['raw'].items():
        assert not torch.equal(raw, before[key]), f'{key} did not learn'
        assert satisfies(stored['state_dict'][key], '2:4')
    assert len(stored['maxq']['raw']) == 52
    assert torch.equal(stored['state_dict']['backbone.conv1.weight'],
                       before['backbone.conv1.weight']), 'the stem is frozen'
