"""Leave in a checkpoint only what inference needs.

    python tools/fold.py CHECKPOINT OUT [--strict] [--compact]

The state dict of a training checkpoint holds the effective weights already; the optimizer, the log
history and the raw weights beside it go. The result loads with the plain mmdet config. With
--compact the zeros go, too: maxq_mm.load_compact gives back what stands in OUT without the flag,
and these tools read either; folding a compact file gives the plain one.
"""

import argparse
import io
from pathlib import Path

import torch

from maxq_mm import cli
from maxq_mm.engine.checkpoint import fold_checkpoint, layer_patterns
from maxq_mm.engine.compact import to_compact
from maxq_mm.functional.masks import satisfies

MIB = 2**20


def file_size(checkpoint: dict) -> int:
    """Bytes of the file that a checkpoint makes."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='checkpoint that MaxQ training wrote')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--strict', action='store_true',
                        help='refuse a network whose layers do not all satisfy their N:M pattern')
    parser.add_argument('--compact', action='store_true',
                        help='write values and indices instead of zeros; implies --strict')
    args = parser.parse_args()

    cli.check_outputs(args.out, inputs=[args.checkpoint])
    checkpoint = cli.read_checkpoint(args.checkpoint)
    try:
        folded = fold_checkpoint(checkpoint)
        patterns = layer_patterns(folded)
        missing = [name for name in patterns
                   if f'{name}.weight' not in folded.get('state_dict', {})]
        if missing:
            raise cli.InputError(f'it has no {missing[0]}.weight')
        open_layers = [name for name, pattern in patterns.items()
                       if not satisfies(folded['state_dict'][f'{name}.weight'], pattern)]
    except cli.InputError as error:
        raise cli.InputError(f'{args.checkpoint}: {error}') from error
    if (args.strict or args.compact) and open_layers:
        raise cli.InputError(
            f'{args.checkpoint}: {len(open_layers)} of {len(patterns)} layers do not satisfy their '
            f'pattern, such as {open_layers[0]} ({patterns[open_layers[0]]})')
    cli.write_checkpoint(to_compact(folded) if args.compact else folded, args.out)
    sizes = [path.stat().st_size / MIB for path in (args.checkpoint, args.out)]
    print(f'{args.out}: {len(patterns) - len(open_layers)} of {len(patterns)} layers satisfy their '
          f'pattern, {sizes[0]:.1f} MiB -> {sizes[1]:.1f} MiB')
    if args.compact:
        dense = file_size(folded) / MIB
        print(f'compact {sizes[1]:.2f} MiB / dense {dense:.2f} MiB = {sizes[1] / dense:.3f}')


if __name__ == '__main__':
    cli.run(main)
