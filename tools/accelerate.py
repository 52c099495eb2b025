"""How fast a folded detector is on N:M kernels, and that it finds the same.

    python tools/accelerate.py CONFIG CHECKPOINT [--int8 [--calib-images N]] [--threads N]
                               [--layers] [--json OUT] ...

Evaluates the detector dense and accelerated (maxq_mm.accelerate) with the metrics of its config,
and times both on test images, one at a time and by turns, from the image to the detections.
"""

import argparse
import copy
import logging
from itertools import cycle
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger

from maxq_mm import accelerate, cli
from maxq_mm.cli.calibration import add_ranges_argument, calibration_set, images_for_ranges
from maxq_mm.cli.timing import alternate, machine, summarize

# Scores are given to the third digit.
SAME = 0.0005


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_run_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='folded checkpoint')
    parser.add_argument('--int8', action='store_true',
                        help='let layers compute in int8, in ranges from images of the train set')
    add_ranges_argument(parser)
    parser.add_argument('--threads', type=cli.positive, help='CPU threads')
    parser.add_argument('--repeat', type=cli.positive, default=20, help='images to time')
    parser.add_argument('--layers', action='store_true', help='say what became of each layer')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cli.check_outputs(args.json, inputs=[args.config, args.checkpoint])
    checkpoint = cli.read_checkpoint(args.checkpoint)
    cfg = cli.prepare_run(args)
    cli.check_data(cfg, 'test')
    cfg.load_from, cfg.resume = None, False
    # A folded model is past training, and an accelerated one refuses what the hook looks at.
    for hook in cli.maxq_hooks(cfg):
        cfg.custom_hooks.remove(hook)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    runner = cli.build_runner(cfg)
    model = runner.model
    cli.load_weights(model, checkpoint, args.checkpoint)
    model.eval()
    dense = copy.deepcopy(model)
    dataset = runner.test_dataloader.dataset
    batches = [pseudo_collate([dataset[i]]) for i in range(min(args.repeat, len(dataset)))]
    images = model.data_preprocessor(copy.deepcopy(batches[0]), False)['inputs']
    options = {} if not args.int8 else dict(
        precision='int8', calibration=images_for_ranges(calibration_set(cfg), args))
    report = accelerate(model, images, **options)

    def on(variant):
        turns = cycle(batches)
        return lambda: variant.test_step(copy.deepcopy(next(turns)))

    rows = summarize(alternate({'dense': on(dense), 'accelerated': on(model)}, args.repeat,
                               torch.device('cpu')), 'dense')
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # not a line for every image
    scores = {}
    for row, variant in zip(rows, (dense, model), strict=True):
        runner.model = variant
        scores[row['variant']] = runner.test()

    if args.layers:
        print(report)
    else:
        print(f'{len(report.used)} of {len(report.layers)} layers on sparse kernels, '
              f'{len(report.int8)} in int8 ({report.kernels}); as programs: '
              + (', '.join(report.traced) or 'none'))
    print(line(rows, scores, args.int8))
    if args.json is not None:
        cli.write_json(dict(machine=machine(torch.device('cpu')), rows=rows, scores=scores,
                            report=report.as_dict()), args.json)


def line(rows: list[dict], scores: dict[str, dict], int8: bool) -> str:
    """Milliseconds and mAP of the two detectors, which only in float32 are to be the same."""
    dense, fast = (row['median_s'] * 1e3 for row in rows)
    maps = {name: [scores[row['variant']][name] for row in rows]
            for name in scores['dense'] if name.endswith('_mAP')}
    off = max((abs(a - b) for a, b in maps.values()), default=0.)
    verdict = ('the same' if off < SAME else f'{off * 100:.1f} points apart' if int8
               else 'NOT THE SAME')
    found = ', '.join(f'{name.split("/")[-1]} {a:.3f} and {b:.3f}' for name, (a, b) in maps.items())
    return (f'detector: {dense:.1f} ms an image dense, {fast:.1f} ms accelerated '
            f'({dense / fast:.2f}x); {found}: {verdict}')


if __name__ == '__main__':
    cli.run(main)
