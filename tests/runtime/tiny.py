"""A detector without mmdet, quickly traced; configs of files to serve from import it."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

CLASSES = ('disc', 'box')


@MODELS.register_module()
class TinyHead(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features):
        return tuple(self.conv(x) for x in features)


@MODELS.register_module()
class TinyDetector(BaseModel):
    """Four numbers of each of two maps in place of detections; the head's layer is used twice."""

    def __init__(self, channels: int, head: dict) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.head = MODELS.build(head)
        self.last = nn.Linear(channels, 4)

    def extract_feat(self, inputs):
        x = F.max_pool2d(F.relu(self.stem(inputs)), 3, 2, 1)
        return x, self.body(x)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.head(self.extract_feat(inputs))
        return [self.last(x.mean((2, 3))) for x in maps]


def config(**changes) -> dict:
    """What a file to serve from holds, and what it does not need."""
    return {**dict(
        default_scope='mmengine', custom_imports=dict(imports=['tests.runtime.tiny']),
        model=dict(type='TinyDetector', channels=32, head=dict(type='TinyHead', channels=32)),
        train_cfg=dict(max_epochs=3),
        test_dataloader=dict(dataset=dict(type='Wrapper', dataset=dict(
            type='Images', ann_file='secret.json', data_root='/secret', pipeline=[
                dict(type='Resize', scale=(64, 96)), dict(type='Pack')])))), **changes}
