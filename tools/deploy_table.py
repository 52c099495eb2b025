"""mAP and milliseconds of one detector's networks, dense and N:M, in the runtimes there are.

    python tools/deploy_table.py CONFIG dense=DENSE.pth [NAME=CHECKPOINT ...] [--data-root DIR]
                                 [--runtimes ...] [--others ...] [--json OUT] [--plot OUT.png]

Exports and quantizes with the tools beside this one, evaluates all on the whole test set, and times
them on its first images, in turns. A latency is that from an image of the test pipeline to
detections with masks in the original image, one image at a time. The first network in the first
runtime is what the others are compared with.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from test_onnx import evaluate
from torch import nn

from maxq_mm import accelerate, cli, save_accelerated
from maxq_mm.cli import tradeoff
from maxq_mm.cli.calibration import calibration_set, evenly_spread
from maxq_mm.cli.timing import alternate, machine, summarize
from maxq_mm.deploy import openvino
from maxq_mm.deploy.onnx_detector import OnnxDetector, make_session
from maxq_mm.engine import figure
from maxq_mm.utils.tables import table

TOOLS = Path(__file__).parent
MIB = 2**20
SCORES = ('bbox_mAP', 'segm_mAP')
CPU = torch.device('cpu')
SESSIONS = {'onnxruntime': make_session, 'OpenVINO': openvino.OpenvinoSession}
INT8 = ' int8'
RUNTIMES = ('mmdet', *(name + end for name in (*SESSIONS, 'maxq_mm') for end in ('', INT8)))


@dataclass
class Variant:
    """One row: a network in a runtime; ``model.test_step`` detects, ``file`` holds it."""

    network: str
    runtime: str
    model: object
    file: Path

    @property
    def name(self) -> str:
        return f'{self.network}, {self.runtime}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('--data-root', type=Path, help='folder of the data, if elsewhere')
    parser.set_defaults(cfg_options=None)
    parser.add_argument('networks', nargs='+', metavar='NAME=CHECKPOINT',
                        help='checkpoints of the config, the one to compare with first')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, metavar='RUNTIME',
                        help=f'of the first network; all of these that are installed: '
                             f'{", ".join(RUNTIMES)}')
    parser.add_argument('--others', nargs='+', choices=RUNTIMES, metavar='RUNTIME',
                        help='of the other networks, if not the same')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/deploy'),
                        help='folder for the exported files')
    parser.add_argument('--calib-images', type=cli.positive, default=64,
                        help='training images that int8 is calibrated on')
    parser.add_argument('--images', type=cli.positive, default=20, help='images of a timed turn')
    parser.add_argument('--repeat', type=cli.positive, default=9, help='timed turns')
    parser.add_argument('--threads', type=cli.positive, help='CPU threads')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    parser.add_argument('--plot', type=Path, metavar='OUT', help='draw mAP against milliseconds')
    args = parser.parse_args()
    args.networks = check_networks(args.networks, args.work_dir)
    args.runtimes = args.runtimes or [name for name in RUNTIMES if openvino.is_installed()
                                      or not name.startswith('OpenVINO')]
    args.others = args.others or args.runtimes
    cli.check_outputs(args.json, args.plot, inputs=[args.config, *args.networks.values()],
                      folders=[args.work_dir])
    return args


def check_networks(given: list[str], work_dir: Path) -> dict[str, Path]:
    """Checkpoints by name.

    Raises:
        InputError: names that are no file names of their own, and checkpoints that are not there
            or would be overwritten.
    """
    found = {}
    for text in given:
        name, _, path = text.partition('=')
        path, file = Path(path), file_name(name)
        if not name or not path.name or name in found or Path(file).name != file:
            raise cli.InputError(f'{text}: not NAME=CHECKPOINT with a name of its own')
        if not path.is_file():
            raise cli.InputError(f'{text}: file not found: {path}')
        if path.resolve().is_relative_to(work_dir.resolve()):
            raise cli.InputError(f'{text}: {path} is in the folder that is to be written: give '
                                 'another --work-dir')
        found[name] = path
    return found


def file_name(network: str) -> str:
    return network.replace(':', '-')


def call(tool: str, *arguments) -> None:
    """Run a tool of this folder; InputError with its complaint if it fails."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    print(done.stdout, end='', flush=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise cli.InputError(f'{tool}: {lines[-1].removeprefix("error: ")}')


class Deployment:
    """The networks in their runtimes, built one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cfg = args, cli.read_config(args, 'train', 'test')
        cli.check_data(self.cfg, 'train', 'test')
        self.cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        self.loader = Runner.build_dataloader(self.cfg.test_dataloader, seed=0)
        self.calibration = calibration_set(self.cfg)
        self._written: set[Path] = set()

    def variants(self) -> Iterator[Variant]:
        for number, (network, checkpoint) in enumerate(self.args.networks.items()):
            content = cli.read_checkpoint(checkpoint)
            plain = self._file(network, '.pth')
            weights = {key: content[key] for key in ('meta', 'state_dict') if key in content}
            cli.write_checkpoint(weights or content, plain)
            for runtime in self.args.others if number else self.args.runtimes:
                try:
                    yield self._variant(network, runtime, checkpoint, content, plain)
                except cli.InputError as error:
                    if not (runtime.startswith('maxq_mm') and number == 0):
                        raise
                    print(f'{network}: not in {runtime} ({error})', flush=True)  # a dense one

    def _variant(self, network: str, runtime: str, checkpoint: Path, content: dict,
                 plain: Path) -> Variant:
        engine, is_int8 = runtime.removesuffix(INT8), runtime.endswith(INT8)
        if engine in SESSIONS:
            file = self._exported(network, checkpoint, is_int8)
            return Variant(network, runtime, OnnxDetector.from_file(
                file, self.args.threads, SESSIONS[engine]), file)
        model = cli.load_model(self.cfg, content, checkpoint)
        if engine != 'maxq_mm':
            return Variant(network, runtime, model, plain)
        self._accelerate(model, is_int8)
        model.cfg, model.dataset_meta = self.cfg, self.loader.dataset.metainfo
        file = self._file(network, '_int8.served' if is_int8 else '.served')
        with cli.writing(file):
            save_accelerated(model, file)
        return Variant(network, runtime, model, file)

    def _exported(self, network: str, checkpoint: Path, is_int8: bool) -> Path:
        """The ONNX file of a network; what engines share is written once."""
        onnx, int8 = self._file(network, '.onnx'), self._file(network, '_int8.onnx')
        config, root = self.args.config, self.args.data_root
        common = ('--data-root', root) if root else ()
        if onnx not in self._written:
            call('export_onnx.py', config, checkpoint, onnx, *common)
            self._written.add(onnx)
        if is_int8 and int8 not in self._written:
            call('quantize_int8.py', config, onnx, int8, '--calib-images', self.args.calib_images,
                 *common)
            self._written.add(int8)
        return int8 if is_int8 else onnx

    def _file(self, network: str, end: str) -> Path:
        return self.args.work_dir / f'{file_name(network)}{end}'

    def _accelerate(self, model: nn.Module, is_int8: bool) -> None:
        image, = evenly_spread(self.loader.dataset, 1)
        options = dict(precision='int8', calibration=evenly_spread(
            self.calibration, self.args.calib_images)) if is_int8 else {}
        accelerate(model, model.data_preprocessor(pseudo_collate([image]), False)['inputs'],
                   **options)


@torch.no_grad()
def compare(args: argparse.Namespace) -> list[dict]:
    """The rows of the table."""
    deployment = Deployment(args)
    found = list(deployment.variants())
    scores = {}
    for variant in found:
        print(variant.name, flush=True)
        scores[variant.name] = evaluate(variant.model, deployment.loader, deployment.cfg)
    batches = list(islice(deployment.loader, args.images))

    def detect(model) -> None:
        for data in batches:
            model.test_step(data)

    def an_image(seconds: float) -> float:
        return 1000 * seconds / len(batches)

    seconds = alternate(
        {variant.name: partial(detect, variant.model) for variant in found}, args.repeat, CPU,
        lambda turns: track(turns, 'turns', console=Console(stderr=True)))
    return [dict(
        network=variant.network, runtime=variant.runtime,
        **{score: scores[variant.name].get(f'coco/{score}') for score in SCORES},
        latency_ms=an_image(timing['median_s']), latency_low_ms=an_image(timing['low_s']),
        latency_high_ms=an_image(timing['high_s']), ratio=timing['ratio'],
        ratio_low=timing['ratio_low'], ratio_high=timing['ratio_high'],
        size_mib=variant.file.stat().st_size / MIB)
        for variant, timing in zip(found, summarize(seconds, found[0].name), strict=True)]


def text(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'


def main() -> None:
    args = parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows = compare(args)
    print(table(
        ('network', 'runtime', 'bbox mAP', 'segm mAP', 'ms', 'least to most', 'of the first',
         'MiB'),
        [(row['network'], row['runtime'], text(row['bbox_mAP']), text(row['segm_mAP']),
          f'{row["latency_ms"]:.1f}',
          f'{row["latency_low_ms"]:.1f} to {row["latency_high_ms"]:.1f}',
          f'{row["ratio"]:.2f}', f'{row["size_mib"]:.2f}')
         for row in rows]))
    if args.json is not None:
        cli.write_json(dict(machine=machine(CPU), images=args.images, repeat=args.repeat,
                            calib_images=args.calib_images, rows=rows), args.json)
    if args.plot is not None:
        with cli.writing(args.plot):
            figure.save(tradeoff.draw(rows, SCORES), args.plot)


if __name__ == '__main__':
    cli.run(main)
