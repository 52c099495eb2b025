"""Which sparse layer stands in for which dense one, subclasses of other packages included."""

from functools import cache

from torch import nn

from .layers import MaxQConv2d, MaxQLayer, MaxQLinear

_SPARSE_TYPES = {nn.Conv2d: MaxQConv2d, nn.Linear: MaxQLinear}
# Classes of other packages, known by name because this one does not need them: mmcv's wrappers,
# which differ from torch's layers only on torch < 1.5,
_MMCV_WRAPPERS = {('mmcv.cnn.bricks.wrappers', 'Conv2d'): MaxQConv2d,
                  ('mmcv.cnn.bricks.wrappers', 'Linear'): MaxQLinear}
# and those with a forward pass of their own that leaves a pruned weight 0.
_KEEP_ZEROS = {('mmcv.cnn.bricks.conv2d_adaptive_padding', 'Conv2dAdaptivePadding'),
               ('mmdet.models.layers.normed_predictor', 'NormedConv2d'),
               ('mmdet.models.layers.normed_predictor', 'NormedLinear')}


def sparse_type(module: nn.Module) -> type[MaxQLayer] | None:
    """The sparse layer that can stand in for ``module``, or None.

    A subclass of a convolution or linear layer qualifies if it leaves their forward pass alone, or
    is known to keep zeros; the layer that stands in for it is one of its own kind.
    """
    dense = type(module)
    known = _SPARSE_TYPES.get(dense) or _MMCV_WRAPPERS.get(_name(dense))
    if known is not None:
        return known
    return _of_its_kind(dense) if _qualifies(dense) else None


def _name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _qualifies(dense: type[nn.Module]) -> bool:
    # torch's own subclasses are lazy, quantized, or read by attention without being called.
    if dense.__module__.startswith('torch.') or not issubclass(dense, tuple(_SPARSE_TYPES)):
        return False
    computing = {next(kind for kind in dense.__mro__ if method in vars(kind))
                 for method in ('forward', '_conv_forward') if hasattr(dense, method)}
    return all(kind in _SPARSE_TYPES or _name(kind) in _KEEP_ZEROS | _MMCV_WRAPPERS.keys()
               for kind in computing)


@cache
def _of_its_kind(dense: type[nn.Module]) -> type[MaxQLayer]:
    """``dense`` with a mask: its own forward pass finds the effective weight in ``self.weight``."""

    def forward(self, *args, **kwargs):
        # An instance's attribute is found before the parameter of the same name.
        vars(self)['weight'] = self._weight_for_forward()
        try:
            return dense.forward(self, *args, **kwargs)
        finally:
            del vars(self)['weight']

    return type(f'MaxQ{dense.__name__}', (MaxQLayer, dense),
                {'dense_type': dense, 'forward': forward, '__module__': __name__})
