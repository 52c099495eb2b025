"""Turn an ImageNet classifier of MaxQ's or SR-STE's published code into an mmdet backbone.

    python tools/import_imagenet.py CHECKPOINT OUT [--depth 50]

OUT has the names of mmdet's ResNet, so that a detector's backbone starts from it by its init_cfg.
Weights stay raw: as they were trained, before any mask. The masks beside them are dropped, since
training computes them anew, and so is the classifier. torchvision's ResNet files are taken, too.
Weights of half precision become float32; other types stay.

The stride is where these files' networks have it with the backbone's style='pytorch', as in mmdet's
R50 configs. Batch norm in a sparse classifier's file belongs to the masked weights: train with the
same pattern and no ramp to start from the network that it was.
"""

import argparse
from pathlib import Path

import torch
from mmdet.models.backbones import ResNet

from maxq_mm import cli
from maxq_mm.engine.imagenet import import_classifier

DEPTHS = tuple(ResNet.arch_settings)


def backbone_shapes(depth: int) -> dict[str, torch.Size]:
    """Shape by name of every weight of mmdet's ResNet."""
    with torch.device('meta'):
        return {name: value.shape for name, value in ResNet(depth).state_dict().items()}


def fitting_depth(checkpoint: dict) -> int | None:
    """The depth at which the checkpoint can be imported; None if there is none."""
    for depth in DEPTHS:
        try:
            import_classifier(checkpoint, backbone_shapes(depth))
        except cli.InputError:
            continue
        return depth
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='ResNet trained on ImageNet')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--depth', type=int, choices=DEPTHS, default=50,
                        help='number of layers of the ResNet (default: 50)')
    args = parser.parse_args()

    cli.check_outputs(args.out, inputs=[args.checkpoint])
    checkpoint = cli.read_checkpoint(args.checkpoint)
    try:
        imported = import_classifier(checkpoint, backbone_shapes(args.depth))
    except cli.InputError as error:
        depth = fitting_depth(checkpoint)
        hint = '' if depth is None else f'; it fits --depth {depth}'
        reason = ' '.join(str(error).splitlines())  # names come from the file
        raise cli.InputError(
            f'{args.checkpoint} does not fit a ResNet-{args.depth}: {reason}{hint}') from error
    meta = dict(source=args.checkpoint.name, depth=args.depth)
    cli.write_checkpoint(dict(meta=meta, state_dict=imported.state_dict), args.out)

    print(f'{args.out}: {len(imported.state_dict)} weights of a ResNet-{args.depth}')
    if imported.masks:
        print(f'dropped {len(imported.masks)} masks: training computes them anew')
    if imported.head:
        print(f'dropped {len(imported.head)} weights of the classifier (fc): a detector has none')
    print('in the config of a detector:')
    print(f"model = dict(backbone=dict(depth={args.depth}, "
          f"init_cfg=dict(type='Pretrained', checkpoint={str(args.out)!r})))")


if __name__ == '__main__':
    cli.run(main)
