"""Put a folded detector onto N:M kernels: write a file to serve it from, or see what they gain.

    python tools/accelerate.py CONFIG CHECKPOINT OUT [--int8 [--calib-images N]] [--size H W]
                               [--image-dir DIR] [--measure] ...
    python tools/accelerate.py CONFIG CHECKPOINT [--int8] [--threads N] [--layers] [--json OUT] ...

Every layer is measured on an image of the test set, or of a folder; --int8 takes its ranges from
images of the train set, or of that folder. OUT is for
maxq_mm.load_accelerated, which needs neither, and for tools/test.py. Without OUT, or with
--measure, the detector is evaluated dense and accelerated (from OUT, if it is written) with the
metrics of its config, and both are timed on test images, one at a time and by turns, from the image
to the detections.
"""

import argparse
import copy
import logging
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from torch import Tensor, nn

from maxq_mm import accelerate, cli, load_accelerated, save_accelerated
from maxq_mm.cli.calibration import (
    ImageFolder,
    add_ranges_argument,
    calibration_set,
    images_for_ranges,
)
from maxq_mm.cli.timing import alternate, machine, summarize

# Scores are given to the third digit.
SAME = 0.0005
MIB = 2**20
CPU = torch.device('cpu')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_run_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='folded checkpoint')
    parser.add_argument('out', type=Path, nargs='?', metavar='OUT',
                        help='file to write, for maxq_mm.load_accelerated')
    parser.add_argument('--int8', action='store_true', help='let layers compute in int8')
    add_ranges_argument(parser)
    parser.add_argument('--size', nargs=2, type=cli.positive, metavar=('H', 'W'),
                        help='of the images that it is to serve, as the network gets them '
                        '(default: as the test pipeline makes them)')
    parser.add_argument('--image-dir', type=Path, metavar='DIR',
                        help='measure layers on the first image of this folder, and take ranges '
                        'from it, in place of the data sets')
    parser.add_argument('--measure', action='store_true', help='evaluate and time what is written')
    parser.add_argument('--threads', type=cli.positive, help='CPU threads')
    parser.add_argument('--repeat', type=cli.positive, default=20, help='images to time')
    parser.add_argument('--layers', action='store_true', help='say what became of each layer')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    args = parser.parse_args()
    args.measure |= args.out is None
    cli.check_outputs(args.out, args.json, inputs=[args.config, args.checkpoint])
    return args


def main() -> None:
    args = parse_args()
    checkpoint = cli.read_checkpoint(args.checkpoint)
    cfg = cli.prepare_run(args)
    if args.measure or args.image_dir is None:
        cli.check_data(cfg, 'test')
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = cli.load_model(cfg, checkpoint, args.checkpoint)
    if args.image_dir is None:
        images = cli.build_dataset(cfg, 'test', DATASETS.build)
        cli.check_classes(cli.trained_classes(checkpoint), args.checkpoint, images)
    else:
        images = ImageFolder(cfg, args.image_dir)
    model.cfg = cfg
    model.dataset_meta = dataset_meta(checkpoint, getattr(images, 'metainfo', {}))
    dense = copy.deepcopy(model) if args.measure else None
    options = {} if not args.int8 else dict(precision='int8', calibration=images_for_ranges(
        calibration_set(cfg) if args.image_dir is None else images, args))
    report = accelerate(model, batch(model, images[0]['inputs'], args.size), **options)
    result = dict(machine=machine(CPU), report=report.as_dict())
    if args.out is not None:
        with cli.writing(args.out):
            save_accelerated(model, args.out)
        result['bytes'] = args.out.stat().st_size if args.out.is_file() else None
    if args.measure:
        variants = dict(dense=dense, accelerated=load_accelerated(args.out)
                        if args.out is not None and args.out.is_file() else model)
        result['rows'], result['scores'] = measure(cfg, variants, args.repeat)

    if args.layers:
        print(report)
    else:
        print(f'{len(report.used)} of {len(report.layers)} layers on sparse kernels, '
              f'{len(report.int8)} in int8 ({report.kernels}); as programs: '
              + (', '.join(report.traced) or 'none'))
    if args.out is not None:
        print(sizes(args, model, result['bytes']))
    if args.measure:
        print(line(result['rows'], result['scores'], args.int8))
    if args.json is not None:
        cli.write_json(result, args.json)


def dataset_meta(checkpoint: dict, found: Mapping) -> dict:
    """Classes and palette, as mmdet's init_detector finds them; those of the data are ``found``."""
    trained = checkpoint.get('meta', {}).get('dataset_meta') or {}
    trained = {key.lower(): value for key, value in trained.items()}
    return dict(classes=trained.get('classes') or found.get('classes'),
                palette=found.get('palette') or trained.get('palette') or 'random')


def batch(model: nn.Module, image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """An image ``(3, H, W)`` as the backbone gets it, alone, at ``size``."""
    if size is not None:
        image = nn.functional.interpolate(image[None].float(), size, mode='bilinear')[0]
    return model.data_preprocessor(dict(inputs=[image]), False)['inputs']


def measure(cfg: Config, variants: dict[str, nn.Module], repeat: int
            ) -> tuple[list[dict], dict[str, dict]]:
    """Times of one image, and the metrics of the config, of each detector."""
    cfg.load_from, cfg.resume = None, False
    runner = cli.build_runner(cfg)
    dataset = runner.test_dataloader.dataset
    batches = [pseudo_collate([dataset[i]]) for i in range(min(repeat, len(dataset)))]

    def on(model):
        turns = cycle(batches)
        return lambda: model.test_step(copy.deepcopy(next(turns)))

    rows = summarize(alternate({name: on(model) for name, model in variants.items()}, repeat, CPU),
                     'dense')
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # not a line for every image
    scores = {}
    for name, model in variants.items():
        runner.model = model
        scores[name] = runner.test()
    return rows, scores


def sizes(args: argparse.Namespace, model: nn.Module, written: int | None) -> str:
    """What was written, and against what it is small."""
    if written is None:  # a pipe
        return f'{args.out}: written'
    dense = sum(value.nbytes for value in model.state_dict().values())
    return (f'{args.out}: {written / MIB:.2f} MiB, {written / dense:.3f} of the dense weights\' '
            f'{dense / MIB:.2f} MiB')


def line(rows: list[dict], scores: dict[str, dict], int8: bool) -> str:
    """Milliseconds and mAP of the two detectors, which only in float32 are to be the same."""
    dense, fast = (row['median_s'] * 1e3 for row in rows)
    maps = {name: [found[name] for found in scores.values()]
            for name in scores['dense'] if name.endswith('_mAP')}
    off = max((abs(a - b) for a, b in maps.values()), default=0.)
    found = ', '.join(f'{name.split("/")[-1]} {a:.3f} and {b:.3f}' for name, (a, b) in maps.items())
    verdict = ('the same' if off < SAME else f'{off * 100:.1f} points apart' if int8
               else 'NOT THE SAME')
    return (f'detector: {dense:.1f} ms an image dense, {fast:.1f} ms accelerated '
            f'({dense / fast:.2f}x); ' + (f'{found}: {verdict}' if maps else 'no scores'))


if __name__ == '__main__':
    cli.run(main)
