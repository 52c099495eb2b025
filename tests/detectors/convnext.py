"""A small ConvNeXt (arXiv 2201.03545) for mmdet's detectors.

mmdet takes this backbone from mmpretrain, which needs a torchvision built for the very torch that
is installed; this one has the same kinds of layers.
"""

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Depthwise 7x7 convolution, then two linear layers over the channels, scaled and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pointwise1 = nn.Linear(channels, 4 * channels)
        self.pointwise2 = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = self.pointwise2(nn.functional.gelu(self.pointwise1(y))) * self.scale
        return x + y.movedim(-1, 1)


@MODELS.register_module()
class SmallConvNeXt(BaseModule):
    """Four stages of ``depths`` blocks and ``channels``, strides 4 to 32."""

    def __init__(self, depths: tuple[int, ...], channels: tuple[int, ...], init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.downsample, self.stages = nn.ModuleList(), nn.ModuleList()
        for before, after, depth in zip((3, *channels), channels, depths, strict=False):
            stride = 4 if before == 3 else 2
            conv = nn.Conv2d(before, after, stride, stride)
            norm = nn.Identity() if before == 3 else ChannelNorm(before)
            self.downsample.append(nn.Sequential(norm, conv))
            self.stages.append(nn.Sequential(*(Block(after) for _ in range(depth))))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
            outputs.append(x)
        return tuple(outputs)
