"""Write a detector as an ONNX file that needs standard operators alone, and check it.

    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx [--size H W | --dynamic] [--fp16]
                                [--features]

OUT is written only if each of its stages (feature maps, heads, suppression, masks) computes in
onnxruntime what it computes in mmdet with the checkpoint, but for rounding, on images of the val
set (or a random one where that is not there), and if every N:M zero is one in the file.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from onnx import ModelProto
from rich.console import Console
from rich.progress import track
from torch import nn

from maxq_mm import cli
from maxq_mm.deploy import export, reference, support, verify
from maxq_mm.deploy.agreement import Agreement, compare
from maxq_mm.deploy.metadata import Metadata
from maxq_mm.deploy.onnx_detector import OnnxDetector
from maxq_mm.engine.checkpoint import layer_patterns
from maxq_mm.utils.files import written_whole

MIB = 2**20
MOST_READ = 200  # images looked at for some that fit into the file
# What a file for images of any size is traced with.
SOME_SIZE = (128, 192)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint file')
    parser.add_argument('out', type=Path, metavar='OUT.onnx', help='file to write')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--size', nargs=2, type=cli.positive, metavar=('H', 'W'),
                      help='input size; else one that each image of the test pipeline fits into')
    size.add_argument('--dynamic', action='store_true', help='take images of any size')
    parser.add_argument('--fp16', action='store_true', help='weights and activations in float16')
    parser.add_argument('--features', action='store_true',
                        help='backbone and neck only, of any detector')
    parser.add_argument('--verify-images', type=cli.positive, default=5, metavar='N',
                        help='how many images mmdet and onnxruntime are compared on (default: 5)')
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        raise cli.InputError(f'OUT must end with .onnx, got {args.out}')
    cli.check_outputs(args.out, inputs=[args.config, args.checkpoint])
    return args


def test_set(cfg: Config) -> dict:
    """The settings of the test set; none where the config has none."""
    return (cfg.get('test_dataloader') or {}).get('dataset') or {}


def pipeline_size(cfg: Config, divisor: int) -> tuple[int, int]:
    """Height and width that each image of the test pipeline fits into, multiples of ``divisor``."""
    width = height = None
    for transform in test_set(cfg).get('pipeline') or cfg.get('test_pipeline') or ():
        if transform['type'] == 'Resize' and isinstance(transform.get('scale'), (tuple, list)):
            width, height = transform['scale']
            if transform.get('keep_ratio'):  # for upright images as for others
                width = height = max(width, height)
        elif transform['type'] == 'Pad' and transform.get('size'):
            width, height = transform['size']
    if width is None:
        raise cli.InputError("the test pipeline's Resize does not tell the input size: give "
                             '--size H W, or --dynamic')
    return tuple(-(-side // divisor) * divisor for side in (height, width))


def input_size(args: argparse.Namespace, cfg: Config, divisor: int) -> tuple[int, int] | None:
    """What the arguments ask for; None for any size."""
    if args.dynamic:
        return None
    if args.size is None:
        return pipeline_size(cfg, divisor)
    if any(side % divisor for side in args.size):
        raise cli.InputError(f'--size must be multiples of {divisor} (pad_size_divisor), got '
                             f'{args.size[0]} {args.size[1]}')
    return tuple(args.size)


def class_names(cfg: Config, checkpoint: dict) -> tuple[str, ...]:
    """What the checkpoint was trained to find; else what the config's data set names."""
    stored = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    dataset = test_set(cfg)
    kind = DATASETS.get(dataset['type']) if 'type' in dataset else None
    known = getattr(kind, 'METAINFO', {})
    return tuple(stored.get('classes') or stored.get('CLASSES')
                 or (dataset.get('metainfo') or {}).get('classes') or known.get('classes', ()))


def describe(args: argparse.Namespace, cfg: Config, checkpoint: dict,
             model: nn.Module) -> Metadata:
    """What the file will say of itself."""
    divisor = max(model.data_preprocessor.pad_size_divisor, 1)
    masks = not args.features and model.roi_head.with_mask
    return Metadata(
        kind='features' if args.features else 'detector', config=args.config.name,
        classes=class_names(cfg, checkpoint), size=input_size(args, cfg, divisor),
        divisor=divisor, precision='float16' if args.fp16 else 'float32',
        mask_threshold=model.roi_head.test_cfg.mask_thr_binary if masks else None)


def images(cfg: Config, about: Metadata, most: int) -> Iterator[dict]:
    """Batches of one image that fits into the file: of the val set, or a random one."""
    found, dataset = 0, ()
    if cfg.get('val_dataloader'):
        try:
            cli.check_data(cfg, 'val')
            # An empty set cannot be serialized.
            dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, serialize_data=False))
        except cli.InputError:
            pass  # not on this machine
    for index in range(min(len(dataset), MOST_READ)):
        data = dataset[index]
        image, sample = data['inputs'], data['data_samples']
        height, width = image.shape[-2:]
        if found == most:
            return
        if about.size and (height > about.size[0] or width > about.size[1]):
            continue
        found += 1
        yield batch(image, sample)
        if about.size is None and found == 1:  # what --dynamic is for
            yield batch(image[:, :height * 2 // 3], DetDataSample())
    if not found:
        size = about.size or about.canvas(*SOME_SIZE)
        coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        yield batch(nn.functional.interpolate(coarse, size, mode='bilinear')[0], DetDataSample())


def batch(image: torch.Tensor, sample: DetDataSample) -> dict:
    """What a dataloader gives of an image, detections asked for in its own pixels."""
    size = tuple(image.shape[-2:])
    sample.set_metainfo(dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.)))
    return pseudo_collate([dict(inputs=image, data_samples=sample)])


def verified(model: nn.Module, file: ModelProto, about: Metadata, batches: list[dict]) -> str:
    """What differs between mmdet and the file, stage by stage and as a whole, in some lines.

    Raises:
        InputError: a stage differs by more than rounding explains.
    """
    verifier = verify.Verifier(model, file, about)
    whole, agreement = about.kind == 'detector', Agreement()
    detector = OnnxDetector(file.SerializeToString(), about) if whole else None
    for data in track(batches, 'mmdet and onnxruntime', console=Console(stderr=True),
                      transient=True):
        verifier.check(data)
        if whole:
            agreement.add(compare(reference.predict(model, data, about),
                                  detector.test_step(data)[0].pred_instances))
    lines = [f'{len(batches)} image(s), stages fed alike, largest difference and what rounding '
             'explains, of the range of values:',
             *(f'  {stage:<15} {worst:.1e} of {limit:.1e}'
               for stage, (worst, limit) in verifier.worst.items())]
    return '\n'.join([*lines, *[f'as a whole: {agreement}'] * whole])


def main() -> None:
    args = parse_args()
    cfg = cli.read_config(args)
    checkpoint = cli.read_checkpoint(args.checkpoint)
    patterns = layer_patterns(checkpoint)
    model = cli.load_model(cfg, checkpoint, args.checkpoint)
    (support.check_features if args.features else support.check_whole)(model)
    about = describe(args, cfg, checkpoint, model)
    batches = list(images(cfg, about, args.verify_images))

    print(f'exporting {type(model).__name__}, input {size_text(about)}', flush=True)
    file = export.to_onnx(export.prepared(model, patterns, half=args.fp16), about, patterns,
                          about.size or about.canvas(*SOME_SIZE))
    content = file.SerializeToString()
    print(verified(model, file, about, batches), flush=True)
    print(export.check_zeros(file, model.state_dict(), patterns))
    with cli.writing(args.out), written_whole(args.out) as out:
        out.write(content)
    print(f'{args.out}: {len(content) / MIB:.1f} MiB, {about.precision}, opset {export.OPSET}')


def size_text(about: Metadata) -> str:
    """The input's shape for people."""
    if about.size is None:
        return f'of any size (multiples of {about.divisor})'
    return f'1 x 3 x {about.size[0]} x {about.size[1]}'


if __name__ == '__main__':
    cli.run(main)
