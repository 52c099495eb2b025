"""Choose a pattern for each layer of a trained dense detector, without training.

    python tools/allocate.py CONFIG CHECKPOINT OUT.py --budget 0.25 [--cost macs|bytes|ms]
                             [--patterns N:M ...] [--images 64] [--pruned OUT.pth] [--plot OUT.png]
                             [--json OUT] [--measured JSON]

Writes OUT.py, the config with a MaxQHook whose overrides are the plan and with the checkpoint to
start from, ready for train.py. That is CHECKPOINT, which a ramp prunes, or, with --pruned, OUT.pth:
CHECKPOINT pruned by the plan, as prune.py does. --measured takes what --json has written of the
same CHECKPOINT, and so gives the plan of another budget at once.
"""

import argparse
import hashlib
import json
from pathlib import Path

from mmengine.config import Config
from torch import nn

from maxq_mm import cli
from maxq_mm.allocation import Plan, allocate
from maxq_mm.allocation.allocate import PATTERNS, find_candidates
from maxq_mm.allocation.costs import KINDS
from maxq_mm.allocation.prune import prune, pruned_checkpoint
from maxq_mm.cli.calibration import add_image_arguments, images, read_dense
from maxq_mm.utils.files import save_text

_MEASURED = 'cost', 'patterns', 'include', 'exclude'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of the trained dense detector')
    parser.add_argument('out', type=Path, metavar='OUT.py', help='config to write')
    parser.add_argument('--budget', type=float, required=True, metavar='SHARE',
                        help='of the dense cost of all layers that can be sparse, in (0, 1)')
    parser.add_argument('--cost', choices=KINDS, default='macs',
                        help='what the budget counts (default: kept multiply-accumulates)')
    parser.add_argument('--patterns', nargs='+', default=PATTERNS, metavar='N:M',
                        help=f'candidates beside dense (default: {" ".join(PATTERNS)})')
    parser.add_argument('--include', nargs='+', default=(), metavar='NAME',
                        help='prefixes of module names to make sparse (default: the whole model)')
    parser.add_argument('--exclude', nargs='+', default=(), metavar='NAME',
                        help='prefixes to leave dense')
    add_image_arguments(parser)
    parser.add_argument('--pruned', type=Path, metavar='OUT.pth',
                        help='also prune by the plan without training, write that here, and let '
                        'OUT.py start from it, without a ramp')
    parser.add_argument('--plot', type=Path, metavar='OUT.png', help='picture to write')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    parser.add_argument('--measured', type=Path, metavar='JSON',
                        help='choose from what --json has written of the same checkpoint: '
                        'another budget without measuring again')
    args = parser.parse_args()
    if args.out.suffix != '.py':
        raise cli.InputError(f'OUT must end with .py, got {args.out}')
    if args.measured is not None:
        given = next((name for name in _MEASURED if getattr(args, name)
                      != parser.get_default(name)), None)
        if given is not None:
            raise cli.InputError(f'--{given} is what --measured has been measured with')
    if not 0 < args.budget < 1:
        raise cli.InputError(f'--budget must be a share in (0, 1), got {args.budget:g}')
    cli.check_outputs(args.out, args.json, args.plot, args.pruned,
                      inputs=[args.config, args.checkpoint, args.measured])
    return args


def planned(cfg: Config, plan: Plan, dense: Path, pruned: Path | None = None) -> Config:
    """``cfg`` with the plan in its MaxQHook; it gets one if it has none.

    Starts from the ``dense`` checkpoint, pruned by fading masks unless the hook says how, or from
    the ``pruned`` one, which needs no ramp.
    """
    hooks = cfg.setdefault('custom_hooks', [])
    hook = next(iter(cli.maxq_hooks(cfg)), None)
    if hook is None:
        hook = dict(type='MaxQHook')
        if pruned is None:  # fading leaves trained weights as they are where queries scale them
            hook.update(axes=(), ramp=ramp(cfg))
        hooks.append(hook)
    sparse = [pattern for pattern in plan.patterns.values() if pattern]
    hook.update(pattern=max(set(sparse), key=sparse.count), include=(), exclude=(),
                overrides=plan.overrides)
    if pruned is not None:
        hook.update(ramp=None)
    imports = cfg.setdefault('custom_imports', dict(imports=[]))
    imports.update(imports=list(dict.fromkeys((*imports.get('imports', ()), 'maxq_mm'))),
                   allow_failed_imports=False)
    cfg.update(custom_hooks=hooks, custom_imports=imports, load_from=str(pruned or dense))
    return cfg


def ramp(cfg: Config) -> dict | None:
    """A cubic ramp over 5/8 of the training, in which weights fade; None if it is too short."""
    train = cfg.get('train_cfg') or {}
    by_epoch = 'max_epochs' in train
    end = train.get('max_epochs' if by_epoch else 'max_iters', 0) * 5 // 8
    return dict(type='cubic', begin=0, end=end, by_epoch=by_epoch, fade=True) if end else None


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def measured(path: Path, model: nn.Module, checkpoint: Path, weights: str) -> Plan:
    """The plan that --json wrote for ``model``; ``weights`` is the digest of its ``checkpoint``.

    Raises:
        InputError: no such file, another content, or another network's or checkpoint's.
    """
    if not path.is_file():
        raise cli.InputError(f'--measured: file not found: {path}')
    try:
        stored = json.loads(path.read_text())
        plan, of = Plan.from_dict(stored), stored['checkpoint']
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise cli.InputError(f'--measured {path}: not what --json writes '
                             f'({cli.first_line(error)})') from error
    fitting = find_candidates(model, list(dict.fromkeys(
        text for row in plan.table.values() for text in row)))
    for name, row in plan.table.items():
        strange = set(row) - set(map(str, fitting.get(name, ())))
        if strange:
            raise cli.InputError(f'--measured {path} is of another network: no {name} here that '
                                 f'can be {min(strange)}')
    if of != weights:
        raise cli.InputError(f'--measured {path} is of other weights than {checkpoint}')
    return plan


def main() -> None:
    args = parse_args()
    cli.check_device(args.device)
    cfg = cli.read_config(args)
    checkpoint, weights = read_dense(args.checkpoint), digest(args.checkpoint)
    model = cli.load_model(cfg, checkpoint, args.checkpoint).to(args.device)
    data = images(cfg, args) if args.measured is None or args.pruned is not None else []
    if args.measured is None:
        plan = allocate(model, data, args.patterns, args.budget, args.cost,
                        include=args.include, exclude=args.exclude, seed=args.seed, progress=True)
    else:
        plan = measured(args.measured, model, args.checkpoint, weights).at(args.budget)
    print(plan)
    if not any(plan.patterns.values()):
        raise cli.InputError(f'--budget {args.budget:g} leaves every layer dense: nothing to train')
    if args.pruned is not None:
        patterns = {name: pattern for name, pattern in plan.patterns.items() if pattern}
        prune(model, data, patterns, seed=args.seed, progress=True)
        cli.write_checkpoint(pruned_checkpoint(model.cpu(), patterns, checkpoint.get('meta', {})),
                             args.pruned)
    comment = ''.join(f'# {line}\n' for line in str(plan).splitlines())
    with cli.writing(args.out):
        save_text(comment + planned(cfg, plan, args.checkpoint, args.pruned).pretty_text, args.out)
    if args.json is not None:
        cli.write_json(dict(plan.as_dict(), checkpoint=weights), args.json)
    if args.plot is not None:
        from maxq_mm.allocation.figure import draw
        from maxq_mm.engine.figure import save

        with cli.writing(args.plot):
            save(draw(plan), args.plot)


if __name__ == '__main__':
    cli.run(main)
