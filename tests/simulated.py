"""A GPU that is not there: tensors on ``meta`` that nothing may wait for, or mix with others."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device('meta')
# What hands the host values, or sizes that hang on values.
WAITING = {'_local_scalar_dense', 'equal', 'is_nonzero', 'item', 'masked_select', 'nonzero',
           'unique_consecutive', '_unique2', 'unique_dim'}


class Simulated(TorchDispatchMode):
    """Counts operators that compute, and raises AssertionError for one that a GPU has to be waited
    for: a value or a copy on the host, a shape that hangs on values, tensors of two devices.

    Attributes:
        operators: how often each was called; views are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs, result))
                 if isinstance(leaf, torch.Tensor)]
        # A number that is a tensor of the CPU goes along as an argument, as on a GPU.
        mixed = {leaf.device.type for leaf in given
                 if leaf.ndim or leaf.device.type != 'cpu'}
        name = function._schema.name.removeprefix('aten::')
        assert len(mixed) <= 1, f'{function} mixes {sorted(mixed)}'
        assert name not in WAITING, f'{function} waits for the device'
        if not function.is_view and name not in ('detach', '_unsafe_view'):
            self.operators[str(function)] += 1
        return result

    @property
    def count(self) -> int:
        return self.operators.total()


def resnet50() -> list[torch.Size]:
    """Weights ``(O, I, Kh, Kw)`` of all convolutions of ResNet-50 but the first, in order."""
    shapes, channels = [], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    return shapes
