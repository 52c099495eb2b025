"""Images that a detector is looked at with, and the model while it is."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mmengine.dataset import pseudo_collate
from torch import nn

from ..utils.errors import InputError
from .outputs import Places, check_detector, choose


def look(model: nn.Module, data: Iterable[dict],
         progress: Callable[[Iterable], Iterable] = iter) -> list[Places]:
    """The places of every image in ``data`` that matter to ``model``, in evaluation mode.

    ``data`` gives what mmdet's test pipelines or dataloaders do: dicts of ``inputs`` and
    ``data_samples``, of one image or a batch. Annotations are not used.

    Raises:
        InputError: a detector that cannot be read, no image, or something else in ``data``.
    """
    check_detector(model)
    found = []
    for item in progress(data):
        for single in _singles(item):
            batch = model.data_preprocessor(pseudo_collate([single]), False)
            found.append(choose(model, batch['inputs'], batch['data_samples']))
    if not found:
        raise InputError('data has no images: a plan needs some tens')
    return found


def _singles(item: dict) -> Iterator[dict]:
    if not isinstance(item, dict) or not {'inputs', 'data_samples'} <= item.keys():
        raise InputError('data must give dicts of inputs and data_samples, as mmdet\'s test '
                         f'pipelines do; got a {type(item).__name__}')
    inputs, samples = item['inputs'], item['data_samples']
    if not isinstance(samples, (list, tuple)):
        inputs, samples = [inputs], [samples]
    for image, sample in zip(inputs, samples, strict=True):
        yield dict(inputs=image, data_samples=sample)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode, each module back in its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
