"""Draw detections beside ground truth, a few test images in one picture.

    python tools/draw.py CONFIG CHECKPOINT OUT.png [--images 6]

mmdet's visualizer draws. Its ``test.py --show-dir`` writes every image to a file of its own, in its
own size, where labels hide what is in small ones.
"""

import argparse
import math
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.registry import DATASETS, VISUALIZERS
from mmengine.dataset import pseudo_collate

from maxq_mm import cli
from maxq_mm.utils.files import written_whole

SCALES = 0.1, 16


def tile(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images ``(H, W, 3)``, padded with white to one size, row by row in one picture."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    cells = [mmcv.impad(image, shape=(height, width), pad_val=255) for image in images]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i:i + columns]) for i in range(0, len(cells), columns)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint file')
    parser.add_argument('out', type=Path, help='picture to write')
    parser.add_argument('--images', type=cli.positive, default=6, help='how many, from the first')
    parser.add_argument('--score', type=float, default=0.5, help='least score of a detection shown')
    parser.add_argument('--scale', type=float, default=2.0, help='enlargement of each image')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    if args.out.suffix not in ('.png', '.jpg', '.jpeg'):
        raise cli.InputError(f'OUT must end with .png or .jpg, got {args.out}')
    if not SCALES[0] <= args.scale <= SCALES[1]:
        raise cli.InputError(f'--scale must be from {SCALES[0]} to {SCALES[1]}, got {args.scale}')
    if math.isnan(args.score):
        raise cli.InputError('--score must be a number, got nan')
    cli.check_outputs(args.out, inputs=[args.config, args.checkpoint])
    cli.check_device(args.device)

    cfg = cli.read_config(args, 'test')
    cli.check_settings(cfg, args.config, 'test_dataloader', 'visualizer')
    cli.check_data(cfg, 'test')
    checkpoint = cli.read_checkpoint(args.checkpoint)
    model = cli.load_model(cfg, checkpoint, args.checkpoint).to(args.device)
    dataset = cli.build_dataset(cfg, 'test', DATASETS.build)
    cli.check_classes(cli.trained_classes(checkpoint), args.checkpoint, dataset)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))
    visualizer.dataset_meta = dataset.metainfo

    pairs = []
    for index in range(min(args.images, len(dataset))):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        large = mmcv.imrescale(image, args.scale)
        for instances in (sample.gt_instances, sample.pred_instances):
            enlarge(instances, args.scale, large.shape[:2])
        visualizer.add_datasample('sample', large, sample, pred_score_thr=args.score)
        pairs.append(visualizer.get_image())
    _, content = cv2.imencode(args.out.suffix, mmcv.rgb2bgr(tile(pairs, columns=2)))
    with cli.writing(args.out), written_whole(args.out) as file:
        file.write(content.tobytes())
    print(f'{args.out}: {len(pairs)} images, ground truth left, detections right')


def enlarge(instances, scale: float, shape: tuple[int, int]) -> None:
    """Scale the boxes and masks of ``instances`` in place to an image of ``shape``."""
    boxes = instances.bboxes
    instances.bboxes = torch.as_tensor(getattr(boxes, 'tensor', boxes)) * scale
    if 'masks' in instances:
        masks = instances.masks
        if not isinstance(masks, torch.Tensor):
            masks = torch.from_numpy(masks.to_ndarray())
        instances.masks = torch.nn.functional.interpolate(
            masks[None].float(), size=shape)[0].bool() if len(masks) else masks.new_zeros(
                (0, *shape), dtype=torch.bool)


if __name__ == '__main__':
    cli.run(main)
