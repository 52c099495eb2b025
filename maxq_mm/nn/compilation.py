"""What happens to a MaxQ layer when ``torch.compile`` traces it.

A module of its own, imported while something is traced: it needs torch's compiler, which takes
half a second to import.
"""

import torch
from torch import nn


@torch.compiler.assume_constant_result
def join(layer: nn.Module) -> bool:
    """Run once, while a MaxQ ``layer`` is traced, and outside the graph."""
    layer.join_compiled()
    return True
