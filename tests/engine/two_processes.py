"""Started twice by torch.distributed.run: trains one half of each batch, keeps what came out."""

import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank

from maxq_mm import MaxQRunner

from .runs import Classifier, make_runner

SETTINGS = dict(
    hooks=[dict(type='MaxQHook', pattern='2:4', decay=0.05,
                ramp=dict(type='linear', begin=0, end=3))],
    runner_type=MaxQRunner)


def model() -> Classifier:
    """Batch norm uses stored statistics, so that halves of a batch make a whole."""
    torch.manual_seed(1)
    return Classifier(dropout=0., norm_eval=True)


def weights(runner) -> dict[str, torch.Tensor]:
    """Raw weights, buffers and effective weights of a run."""
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'MaxQHook')
    effective = {f'{name}.effective': layer.effective.clone()
                 for name, layer in hook.handle.layers.items()}
    module = getattr(runner.model, 'module', runner.model)
    return {**module.state_dict(), **effective}


def main() -> None:
    out = Path(sys.argv[1])
    resume = dict(resume=True, load_from=sys.argv[2]) if len(sys.argv) > 2 else {}
    runner = make_runner(out, model=model(), batch_size=2, launcher='pytorch', **SETTINGS, **resume)
    runner.train()
    torch.save(weights(runner), out / f'rank{get_rank()}.pth')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
