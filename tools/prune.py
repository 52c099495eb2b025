"""Prune a trained detector without training: one pattern, or a plan's.

    python tools/prune.py CONFIG CHECKPOINT OUT (--pattern N:M | --plan PLAN.py) [--images 64]

Kept weights make up for the pruned ones as far as they can, and batch norm's statistics are
measured again, on images of the config's train set. OUT is a folded checkpoint, which CONFIG tests.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from torch import nn

from maxq_mm import cli
from maxq_mm.allocation.one_shot import SALIENCIES
from maxq_mm.allocation.prune import prune, pruned_checkpoint
from maxq_mm.cli.calibration import add_image_arguments, images, read_dense
from maxq_mm.nn.select import select
from maxq_mm.nn.settings import SparsitySettings

_LAYERS = 'pattern', 'include', 'exclude', 'overrides', 'predictors'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of the trained dense detector')
    parser.add_argument('out', type=Path, help='checkpoint to write')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--pattern', metavar='N:M', help='one pattern for all layers that admit it, '
                      'but those that predict')
    what.add_argument('--plan', type=Path, metavar='PLAN.py',
                      help='config with a MaxQHook, such as allocate.py writes')
    parser.add_argument('--include', nargs='+', default=(), metavar='NAME',
                        help='with --pattern: prefixes of module names (default: the whole model)')
    parser.add_argument('--exclude', nargs='+', default=(), metavar='NAME',
                        help='with --pattern: prefixes to leave dense')
    parser.add_argument('--saliency', choices=SALIENCIES, default=SALIENCIES[0],
                        help='which weights to keep: the largest, or the largest |w|^2 times the '
                        'mean square of their inputs')
    parser.add_argument('--no-compensation', action='store_true',
                        help='leave the kept weights as they are')
    parser.add_argument('--no-norms', action='store_true',
                        help="leave batch norm's statistics as they are")
    add_image_arguments(parser)
    args = parser.parse_args()
    if args.plan is not None and (args.include or args.exclude):
        raise cli.InputError('--include and --exclude go with --pattern; a plan has its own')
    return args


def patterns_of(model: nn.Module, args: argparse.Namespace) -> dict[str, str]:
    """Pattern by name of the layers to prune."""
    if args.plan is None:
        chosen = dict(pattern=args.pattern, include=args.include, exclude=args.exclude)
        model.requires_grad_(True)  # what training would leave frozen can be pruned as well
    else:
        plan = cli.read_config(argparse.Namespace(config=args.plan, data_root=None,
                                                  cfg_options=None))
        hook = maxq_hook(plan, args.plan)
        chosen = {key: hook[key] for key in _LAYERS if key in hook}
        chosen.setdefault('include', ('backbone', ))  # the hook's own default
    selection = select(model, SparsitySettings.of(**chosen))
    return {name: str(pattern) for name, pattern in selection.sparse.items()}


def maxq_hook(plan: Config, path: Path) -> dict:
    hooks = cli.maxq_hooks(plan)
    if not hooks:
        raise cli.InputError(f'--plan {path} has no MaxQHook')
    return hooks[0]


def main() -> None:
    args = parse_args()
    cli.check_device(args.device)
    cfg = cli.read_config(args)
    checkpoint = read_dense(args.checkpoint)
    cli.check_outputs(args.out, inputs=[args.config, args.checkpoint])
    model = cli.load_model(cfg, checkpoint, args.checkpoint).to(args.device)
    patterns = patterns_of(model, args)
    distortion = prune(model, images(cfg, args), patterns, saliency=args.saliency,
                       compensate=not args.no_compensation, norms=not args.no_norms,
                       seed=args.seed, progress=True)
    cli.write_checkpoint(pruned_checkpoint(model.cpu(), patterns, checkpoint.get('meta', {})),
                         args.out)
    weights = [model.get_submodule(name).weight for name in patterns]
    kept = (sum(int(weight.count_nonzero()) for weight in weights)
            / sum(weight.numel() for weight in weights))
    print(f'{args.out}: {len(patterns)} layers pruned, {kept:.2%} of their weights kept; '
          f'distortion {distortion:.3g}')


if __name__ == '__main__':
    cli.run(main)
