"""Leave nothing of MaxQ at run time."""

from torch import nn

from .layers import MaxQLayer


def fold(model: nn.Module) -> nn.Module:
    """Turn every MaxQ layer of ``model`` into a plain one, in place, and return the model.

    ``nn.Conv2d`` and ``nn.Linear`` hold the effective weights afterwards: the outputs are the
    same, the pruned weights exact zeros.
    """
    # All before the first is written: layers may share a weight.
    effective = {module: module.effective for module in model.modules()
                 if isinstance(module, MaxQLayer)}
    for layer, weight in effective.items():
        layer.to_dense(weight)
    return model
