"""``tools/benchmark.py train`` and ``infer``: dense, sparse and folded models by turns."""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from mmdet.testing._utils import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .. import fold, sparsify
from ..engine.cpu_amp import CPUAmpOptimWrapper

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def build(cfg: Config, device: str) -> nn.Module:
    """The detector of a config with random weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None  # no download
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')  # not a line for every weight
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(device)


def inputs(model: nn.Module, args: argparse.Namespace) -> dict:
    """Random images with objects, as the detector takes them."""
    shapes = [[3, *args.size]] * args.batch
    data = demo_mm_inputs(args.batch, shapes, num_classes=2, with_mask=True)
    return model.data_preprocessor(data, args.what == 'train')


class Iteration:
    """A training iteration of one model: forward, backward, step."""

    def __init__(self, model: nn.Module, args: argparse.Namespace) -> None:
        self.model, self.args, self.data = model.train(), args, inputs(model, args)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # A small step, so that the last turn still works on what the first one did.
        self.optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def _context(self):
        if self.args.dtype == 'float32':
            return torch.autocast('cpu', enabled=False)
        if torch.device(self.args.device).type == 'cpu':
            return CPUAmpOptimWrapper(self.optimizer).optim_context(self.model)
        return torch.autocast('cuda', DTYPES[self.args.dtype])

    def __call__(self) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        with self._context():
            loss, _ = self.model.parse_losses(self.model(**self.data, mode='loss'))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def bench_train(args: argparse.Namespace, cfg: Config, measure: Callable) -> list[dict]:
    """Rows of training iterations."""
    rows = []
    for pattern in args.pattern:
        variants = {'dense': Iteration(build(cfg, args.device), args)}
        for progress in ('half way', 'finished'):
            iteration = Iteration(build(cfg, args.device), args)
            handle = sparsify(iteration.model, pattern, include=('backbone', ),
                              ramp=dict(type='linear', begin=0, end=2))
            handle.attach(iteration.optimizer)
            handle.set_progress(1 if progress == 'half way' else 2)
            variants[f'MaxQ, {progress}'] = iteration
        size = sum(layer.weight.nbytes for layer in handle.layers.values())
        kept = sum(layer.effective.nbytes for layer in handle.layers.values())
        rows += [dict(pattern=pattern, kept=0. if row['variant'] == 'dense' else kept / size, **row)
                 for row in measure(variants, pattern, baseline='dense')]
    return rows


def bench_infer(args: argparse.Namespace, cfg: Config, measure: Callable) -> list[dict]:
    """Rows of backbone and neck."""
    rows = []
    for pattern in args.pattern:
        dense, sparse = (build(cfg, args.device).eval() for _ in range(2))
        sparsify(sparse, pattern, include=('backbone', ))
        folded = fold(copy.deepcopy(sparse))
        data = inputs(dense, args)

        def run(model, images=data['inputs']):
            with torch.no_grad(), torch.autocast(torch.device(args.device).type,
                                                 enabled=args.dtype != 'float32',
                                                 dtype=DTYPES[args.dtype]):
                model.extract_feat(images)

        variants = {name: partial(run, model) for name, model in
                    (('dense', dense), ('MaxQ', sparse), ('MaxQ, folded', folded))}
        rows += [dict(pattern=pattern, **row)
                 for row in measure(variants, pattern, baseline='dense')]
    return rows
