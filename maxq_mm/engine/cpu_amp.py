"""Mixed precision without a GPU: bfloat16, which needs no loss scaling."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# mmcv's operators do not know bfloat16 on CPUs: regions are pooled in float32, and dense heads hand
# out float32, in which their boxes are suppressed. Known by name, since this package needs neither
# mmcv nor mmdet.
_POOLING = ('mmcv.ops.roi_align', 'RoIAlign')
_DENSE_HEAD = ('mmdet.models.dense_heads.base_dense_head', 'BaseDenseHead')


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs under CPU autocast in bfloat16.

    Weights, gradients, masks and optimizer stay in float32. mmengine's ``AmpOptimWrapper`` takes
    accelerators only.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        kept = [hook for module in model.modules() for hook in _float32_hooks(module)]
        try:
            with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
                yield
        finally:
            for hook in kept:
                hook.remove()


def _float32_hooks(module: nn.Module) -> tuple[RemovableHandle, ...]:
    """What makes ``module`` work under bfloat16, if it is of a kind that does not."""
    kinds = {(kind.__module__, kind.__qualname__) for kind in type(module).__mro__}
    if _POOLING in kinds:
        return _computes_in_float32(module)
    if _DENSE_HEAD in kinds:
        return (module.register_forward_hook(lambda _, __, output: _cast(output, torch.float32)), )
    return ()


def _computes_in_float32(module: nn.Module) -> tuple[RemovableHandle, ...]:
    """Let ``module`` see float32, and hand back the type of its first input."""
    given = []

    def before(_, inputs: tuple) -> tuple:
        given.append(inputs[0].dtype)
        return _cast(inputs, torch.float32)

    def after(_, inputs: tuple, output: Tensor) -> Tensor:
        return _cast(output, given.pop())

    return module.register_forward_pre_hook(before), module.register_forward_hook(after)


def _cast(values, dtype: torch.dtype):
    """Floating tensors, in lists and tuples too, as ``dtype``."""
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, (list, tuple)):
        return type(values)(_cast(value, dtype) for value in values)
    return values
