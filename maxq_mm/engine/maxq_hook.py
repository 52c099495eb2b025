"""The hook that brings MaxQ into a Runner's training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional.masks import AXES, satisfies
from ..functional.ramp import Ramp
from ..nn.layers import MaskSettings, MaxQLayer
from ..nn.report import report
from ..nn.select import check_selection, select
from ..nn.sparsify import SparsityHandle, check_training, sparsify
from ..utils.errors import InputError
from ..utils.tables import table
from .checkpoint import raw_weights, store_effective


def _plain_model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _with_frozen_stages(runner: Runner) -> nn.Module:
    """The model, as it trains: many backbones of mmdet freeze their stages in ``train()``."""
    runner.model.train()
    return _plain_model(runner)


def _optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _ema_hook(runner: Runner) -> EMAHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)


@HOOKS.register_module()
class MaxQHook(Hook):
    """Train the chosen layers to N:M; write ordinary checkpoints; test what is stored.

    The arguments are those of :func:`maxq_mm.sparsify`. Priority LOW: after EMA has put the
    averaged weights into a checkpoint.

    Raises:
        InputError: a bad argument, named with its value; before any training also names that
            match no layer, a model without a layer that can be sparse, a ramp that would not be
            over when training is, and an EMAHook that runs later.
    """

    priority = 'LOW'

    def __init__(self, pattern: str, include: Sequence[str] = ('backbone',),
                 exclude: Sequence[str] = (), overrides: Mapping | None = None,
                 ramp: dict | None = None, axes: Sequence[str] = AXES, temperature: float = 1e-2,
                 decay: float = 2e-4, order: str = 'smallest', fixed: bool = False) -> None:
        self.ramp = Ramp.parse(ramp)
        check_training(self.ramp, decay, fixed)
        MaskSettings(pattern, axes, temperature, order, fixed)
        check_selection(pattern, include, exclude, overrides)
        self.layers = dict(pattern=pattern, include=include, exclude=exclude, overrides=overrides)
        self.training = dict(ramp=self.ramp, axes=axes, temperature=temperature, decay=decay,
                             order=order, fixed=fixed)
        self.handle: SparsityHandle | None = None
        self._attached: list[RemovableHandle] = []
        self._raw: dict[str, Tensor] = {}
        self._raw_is_averaged = False

    def before_train(self, runner: Runner) -> None:
        """Turn the loaded model sparse and join its optimizers."""
        self._check_runner(runner)
        self._restore_raw(runner)
        self.handle = sparsify(_with_frozen_stages(runner), **self.layers, **self.training)
        for attached in self._attached:  # by an earlier training of the same Runner
            attached.remove()
        self._attached = [attached for wrapper in _optim_wrappers(runner)
                          for attached in self.handle.attach(wrapper.optimizer)]
        self._set_progress(runner)
        runner.logger.info(_summary(self.handle))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        # Between two steps only: gradients that add up are those of one mask.
        if all(wrapper.should_update() for wrapper in _optim_wrappers(runner)):
            self._set_progress(runner)
        scalars = {'train/maxq/dense_fraction': self.handle.dense_fraction,
                   'train/maxq/sparsity': self.handle.sparsity}
        runner.message_hub.update_scalars(scalars)

    def before_val(self, runner: Runner) -> None:
        if self.handle is None:
            self._use_as_stored(runner)

    def before_test(self, runner: Runner) -> None:
        if self.handle is None:
            self._use_as_stored(runner)

    # EMA swaps the model's weights around these, where torch cannot see it.
    def before_val_epoch(self, runner: Runner) -> None:
        self._invalidate()

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self._invalidate()

    def before_test_epoch(self, runner: Runner) -> None:
        self._invalidate()

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self._invalidate()

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Leave a picture of what was trained in the work dir."""
        from . import figure  # matplotlib takes longer to import than all of this package

        handle, path = self.handle, Path(runner.work_dir) / 'maxq.png'
        layers = [layer for layer in handle.layers.values() if isinstance(layer, MaxQLayer)]
        if not layers:  # folded since
            return
        weights = figure.gather([layer.effective for layer in layers],
                                [layer.weight for layer in layers])
        drawn = figure.draw(report(_plain_model(runner)), weights,
                            figure.history(runner.message_hub.log_scalars), handle.ramp)
        try:
            figure.save(drawn, path)
        except OSError as error:  # a training of days does not fail on a picture
            runner.logger.error(f'MaxQ: cannot write {path}: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.handle is not None:
            store_effective(checkpoint, self.handle)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the raw weights for a training that may follow; a test uses what it loads."""
        self._raw = raw_weights(checkpoint)
        # EMAHook ran before and has put the trained weights, which are raw, back in their place.
        self._raw_is_averaged = (_ema_hook(runner) is not None and runner._resume
                                 and 'ema_state_dict' in checkpoint)

    @torch.no_grad()
    def _restore_raw(self, runner: Runner) -> None:
        """Go on from the raw weights of the checkpoint that was loaded, if it had any."""
        targets = [] if self._raw_is_averaged else [_plain_model(runner)]
        ema = _ema_hook(runner)
        if ema is not None:
            targets.append(ema.ema_model.module)
        for target in targets:
            state = target.state_dict()
            unfit = [key for key, weight in self._raw.items()
                     if key not in state or state[key].shape != weight.shape]
            if unfit:
                runner.logger.warning(f'MaxQ: {len(unfit)} raw weights of the checkpoint do not '
                                      f'fit the model, such as {unfit[0]}')
            for key in self._raw.keys() - set(unfit):
                state[key].copy_(self._raw[key])
        self._raw = {}

    def _invalidate(self) -> None:
        if self.handle is not None:
            self.handle.invalidate()

    def _set_progress(self, runner: Runner) -> None:
        self.handle.set_progress(runner.epoch if self.ramp.by_epoch else runner.iter)

    def _check_runner(self, runner: Runner) -> None:
        if self.ramp.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop) and (
                self.ramp.end > self.ramp.begin):
            raise InputError('ramp by_epoch=True does not fit an iteration-based loop, which has '
                             'no epochs: give begin and end in iterations, and by_epoch=False')
        ema = _ema_hook(runner)
        if ema is not None and runner.hooks.index(ema) > runner.hooks.index(self):
            raise InputError('EMAHook runs after MaxQHook: give it a higher priority than LOW, so '
                             'that the averaged weights are masked')
        unit, total = (('epoch', runner.max_epochs) if self.ramp.by_epoch else
                       ('iteration', runner.max_iters))
        left = self.ramp(total - 1)
        if left > 0:
            raise InputError(
                f'ramp end={self.ramp.end} is too late: in {unit} {total - 1}, the last of {total}'
                f', {left:.1%} of the blocks would still be dense')
        if runner.cfg.get('efficient_conv_bn_eval') is not None:
            raise InputError('efficient_conv_bn_eval is set: it reads convolution weights past '
                             'their masks and cannot be used with MaxQHook')

    def _use_as_stored(self, runner: Runner) -> None:
        model = _with_frozen_stages(runner)
        for module in model.modules():
            if isinstance(module, MaxQLayer):
                module.as_stored = True
        sparse = select(model, **self.layers).sparse
        done = sum(satisfies(model.get_submodule(name).weight, pattern)
                   for name, pattern in sparse.items())
        log = runner.logger.info if done == len(sparse) else runner.logger.warning
        log(f'MaxQ: {done} of {len(sparse)} sparse layers satisfy their pattern; '
            'the weights are tested as stored')


def _summary(handle: SparsityHandle) -> str:
    """What is sparse, what stays dense and why, as one table."""
    rows = [(name, 'x'.join(map(str, layer.weight.shape)), str(layer.settings.pattern))
            for name, layer in handle.layers.items()]
    rows += [(name, '', f'dense: {reason}') for name, reason in handle.skipped.items()]
    return (f'MaxQ: {len(handle.layers)} sparse layers, {len(handle.skipped)} left dense\n'
            + table(('layer', 'weight', 'pattern'), rows))
