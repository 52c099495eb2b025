"""Random numbers that depend on the iteration alone."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seed Python, NumPy and torch from (seed, rank, iteration) at every iteration.

    Detectors draw random samples while they train, and mmengine does not restore the generators
    on a resume. With this hook a resumed run draws what an uninterrupted one drew. Augmentation
    is covered where it runs in the training process (``num_workers=0``) of an epoch-based loop.
    """

    priority = 'VERY_HIGH'

    def _seed(self, runner: Runner) -> None:
        seed = np.random.SeedSequence((runner.seed, get_rank(), runner.iter)).generate_state(1)
        random.seed(int(seed[0]))
        np.random.seed(seed[0])
        torch.manual_seed(int(seed[0]))

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._seed(runner)
