"""Which layers have the last word in a network's outputs, found in autograd's graph."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

_PRODUCTS = re.compile('Convolution|DeformConv|Addmm|Linear|^MmB')


def last_layers(outputs: Iterable[Tensor], layers: dict[str, nn.Module]) -> set[str]:
    """Names of ``layers`` whose weights reach an output past no other matrix product."""
    names = {id(layer.weight): name for name, layer in layers.items()}
    found, seen = set(), set()
    waiting = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [following for following, _ in node.next_functions]
        if _PRODUCTS.search(type(node).__name__):
            found |= {names.get(id(_parameter(following))) for following in inputs} - {None}
        else:
            waiting += inputs
    return found


def _parameter(node) -> nn.Parameter | None:
    """What ``node`` gives if it is a parameter, masked or in another shape; else None."""
    while node is not None and not hasattr(node, 'variable'):
        inputs = [following for following, _ in node.next_functions if following is not None]
        node = inputs[0] if len(inputs) == 1 else None
    return getattr(node, 'variable', None)
