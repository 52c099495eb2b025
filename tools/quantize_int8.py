"""Make an exported detector int8: weights and activations, with every pruned weight exactly 0.

    python tools/quantize_int8.py CONFIG MODEL.onnx OUT.onnx [--calib-images N]
                                  [--keep-float [NAME ...]]

Ranges of activations come from images of the config's train set, prepared by its test pipeline.
OUT is written only if all N:M layers keep their pattern and zeros; test_onnx.py takes it as it
takes MODEL.
"""

import argparse
from pathlib import Path

import onnx
from test_onnx import check_classes

from maxq_mm import cli
from maxq_mm.cli.calibration import add_ranges_argument, calibration_set, images_for_ranges
from maxq_mm.deploy import int8, onnx_detector
from maxq_mm.functional.calibration import PREDICTORS
from maxq_mm.utils.files import written_whole

MIB = 2**20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('model', type=Path, metavar='MODEL.onnx',
                        help='float32 file that export_onnx.py wrote')
    parser.add_argument('out', type=Path, metavar='OUT.onnx', help='file to write')
    add_ranges_argument(parser)
    parser.add_argument('--keep-float', nargs='*', metavar='NAME',
                        help='layers to leave float32, by a part of their names (default: the '
                        f'first, and {" ".join(PREDICTORS)})')
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        raise cli.InputError(f'OUT must end with .onnx, got {args.out}')
    cli.check_outputs(args.out, inputs=[args.config, args.model])
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config(args, 'train', 'test')
    model, about = int8.read_float(args.model)
    if args.keep_float is not None:
        int8.check_names(model, args.keep_float)
    dataset = calibration_set(cfg)
    check_classes(about, dataset.datasets[0], args.model)
    images = images_for_ranges(dataset, args)
    ranges = int8.measure_ranges(model, (onnx_detector.feeds(image['inputs'], about)
                                         for image in images))
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
