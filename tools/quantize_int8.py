"""Make an exported detector int8: weights and activations, with every pruned weight exactly 0.

    python tools/quantize_int8.py CONFIG MODEL.onnx OUT.onnx [--calib-images N]
                                  [--keep-float [NAME ...]]

Ranges of activations come from images of the config's train set, prepared by its test pipeline.
OUT is written only if all N:M layers keep their pattern and zeros; test_onnx.py takes it as it
takes MODEL.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import onnx
from rich.console import Console
from rich.progress import track
from torch.utils.data import ConcatDataset

from maxq_mm import cli
from maxq_mm.cli.calibration import calibration_set, evenly_spread
from maxq_mm.deploy import int8, onnx_detector
from maxq_mm.deploy.metadata import Metadata
from maxq_mm.utils.files import written_whole

MIB = 2**20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('model', type=Path, metavar='MODEL.onnx',
                        help='float32 file that export_onnx.py wrote')
    parser.add_argument('out', type=Path, metavar='OUT.onnx', help='file to write')
    parser.add_argument('--calib-images', type=cli.positive, default=64, metavar='N',
                        help='how many images the ranges are taken from (default: 64)')
    parser.add_argument('--keep-float', nargs='*', metavar='NAME',
                        help='layers to leave float32, by a part of their names (default: the '
                        'first, and those that predict, such as fc_cls)')
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        raise cli.InputError(f'OUT must end with .onnx, got {args.out}')
    cli.check_outputs(args.out, inputs=[args.config, args.model])
    return args


def feeds(dataset: ConcatDataset, count: int, about: Metadata) -> Iterator[dict]:
    """The file's inputs for ``count`` images, evenly spread over the data set."""
    for image in track(evenly_spread(dataset, count), 'calibrating', total=count,
                       console=Console(stderr=True), transient=True):
        yield onnx_detector.feeds(image['inputs'], about)


def main() -> None:
    args = parse_args()
    cfg = cli.read_config(args, 'train', 'test')
    model, about = int8.read_float(args.model)
    if args.keep_float is not None:
        int8.check_names(model, args.keep_float)
    dataset = calibration_set(cfg)
    cli.check_classes(about.classes, args.model, dataset.datasets[0])
    if args.calib_images > len(dataset):
        raise cli.InputError(f'--calib-images {args.calib_images}: the train set has '
                             f'{len(dataset)} images')

    ranges = int8.measure_ranges(model, feeds(dataset, args.calib_images, about))
    quantized = int8.quantize(model, ranges, args.keep_float)
    content = quantized.SerializeToString()
    onnx_detector.make_session(content)
    zeros = int8.check_zeros(model, onnx.load_from_string(content))
    with cli.writing(args.out), written_whole(args.out) as out:
        out.write(content)
    number, floats = int8.count_layers(model, quantized)
    print(f'calibrated on {args.calib_images} of {len(dataset)} training images; '
          f'{number} layers are int8, {len(floats)} stay float32'
          + f' ({", ".join(floats)})' * bool(floats))
    print(zeros)
    print(f'{args.out}: int8, {args.model.stat().st_size / MIB:.1f} MiB -> '
          f'{len(content) / MIB:.1f} MiB')


if __name__ == '__main__':
    cli.run(main)
