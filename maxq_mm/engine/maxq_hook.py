"""The hook that brings MaxQ into a Runner's training."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ..functional.masks import satisfies
from ..nn.accelerated import is_accelerated
from ..nn.concerns import few_weights
from ..nn.layers import MaxQLayer
from ..nn.report import report
from ..nn.select import select
from ..nn.settings import SparsitySettings
from ..nn.sparsify import SparsityHandle, make_sparse
from ..utils.errors import InputError
from ..utils.tables import table
from .checkpoint import check_fits, raw_weights, store_effective, trained_settings
from .start import Loaded


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


def _maxq_hooks(runner: Runner) -> list['MaxQHook']:
    return [hook for hook in runner.hooks if isinstance(hook, MaxQHook)]


@HOOKS.register_module()
class MaxQHook(Hook):
    """Train the chosen layers to N:M; write ordinary checkpoints; test what is stored.

    The arguments are those of :func:`maxq_mm.sparsify`. Priority LOW: after EMA has put the
    averaged weights into a checkpoint. Several hooks, with settings and a ramp each, share a model
    if no layer is chosen by two.

    Raises:
        InputError: a bad or unknown argument, named; before any training also names that match no
            layer, a model without a layer that can be sparse, a layer of another MaxQHook, a ramp
            that would not be over when training is, an EMAHook that runs later, and a checkpoint
            of which no weight fits the model.
    """

    priority = 'LOW'

    def __init__(self, pattern: str | None = None, include: Sequence[str] = ('backbone',),
                 **settings) -> None:
        self.settings = SparsitySettings.of(pattern=pattern, include=include, **settings)
        self.handle: SparsityHandle | None = None
        self._loaded = Loaded()

    def before_train(self, runner: Runner) -> None:
        """Turn the loaded model sparse and join its optimizers."""
        self._check_runner(runner)
        if self.handle is not None:  # of an earlier training of the same Runner
            self.handle.detach()
        model = _with_frozen_stages(runner)
        selection = select(model, self.settings)
        self._check_overlap(runner, model, selection.sparse)
        self.handle = make_sparse(model, selection, self.settings)
        warnings = [*self._start(runner), *few_weights(self.handle.active)]
        self._set_progress(runner)
        self._loaded = Loaded()
        self.handle.refresh()
        for wrapper in _optim_wrappers(runner):
            self.handle.attach(wrapper.optimizer, strict=True)
        runner.logger.info(_summary(self.handle))
        for warning in warnings:
            runner.logger.warning(f'MaxQ: {warning}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        # Between two steps only: gradients that add up are those of one mask.
        if all(wrapper.should_update() for wrapper in _optim_wrappers(runner)):
            self._set_progress(runner)
        label = self._label(runner)
        scalars = {f'train/{label}/dense_fraction': self.handle.dense_fraction,
                   f'train/{label}/sparsity': self.handle.sparsity}
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

        layers, label = self.handle.active, self._label(runner)
        if not layers:  # folded since
            return
        path = Path(runner.work_dir) / f'{label}.png'
        weights = figure.gather([layer.effective for layer in layers.values()],
                                [layer.weight for layer in layers.values()])
        patterns = {name: str(layer.settings.pattern) for name, layer in layers.items()}
        drawn = figure.draw(
            report(_plain_model(runner), patterns=patterns), weights,
            figure.history(runner.message_hub.log_scalars, label), self.settings.ramp)
        try:
            figure.save(drawn, path)
        except OSError as error:  # a training of days does not fail on a picture
            runner.logger.error(f'MaxQ: cannot write {path}: {error}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.handle is not None and self.handle.active:
            store_effective(checkpoint, self.handle)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the raw weights for a training that may follow; a test uses what it loads."""
        check_fits(checkpoint, _plain_model(runner))
        # EMAHook ran before and has put the trained weights, which are raw, back in their place.
        averaged = (_ema_hook(runner) is not None and runner._resume
                    and 'ema_state_dict' in checkpoint)
        self._loaded = Loaded(raw_weights(checkpoint), averaged, trained_settings(checkpoint))

    def _averaged(self, runner: Runner) -> nn.Module | None:
        """EMA's model."""
        ema = _ema_hook(runner)
        return None if ema is None else ema.ema_model.module

    def _start(self, runner: Runner) -> list[str]:
        """Bring raw weights to where they are to start from; what is to be warned of."""
        loaded, averaged = self._loaded, self._averaged(runner)
        live = _plain_model(runner)
        warnings = loaded.restore(self.handle, [
            model for model in ([] if loaded.averaged else [live]) + [averaged] if model])
        if runner._resume:
            hooks = _maxq_hooks(runner)
            return warnings + loaded.changes(self.settings, hooks.index(self), len(hooks))
        done, rescaled = loaded.unscale(self.handle, averaged)
        if done:
            runner.logger.info(
                f'MaxQ: the weights of {len(done)} layers, such as {done[0]}, are N:M already: '
                'training goes on from them as they are, as effective weights')
        return warnings + rescaled

    def _check_overlap(self, runner: Runner, model: nn.Module, names: Iterable[str]) -> None:
        others = {layer for hook in _maxq_hooks(runner) if hook is not self and hook.handle
                  for layer in hook.handle.active.values()}
        shared = [name for name in names if model.get_submodule(name) in others]
        if shared:
            raise InputError(f'{len(shared)} layers are chosen by two MaxQHooks, such as '
                             f'{shared[0]}: leave them to one by include and exclude')

    def _label(self, runner: Runner) -> str:
        """What logs and pictures call this hook: maxq, and of several maxq2, ..."""
        place = _maxq_hooks(runner).index(self)
        return f'maxq{place + 1}' if place else 'maxq'

    def _invalidate(self) -> None:
        if self.handle is not None:
            self.handle.invalidate()

    def _set_progress(self, runner: Runner) -> None:
        ramp = self.settings.ramp
        self.handle.set_progress(runner.epoch if ramp.by_epoch else runner.iter)

    def _check_runner(self, runner: Runner) -> None:
        ramp = self.settings.ramp
        if ramp.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop) and (
                ramp.end > ramp.begin):
            raise InputError('ramp by_epoch=True does not fit an iteration-based loop, which has '
                             'no epochs: give begin and end in iterations, and by_epoch=False')
        ema = _ema_hook(runner)
        if ema is not None and runner.hooks.index(ema) > runner.hooks.index(self):
            raise InputError('EMAHook runs after MaxQHook: give it a higher priority than LOW, so '
                             'that the averaged weights are masked')
        unit, total = (('epoch', runner.max_epochs) if ramp.by_epoch else
                       ('iteration', runner.max_iters))
        left = ramp(total - 1)
        if left > 0:
            what = 'of each pruned weight would still count' if ramp.fade else (
                'of the blocks would still be dense')
            raise InputError(f'ramp end={ramp.end} is too late: in {unit} {total - 1}, the last of '
                             f'{total}, {left:.1%} {what}')
        if runner.cfg.get('efficient_conv_bn_eval') is not None:
            raise InputError('efficient_conv_bn_eval is set: it reads convolution weights past '
                             'their masks and cannot be used with MaxQHook')

    def _use_as_stored(self, runner: Runner) -> None:
        if is_accelerated(_plain_model(runner)):  # its kernels have weights of their own
            runner.logger.info('MaxQ: the model is accelerated; it is tested as it is')
            return
        model = _with_frozen_stages(runner)
        for module in model.modules():
            if isinstance(module, MaxQLayer):
                module.maxq.as_stored = True
        sparse = select(model, self.settings).sparse
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
