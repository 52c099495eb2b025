"""Started twice by torch.distributed.run: trains one half of each batch, keeps what came out."""

import atexit
import os
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank

from maxq_mm.engine.runner import WholeCheckpointRunner

from .runs import Classifier, make_runner

SETTINGS = dict(
    hooks=[dict(type='MaxQHook', pattern='2:4', decay=0.05,
                ramp=dict(type='linear', begin=0, end=3))],
    runner_type=WholeCheckpointRunner)


def model(norm_eval: bool = True) -> Classifier:
    """Batch norm uses stored statistics, so that halves of a batch make a whole. In float64, sums
    in another order turn no mask."""
    torch.manual_seed(1)
    return Classifier(dropout=0., norm_eval=norm_eval).double()


def weights(runner) -> dict[str, torch.Tensor]:
    """Raw weights, buffers and effective weights of a run."""
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'MaxQHook')
    effective = {f'{name}.effective': layer.effective.clone()
                 for name, layer in hook.handle.layers.items()}
    module = getattr(runner.model, 'module', runner.model)
    return {**module.state_dict(), **effective}


def write_threads(out: Path) -> None:
    """The names of this process's threads."""
    names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
    (out / f'threads{os.environ["RANK"]}.txt').write_text(''.join(names))


def main(out: Path):
    """The runner, which so lives until the process ends, as that of a notebook does."""
    train_norm = sys.argv[2:] == ['--train-norm']
    resume = dict(resume=True, load_from=sys.argv[2]) if sys.argv[2:] and not train_norm else {}
    runner = make_runner(out, model=model(norm_eval=not train_norm), batch_size=2,
                         launcher='pytorch', **SETTINGS, **resume)
    runner.train()
    validated = torch.as_tensor(runner.message_hub.get_scalar('val/total').data[0][-1])
    torch.save({**weights(runner), 'validated': validated}, out / f'rank{get_rank()}.pth')
    return runner


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    atexit.register(write_threads, folder)  # the last of all
    kept = main(folder)
