"""What happens to a MaxQ layer when ``torch.compile`` traces it."""

import torch

from .layers import MaxQLayer


@torch.compiler.assume_constant_result
def join(layer: MaxQLayer) -> bool:
    """Run once, while ``layer`` is traced: from then on it refreshes without being called.

    Raises:
        RuntimeError: it is to be trained, and no optimizer would tell it of its steps.
    """
    if layer.training and layer.weight.requires_grad and not layer.attached:
        raise RuntimeError('a MaxQ layer is compiled for training, but its optimizer is not '
                           'attached: call handle.attach(optimizer) first')
    layer.compiled = True
    layer.refresh_if_stale()
    return True
