"""Folded 2:4 layers on the sparse tensor cores of NVIDIA GPUs, where a measurement says it pays.

The kernels take matrix products alone: see :mod:`.packed_layers`, where the shapes stand, too.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..functional.masks import satisfies
from ..nn.layers import MaxQConv2d, MaxQLinear
from ..nn.stand_ins import sparse_type
from ..utils.errors import InputError, first_line
from .calls import run
from .cusparselt import DTYPES, check_gpu, least_shape, milliseconds
from .packed_layers import PACKED_TYPES, packed, turn
from .report import AccelerationReport, LayerChoice

PATTERN = '2:4'
# Outputs may differ by this share of the largest: both sum in float32, in another order.
TOLERANCE = 0.02

Packer = Callable[[Tensor], Tensor]
Timer = Callable[[Sequence[Callable[[], object]]], Sequence[float]]


def accelerate_on_gpu(model: nn.Module, args: tuple) -> AccelerationReport:
    """What :func:`maxq_mm.accelerate` does on NVIDIA GPUs, of a model that it has checked.

    The model is run once: each layer is timed, dense and sparse, on what it is called with there,
    and turned if the sparse one is faster and gives the same. Channels-last models and inputs spare
    convolutions a copy. Weights are packed as ``torch.sparse.to_sparse_semi_structured`` does it.
    The result is for this process: its state dict cannot be loaded elsewhere.

    Raises:
        InputError: no layer is 2:4.
        RuntimeError: no GPU of compute capability 8.0 with cuSPARSELt, or the 2:4 weights are
            neither float16 nor bfloat16 (cuSPARSELt takes no float32).
    """
    sparse = [module.weight for module in _layers(model).values() if is_semi_structured(module)]
    if not sparse:
        raise InputError(f'no convolution or linear layer of the model is {PATTERN}')
    check_gpu(sparse[0].device)
    if not any(weight.dtype in DTYPES for weight in sparse):
        raise RuntimeError('the sparse kernels take float16 and bfloat16, and the weights are '
                           f'{sparse[0].dtype}: call model.half() or .bfloat16() first')
    with torch.cuda.device(sparse[0].device):
        return convert(model, args, torch.sparse.to_sparse_semi_structured, milliseconds,
                       least_shape())


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))}


def is_semi_structured(module: nn.Module) -> bool:
    """Whether a convolution's or linear layer's weight is 2:4; one of 1:4 or 1:16 is, too."""
    return (type(module) not in PACKED_TYPES.values() and module.weight.shape[1] % 4 == 0
            and satisfies(module.weight, PATTERN))


def structural_reason(module: nn.Module, least: tuple[int, int] = (1, 1)) -> str | None:
    """Why a layer cannot run on the sparse kernels; None if it can.

    ``least``: what O and I must be multiples of.
    """
    if type(module) in PACKED_TYPES.values():
        return 'packed already'
    if isinstance(module, nn.Conv2d):
        if tuple(module.kernel_size) != (1, 1):
            return f'{module.kernel_size[0]}x{module.kernel_size[1]} kernel, no matrix product'
        if module.groups != 1:
            return f'grouped ({module.groups} groups)'
        if module.padding not in ('same', 'valid', (0, 0)):
            return 'padded'
    if sparse_type(module) not in (MaxQConv2d, MaxQLinear):
        return f'{type(module).__name__} computes with its weight in its own way'
    if not is_semi_structured(module):
        return f'not {PATTERN}'
    if module.weight.dtype not in DTYPES:
        return f'{module.weight.dtype} weight'
    out_channels, in_channels = module.weight.shape[:2]
    if out_channels % least[0] or in_channels % least[1]:
        return (f'{out_channels} x {in_channels} channels, '
                f'no multiples of {least[0]} x {least[1]}')
    return None


@torch.no_grad()
def convert(model: nn.Module, args: tuple, pack: Packer, milliseconds: Timer,
            least: tuple[int, int] = (1, 1)) -> AccelerationReport:
    """What :func:`accelerate_on_gpu` does, for any kernels.

    ``pack`` makes of a weight ``(O, I)`` what ``F.linear`` takes for it; ``milliseconds`` tells how
    long each of some calls takes; O and I must be multiples of ``least``.
    """
    layers = _layers(model)
    # torch's encoder layer reads its linear layers' weights without calling them.
    read_directly = {layer for module in model.modules()
                     if isinstance(module, nn.TransformerEncoderLayer)
                     for layer in (module.linear1, module.linear2)}
    reasons = {name: 'its TransformerEncoderLayer reads the weight' if module in read_directly
               else structural_reason(module, least) for name, module in layers.items()}
    trials = {name: _Trial(layers[name], pack, milliseconds)
              for name, reason in reasons.items() if reason is None}
    handles = [trial.module.register_forward_hook(trial, with_kwargs=True)
               for trial in trials.values()]
    try:
        run(model, args)
    finally:
        for handle in handles:
            handle.remove()
    choices = []
    for name, module in layers.items():
        shape = tuple(module.weight.shape)
        trial = trials.get(name)
        if trial is None:
            choices.append(LayerChoice(name, shape, None, False, reasons[name]))
            continue
        choices.append(LayerChoice(name, shape, PATTERN, *trial.verdict()))
        if choices[-1].used:
            turn(module, trial.packed.weight)
    return AccelerationReport(tuple(choices), 'cuSPARSELt')


class _Trial:
    """A forward hook: compares a layer with its packed form on each kind of input it gets."""

    def __init__(self, module: nn.Module, pack: Packer, milliseconds: Timer) -> None:
        self.module = module
        self.pack = pack
        self.milliseconds = milliseconds
        self.packed: nn.Module | None = None
        self.failure: str | None = None
        self.counts = defaultdict(int)
        self.times = {}  # dense and sparse ms by shape and strides

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x, = (*args, *kwargs.values())
        kind = (x.shape, x.stride())
        self.counts[kind] += 1
        if kind in self.times or self.failure:
            return
        try:
            if self.packed is None:
                self.packed = packed(module, self.pack)
            # forward itself: the hooks on the layer are not to run again
            self.failure = _difference(output, self.packed.forward(x))
            self.times[kind] = self.milliseconds((lambda: module.forward(x),
                                                  lambda: self.packed.forward(x)))
        except (RuntimeError, NotImplementedError) as error:  # of the kernels
            self.failure = f'the sparse kernel fails: {first_line(error)}'

    def verdict(self) -> tuple:
        """Used, why, dense and sparse ms."""
        if not self.counts:
            return False, 'not called', None, None
        if self.failure:
            return False, self.failure, None, None
        dense, sparse = (sum(self.times[kind][i] * n for kind, n in self.counts.items())
                         for i in range(2))
        return sparse < dense, 'faster' if sparse < dense else 'slower', dense, sparse


def _difference(dense: Tensor, sparse: Tensor) -> str | None:
    """What is wrong with the sparse layer's output, or None."""
    if dense.numel() == 0:
        return None
    share = float((dense - sparse).abs().max() / dense.abs().max().clamp(min=1e-6))
    return None if share <= TOLERANCE else f'outputs differ by {share:.1%} of the largest'
