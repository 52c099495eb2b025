"""MaxQ (N:M weight sparsity, arXiv 2312.07061) for MMDetection 3.x and plain PyTorch."""

from importlib import import_module
from typing import Any

from .engine.compact import load_compact, save_compact
from .engine.cpu_amp import CPUAmpOptimWrapper
from .engine.maxq_hook import MaxQHook
from .engine.reseed_hook import ReseedHook
from .engine.runner import MaxQRunner
from .engine.safe_globals import allow_mmengine_checkpoints
from .functional.masks import keep_mask, satisfies, soft_mask
from .functional.ramp import dense_fraction
from .nn.fold import fold
from .nn.layers import MaxQConv2d, MaxQLinear
from .nn.report import report
from .nn.sparsify import sparsify
from .runtime.semi_structured import to_semi_structured

__version__ = '0.1.0'
__all__ = ['CPUAmpOptimWrapper', 'MaxQConv2d', 'MaxQHook', 'MaxQLinear', 'MaxQRunner', 'ReseedHook',
           'allocate', 'dense_fraction', 'fold', 'keep_mask', 'load_compact', 'report', 'satisfies',
           'save_compact', 'soft_mask', 'sparsify', 'to_semi_structured']
# Imported when asked for: they need more than training does.
_LATER = {'allocate': 'allocation'}

# Resuming any mmengine run, MaxQ or not, needs this on torch >= 2.6.
allow_mmengine_checkpoints()


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_LATER[name]}', __name__), name)
