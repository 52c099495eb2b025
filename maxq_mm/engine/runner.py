"""mmengine's Runner, made whole on CPUs and on disk."""

from pathlib import Path

import torch.distributed
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn


@RUNNERS.register_module()
class MaxQRunner(Runner):
    """A Runner whose checkpoints are whole or absent, and that runs on several CPU processes.

    A checkpoint is written beside its place and renamed, so that a run killed meanwhile keeps the
    one that stood there. Without a GPU, ``launcher='pytorch'`` trains with gloo: mmengine's own
    Runner asks for a CUDA device there. Synchronised batch norm exists on GPUs alone; on CPUs each
    process normalises its own batch, with a warning.

    Raises:
        ValueError: another launcher without a GPU.
    """

    @property
    def _on_cpus(self) -> bool:
        return self.distributed and get_device() == 'cpu'

    def setup_env(self, env_cfg: dict) -> None:
        if self._on_cpus and not is_distributed():
            if self.launcher != 'pytorch':
                raise ValueError(f"launcher={self.launcher!r} needs GPUs; on CPUs use 'pytorch'")
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self._on_cpus and not is_model_wrapper(model):
            defaults = dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                            find_unused_parameters=self.cfg.get('find_unused_parameters', False))
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
            if self.cfg.get('sync_bn') is not None:
                self.logger.warning(f'sync_bn={self.cfg.sync_bn!r} needs GPUs: each process '
                                    'normalises its own batch')
                self.cfg.sync_bn = None
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, file_client_args: dict | None = None,
                        *, backend_args: dict | None = None, **kwargs) -> None:
        if file_client_args or backend_args or '://' in str(out_dir):  # not a local file
            super().save_checkpoint(out_dir, filename, file_client_args,
                                    backend_args=backend_args, **kwargs)
            return
        beside = Path(out_dir) / f'.{filename}.part'
        try:
            super().save_checkpoint(out_dir, beside.name, **kwargs)
            beside.replace(Path(out_dir) / filename)
        finally:
            beside.unlink(missing_ok=True)
