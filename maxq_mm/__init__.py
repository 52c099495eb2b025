"""MaxQ (N:M weight sparsity, arXiv 2312.07061) for MMDetection 3.x and plain PyTorch."""

from importlib import import_module
from typing import Any

# Registered for configs, by their names.
from .engine import cpu_amp, reseed_hook, runner  # noqa: F401
from .engine.compact import load_compact, save_compact
from .engine.config_names import resolve_config_names
from .engine.maxq_hook import MaxQHook
from .engine.safe_globals import allow_mmengine_checkpoints
from .functional.masks import keep_mask, satisfies, soft_mask
from .functional.ramp import dense_fraction
from .nn.fold import fold
from .nn.layers import MaxQConv2d, MaxQLinear
from .nn.report import report
from .nn.sparsify import SparsityHandle, sparsify

__version__ = '0.1.0'
__all__ = ['MaxQConv2d', 'MaxQHook', 'MaxQLinear', 'SparsityHandle', 'accelerate', 'allocate',
           'dense_fraction', 'fold', 'keep_mask', 'load_accelerated', 'load_compact', 'report',
           'satisfies', 'save_accelerated', 'save_compact', 'soft_mask', 'sparsify']
# Imported when asked for: training needs none of it.
_LATER = {'accelerate': 'runtime.accelerate', 'allocate': 'allocation',
          'load_accelerated': 'runtime.served', 'save_accelerated': 'runtime.served'}

# Resuming any mmengine run, MaxQ or not, needs this on torch >= 2.6.
allow_mmengine_checkpoints()
resolve_config_names()


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_LATER[name]}', __name__), name)
