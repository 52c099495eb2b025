"""Leave nothing of MaxQ at run time: what folding is, of a weight and of a model.

:func:`maxq_mm.engine.checkpoint.fold_checkpoint` does the same to a file.
"""

from torch import Tensor, nn

from .layers import MaxQLayer


def folded_weight(effective: Tensor) -> Tensor:
    """A new tensor: the plain weight of an effective one, its zeros all 0.0.

    A negative raw weight times 0 is -0.0; as 0.0 it needs no sign stored.
    """
    return effective.masked_fill(effective == 0, 0.)


def fold(model: nn.Module) -> nn.Module:
    """Turn every MaxQ layer of ``model`` into a plain one, in place, and return the model.

    ``nn.Conv2d`` and ``nn.Linear`` hold the effective weights afterwards: the outputs are the
    same, the pruned weights exact zeros.
    """
    # All before the first is written: layers may share a weight.
    plain = {module: folded_weight(module.effective) if module.is_sparse else module.effective
             for module in model.modules() if isinstance(module, MaxQLayer)}
    for layer, weight in plain.items():
        layer.to_dense(weight)
    return model
