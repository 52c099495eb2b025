"""Print, draw and write what N:M sparsity a checkpoint has, layer by layer.

    python tools/report.py CONFIG CHECKPOINT [--size H W] [--plot OUT.png] [--json OUT]
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from torch import nn

from maxq_mm import cli
from maxq_mm.engine import figure
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.nn.report import report


def inference_arguments(model: nn.Module, size: tuple[int, int]) -> tuple[torch.Tensor]:
    """Make ``model``'s plain forward run on one image of ``size``, and return that image."""
    sample = DetDataSample(metainfo=dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
        scale_factor=(1.0, 1.0)))
    model.forward = partial(model.forward, data_samples=[sample])
    return (torch.zeros(1, 3, *size), )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of MaxQ training, or folded')
    parser.add_argument('--size', nargs=2, type=cli.positive, metavar=('H', 'W'),
                        help='also count multiply-accumulates on an image of this size')
    parser.add_argument('--plot', type=Path, metavar='OUT', help='picture to write')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    args = parser.parse_args()
    cli.check_outputs(args.json, args.plot, inputs=[args.config, args.checkpoint])
    if args.plot is not None:
        figure.check_kind(args.plot)

    cfg = cli.read_config(args)
    checkpoint = cli.read_checkpoint(args.checkpoint)
    patterns = layer_patterns(checkpoint)
    if not patterns:
        raise cli.InputError(f'{args.checkpoint}: no MaxQ checkpoint')
    model = cli.load_model(cfg, checkpoint, args.checkpoint)
    inputs = inference_arguments(model, tuple(args.size)) if args.size else None
    found = report(model, inputs, patterns)
    print(found)
    if args.json is not None:
        cli.write_json(found.as_dict(), args.json)
    if args.plot is not None:
        with cli.writing(args.plot):
            figure.save(figure.of_checkpoint(found, model, checkpoint), args.plot)


if __name__ == '__main__':
    cli.run(main)
