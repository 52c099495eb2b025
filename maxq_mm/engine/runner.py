"""mmengine's Runner, made whole on CPUs and on disk."""

import atexit
import gc
import weakref
from pathlib import Path

import torch.distributed
from mmengine.device import get_device
from mmengine.dist import all_reduce_params, is_distributed, master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..utils.errors import InputError
from ..utils.files import replacing

# mmengine's names of what writes to a disk.
_ON_DISK = ('local', 'disk')


def _leave() -> None:
    """End gloo's threads before the interpreter ends: one that then asks for it is aborted.

    They end with the last reference to their process group. Wrapped models hold some, and are
    themselves held in cycles.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()


def _unwrap(runner: weakref.ref[Runner]) -> None:
    """Let a runner that lives to the end of its process let go of the process group."""
    runner = runner()
    if is_model_wrapper(getattr(runner, 'model', None)):
        runner.model = runner.model.module


@RUNNERS.register_module()
class WholeCheckpointRunner(Runner):
    """A Runner whose checkpoints are whole or absent, and that runs on several CPU processes.

    A checkpoint is written beside its place and renamed, so that a run killed meanwhile keeps the
    one that stood there. Without a GPU, ``launcher='pytorch'`` trains with gloo: mmengine's own
    Runner asks for a CUDA device there. Synchronised batch norm exists on GPUs alone; on CPUs each
    process normalises its own batch, with a warning, and running statistics are averaged.

    Raises:
        InputError: another launcher without a GPU.
    """

    @property
    def _on_cpus(self) -> bool:
        return self.distributed and get_device() == 'cpu'

    def setup_env(self, env_cfg: dict) -> None:
        if self._on_cpus:
            if not is_distributed():
                if self.launcher != 'pytorch':
                    raise InputError(f'launcher={self.launcher!r} needs GPUs; '
                                     "on CPUs use 'pytorch'")
                torch.distributed.init_process_group('gloo')
                atexit.register(_leave)
            atexit.register(_unwrap, weakref.ref(self))  # comes before what was registered before
        super().setup_env(env_cfg)

    def train(self) -> nn.Module:
        """Train; processes on CPUs end together, so that none leaves while another talks to it."""
        model = super().train()
        if self._on_cpus:
            torch.distributed.barrier()
        return model

    def register_hooks(self, default_hooks: dict | None = None,
                       custom_hooks: list | None = None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        if self._on_cpus:
            self.register_hook(_AverageBuffers())

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self._on_cpus and not is_model_wrapper(model):
            defaults = dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                            find_unused_parameters=self.cfg.get('find_unused_parameters', False))
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
            if self.cfg.get('sync_bn') is not None or any(
                    isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
                self.logger.warning('synchronised batch norm needs GPUs: each process normalises '
                                    'its own batch')
                self.cfg.sync_bn = None
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, file_client_args: dict | None = None,
                        *args, **kwargs) -> None:
        backend = (file_client_args or kwargs.get('backend_args') or {}).get('backend', 'local')
        if backend not in _ON_DISK or '://' in str(out_dir):
            super().save_checkpoint(out_dir, filename, file_client_args, *args, **kwargs)
            return
        with replacing(Path(out_dir, filename)) as beside:
            super().save_checkpoint(str(beside.parent), beside.name, file_client_args, *args,
                                    **kwargs)


class _AverageBuffers(Hook):
    """Average the processes' running statistics, so that they test and save one model.

    On GPUs synchronised batch norm keeps them equal.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        buffers = [b for b in runner.model.buffers() if b.is_floating_point()]
        if buffers:
            all_reduce_params(buffers, op='mean')
