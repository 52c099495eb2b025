"""``tools/benchmark.py profile``: where the milliseconds of one detector go, dense and accelerated.

Stages are what a detector's Python calls: backbone and neck (``extract_feat``), its heads and their
post-processing, extractors of regions, the preprocessor. A stage has the time that none within it
takes; ``other`` is the rest.
"""

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import cycle

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModule
from torch import nn

from .. import accelerate, fold, sparsify
from ..runtime.calls import FEATURES
from ..utils.errors import InputError
from ..utils.tables import table
from .checkpoints import load_model, read_checkpoint
from .timing import alternate

OTHER = 'other'
_METHODS = 'forward', 'predict_by_feat'


class Stages:
    """A detector whose stages are timed at every call of it with a batch of test data."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.runs: list[dict[str, float]] = []  # seconds by stage
        self._within: list[float] = []  # seconds of stages within each one that is open
        for name, module in _staged(model).items():
            for method in _METHODS:
                if hasattr(module, method):
                    stage = name if method == 'forward' else f'{name}.{method}'
                    self._time(module, method, stage)
        for method in (FEATURES, 'add_pred_to_datasample'):
            if hasattr(model, method):
                self._time(model, method, method)

    @torch.no_grad()
    def __call__(self, data: dict) -> None:
        self.runs.append(defaultdict(float))
        self._timed(OTHER, self.model.test_step, data)

    def _time(self, module: nn.Module, method: str, stage: str) -> None:
        vars(module)[method] = wraps(getattr(module, method))(
            partial(self._timed, stage, getattr(module, method)))

    def _timed(self, stage: str, function: Callable, *args, **kwargs):
        self._within.append(0.)
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            taken = time.perf_counter() - start
            self.runs[-1][stage] += taken - self._within.pop()
            if self._within:
                self._within[-1] += taken

    def milliseconds(self) -> dict[str, float]:
        """Medians over all runs but the first, in the order of the calls."""
        names = dict.fromkeys(name for run in self.runs for name in reversed(run))
        return {name: 1e3 * statistics.median(run.get(name, 0.) for run in self.runs[1:])
                for name in reversed(names)}


def _staged(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a detector that are stages, but for what its ``extract_feat`` calls."""
    kinds = (BaseModule, BaseDataPreprocessor)
    return {name: module for name, module in model.named_modules()
            if name and isinstance(module, kinds)
            and name.split('.')[0] not in ('backbone', 'neck')}


def profile(dense: nn.Module, batches: Sequence[dict], repeat: int, precision: str = 'float32'
            ) -> tuple[dict[str, dict[str, float]], object]:
    """Milliseconds by stage of a folded detector, dense and accelerated by turns, and the report.

    ``batches`` are what test data loaders give; the detector is accelerated on the first, in int8
    calibrated on all of them.
    """
    fast = copy.deepcopy(dense)
    images = fast.data_preprocessor(copy.deepcopy(batches[0]), False)['inputs']
    report = accelerate(fast, images, precision,
                        copy.deepcopy(batches) if precision == 'int8' else None)
    variants = {'dense': Stages(dense), 'accelerated': Stages(fast)}

    def on(stages):
        turns = cycle(batches)
        return lambda: stages(copy.deepcopy(next(turns)))

    alternate({name: on(stages) for name, stages in variants.items()}, repeat,
              torch.device('cpu'))
    return {name: stages.milliseconds() for name, stages in variants.items()}, report


def bench_profile(args: argparse.Namespace, cfg: Config, build: Callable[[], nn.Module]
                  ) -> tuple[list[dict], dict]:
    """A row a stage; of ``--checkpoint``, or of random weights and images."""
    if args.checkpoint is None:
        from mmdet.testing._utils import demo_mm_inputs

        model = build()
        sparsify(model, args.pattern[0])
        model = fold(model)
        batches = [demo_mm_inputs(args.batch, [[3, *args.size]] * args.batch, num_classes=2)]
    else:
        from .calibration import ImageFolder, evenly_spread

        if args.image_dir is None:
            raise InputError('--checkpoint asks for images: give --image-dir')
        model = load_model(cfg, read_checkpoint(args.checkpoint), args.checkpoint)
        images = evenly_spread(ImageFolder(cfg, args.image_dir), args.repeat)
        batches = [pseudo_collate([image]) for image in images]
    precision, = args.precision
    found, report = profile(model.eval(), batches, args.repeat, precision)
    rows = [dict(stage=stage, **{f'{name}_ms': ms.get(stage, 0.) for name, ms in found.items()})
            for stage in dict.fromkeys(stage for ms in found.values() for stage in ms)]
    return rows, dict(report=report.as_dict())


def show_profile(rows: list[dict]) -> str:
    """Milliseconds and share of each stage."""
    total = {name: sum(row[name] for row in rows) for name in ('dense_ms', 'accelerated_ms')}

    def line(row):
        return (row['stage'], *(text for name, whole in total.items()
                                for text in (f'{row[name]:.1f}', f'{row[name] / whole:.1%}')))

    head = ('stage', 'dense ms', 'share', 'accelerated ms', 'share')
    return table(head, [*map(line, rows), line(dict(stage='total', **total))])
