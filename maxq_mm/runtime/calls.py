"""What the modules of a model are called with when it runs."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..utils.errors import InputError

FEATURES = 'extract_feat'  # the method of mmdet's detectors that is backbone and neck


@dataclass(frozen=True)
class Call:
    """Arguments and result of one call of a module or method."""

    args: tuple
    kwargs: dict
    result: object


def check_inputs(model: nn.Module, inputs: tuple | Tensor) -> tuple:
    """The arguments as a tuple.

    Raises:
        InputError: no tensor or tuple, another device or dtype than the weights', or for a
            detector of mmdet other than a batch of images.
    """
    if not isinstance(inputs, tuple | Tensor):
        raise InputError('inputs must be a tensor or the tuple of arguments of the model, got '
                         f'{type(inputs).__name__}')
    args = inputs if isinstance(inputs, tuple) else (inputs, )
    weight = next(iter(model.parameters()), None)
    for x in args:
        if weight is None or not isinstance(x, Tensor):
            continue
        if x.device != weight.device:
            raise InputError(f'inputs are on {x.device}, the model is on {weight.device}')
        if x.is_floating_point() and x.dtype != weight.dtype:
            raise InputError(f'inputs are {x.dtype}, the weights are {weight.dtype}')
    if takes_images(model) and isinstance(inputs, Tensor) and (
            inputs.ndim != 4 or inputs.numel() == 0 or not inputs.is_floating_point()):
        raise InputError('inputs of a detector must be images (B, 3, H, W) as its backbone gets '
                         f'them, got {inputs.dtype} of shape {tuple(inputs.shape)}')
    return args


def takes_images(model: nn.Module) -> bool:
    """Whether this is a detector, whose forward takes more than its images."""
    return isinstance(model, BaseModel) and hasattr(model, FEATURES)


def run(model: nn.Module, args: tuple, mode: str = 'predict') -> object:
    """Run ``model`` once on what :func:`check_inputs` gave; a detector on images alone in ``mode``.
    """
    if not takes_images(model) or len(args) > 1:
        return model(*args)
    images, = args
    return model(images, samples_of(images), mode=mode)


def samples_of(images: Tensor) -> list:
    """mmdet's data samples of images ``(B, 3, H, W)`` without padding, in their own pixels."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
                scale_factor=(1., 1.))
    return [DetDataSample(metainfo=dict(meta)) for _ in images]


@dataclass
class Recording:
    """``calls`` of modules, and of ``extract_feat`` under that name; ``within``: what that ran."""

    calls: dict
    within: set[nn.Module]


@torch.no_grad()
def record(model: nn.Module, call: Callable[[], object], keep_within: bool) -> Recording:
    """The calls, in their order, that ``call`` makes of every module of ``model``.

    Those that a detector's ``extract_feat`` makes are left out unless ``keep_within``: their
    arguments are much to keep in memory.
    """
    recording = Recording(defaultdict(list), set())
    inside = False

    def hook(module, args, kwargs, result):
        if inside:
            recording.within.add(module)
        if keep_within or not inside:
            recording.calls[module].append(Call(args, kwargs, result))

    def features(*args, **kwargs):
        nonlocal inside
        inside = True
        try:
            result = getattr(type(model), FEATURES)(model, *args, **kwargs)
        finally:
            inside = False
        recording.calls[FEATURES].append(Call(args, kwargs, result))
        return result

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in model.modules()]
    if takes_images(model):
        vars(model)[FEATURES] = features
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
        vars(model).pop(FEATURES, None)
    return recording
