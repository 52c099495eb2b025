"""Started by torch.distributed.run, one a GPU: trains its share of each batch over NCCL."""

import os
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank

from maxq_mm.engine.runner import WholeCheckpointRunner

from ..engine.runs import make_runner
from .test_training import HOOKS, classifier


def main() -> None:
    out = Path(sys.argv[1])
    runner = make_runner(out, HOOKS[:1], model=classifier(), launcher='pytorch',
                         batch_size=4 // int(os.environ['WORLD_SIZE']),
                         runner_type=WholeCheckpointRunner, cfg=dict(sync_bn='torch'))
    runner.train()
    module = runner.model.module
    torch.save(dict(weights={key: value.cpu() for key, value in module.state_dict().items()},
                    backend=torch.distributed.get_backend(),
                    synchronised=any(isinstance(m, torch.nn.SyncBatchNorm)
                                     for m in module.modules())),
               out / f'rank{get_rank()}.pth')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
