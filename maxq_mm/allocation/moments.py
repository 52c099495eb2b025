"""Second moments of a layer's inputs: how much each error in its weights would be felt.

Shapes: a weight ``(O, I, *K)`` is used as rows ``(O, J)`` with J = I * prod(K); a sampled output
position of the layer sees one column vector ``(J, )`` of inputs; s samples make ``(s, J)``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.layers import MaxQConv2d, MaxQLinear
from ..nn.stand_ins import sparse_type

# Longer rows are handled in equal parts, each by itself: a part's moments take its square.
MAX_PART = 2304
SAMPLES = 8192


def is_linear_map(module: nn.Module) -> bool:
    """Whether the layer's output is linear in its weight, and the inputs are seen as it is called.

    Normalised layers and those that pad by themselves are not.
    """
    return sparse_type(module) in (MaxQConv2d, MaxQLinear)


def parts(columns: int) -> list[slice]:
    """The parts that rows of ``columns`` weights are handled in."""
    count = -(-columns // MAX_PART)
    edges = [columns * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]


class Moments:
    """Sums over samples, for each part of the rows: of products of inputs, ``gram`` ``(J, J)``,
    and, where two networks are compared, of inputs of the one times the other's, ``cross``."""

    def __init__(self, columns: int) -> None:
        self.parts = parts(columns)
        self.gram = [0.] * len(self.parts)
        self.cross: list[Tensor | float] | None = None
        self.count = 0

    def add(self, seen: Tensor, wanted: Tensor | None = None) -> None:
        """Samples ``(s, J)``; ``wanted``, of the same places in the network that is the aim."""
        self.count += len(seen)
        for number, part in enumerate(self.parts):
            self.gram[number] = self.gram[number] + seen[:, part].t() @ seen[:, part]
        if wanted is not None:
            self.cross = self.cross or [0.] * len(self.parts)
            for number, part in enumerate(self.parts):
                self.cross[number] = self.cross[number] + seen[:, part].t() @ wanted[:, part]

    @property
    def diagonal(self) -> Tensor:
        """Mean square of each input, ``(J, )``."""
        return torch.cat([gram.diagonal() for gram in self.gram]) / max(1, self.count)


def sample(module: nn.Module, inputs: Tensor, most: int, seed: int) -> Tensor:
    """Inputs ``(s, J)`` of at most ``most`` of the layer's output positions.

    The same positions for the same seed and shape.
    """
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)[:most].to(inputs.device)

    if isinstance(module, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[some(len(rows))]
    mode = 'constant' if module.padding_mode == 'zeros' else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    for axis, (kernel, stride, dilation) in enumerate(zip(
            module.kernel_size, module.stride, module.dilation, strict=True), 2):
        padded = padded.unfold(axis, dilation * (kernel - 1) + 1, stride)
    view = padded[..., ::module.dilation[0], ::module.dilation[1]]  # (B, I, H, W, Kh, Kw)
    batch, _, height, width = view.shape[:4]
    place = some(batch * height * width)
    image, row, column = place // (height * width), place // width % height, place % width
    return view[image, :, row, column].flatten(1)


@contextmanager
def watching(layers: Iterable[nn.Module],
             see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call ``see(layer, its input)`` whenever one of ``layers`` runs."""
    hooks = [layer.register_forward_pre_hook(lambda module, args: see(module, args[0].detach()))
             for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Reached(Exception):
    """The layers have been called often enough; the rest of the network need not run."""


def calls(layers: Sequence[nn.Module], run: Callable[[], object], most: int, seed: int,
          times: int | None = None) -> dict[nn.Module, Tensor]:
    """Samples ``(s, J)`` of the inputs of each layer, of all its calls while ``run`` runs.

    ``times``: stop ``run`` after so many calls of them.
    """
    found: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def see(layer: nn.Module, inputs: Tensor) -> None:
        found[layer].append(sample(layer, inputs, most, seed))
        if sum(map(len, found.values())) == times:
            raise Reached

    with watching(layers, see), torch.no_grad(), suppress(Reached):
        run()
    return {layer: torch.cat(seen) if seen else layer.weight.new_zeros(
        0, layer.weight[0].numel()) for layer, seen in found.items()}
