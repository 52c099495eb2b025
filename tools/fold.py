"""Leave in a checkpoint only what inference needs.

    python tools/fold.py CHECKPOINT OUT [--strict]

The state dict of a training checkpoint holds the effective weights already; the optimizer, the log
history and the raw weights beside it go. The result loads with the plain mmdet config.
"""

import argparse
from pathlib import Path

import cli

from maxq_mm.engine.checkpoint import fold_checkpoint, layer_patterns
from maxq_mm.functional.masks import satisfies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='checkpoint that MaxQ training wrote')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--strict', action='store_true',
                        help='refuse a network whose layers do not all satisfy their N:M pattern')
    args = parser.parse_args()

    checkpoint = cli.read_checkpoint(args.checkpoint)
    cli.check_not_itself(args.out, args.checkpoint)
    try:
        folded = fold_checkpoint(checkpoint)
        patterns = layer_patterns(folded)
        open_layers = [name for name, pattern in patterns.items()
                       if not satisfies(folded['state_dict'][f'{name}.weight'], pattern)]
    except (ValueError, KeyError) as error:
        raise cli.UsageError(f'{args.checkpoint}: {error}') from error
    if args.strict and open_layers:
        raise cli.UsageError(
            f'{args.checkpoint}: {len(open_layers)} of {len(patterns)} layers do not satisfy their '
            f'pattern, such as {open_layers[0]} ({patterns[open_layers[0]]})')
    cli.write_checkpoint(folded, args.out)
    sizes = [path.stat().st_size / 2**20 for path in (args.checkpoint, args.out)]
    print(f'{args.out}: {len(patterns) - len(open_layers)} of {len(patterns)} layers satisfy their '
          f'pattern, {sizes[0]:.1f} MiB -> {sizes[1]:.1f} MiB')


if __name__ == '__main__':
    cli.run(main)
