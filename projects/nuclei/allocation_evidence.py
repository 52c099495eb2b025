"""What plans are worth on one trained dense detector, before any training.

    python projects/nuclei/allocation_evidence.py CONFIG CHECKPOINT OUT.json [--data-root DIR]

(a) Distortion of each layer at each pattern, pruned alone: predicted on training images, measured
on validation images; and of whole networks. (b) mAP of networks pruned without training, at equal
kept multiply-accumulates. Also the plans themselves. allocation_report.py draws and tabulates it.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from allocations import Patterns, by_erk, by_magnitude, share, uniform
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import nn

from maxq_mm import cli
from maxq_mm.allocation.allocate import (
    PATTERNS,
    collect_moments,
    find_candidates,
    predict_all,
)
from maxq_mm.allocation.costs import costs
from maxq_mm.allocation.distortion import bar, measure, spreads
from maxq_mm.allocation.images import look
from maxq_mm.allocation.one_shot import one_shot
from maxq_mm.allocation.plan import make_plan
from maxq_mm.allocation.prune import prune_at
from maxq_mm.cli.calibration import add_image_arguments, images, read_dense
from maxq_mm.engine.runner import WholeCheckpointRunner

BUDGETS = {'1/2': (0.5, '2:4'), '1/4': (0.25, '1:4'), '1/8': (0.125, '1:8')}
HELD_OUT = 5  # validation images that distortion is measured on


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of the trained dense detector')
    parser.add_argument('out', type=Path, metavar='OUT.json', help='file to write')
    parser.add_argument('--only', choices=('plans', 'distortion', 'mAP'),
                        help='the plans alone, or these and one of (a) and (b)')
    add_image_arguments(parser)
    return parser.parse_args()


class Study:
    """One dense detector, its candidates and what is found about it, written as it comes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cfg = args, cli.read_config(args)
        cli.check_data(self.cfg, 'train', 'val')
        self.model = cli.load_model(self.cfg, read_dense(args.checkpoint), args.checkpoint)
        self.candidates = find_candidates(self.model, PATTERNS)
        self.places = look(self.model, images(self.cfg, args), bar('training images'))
        self.costs = costs('macs', self.model, self.places, self.candidates)
        self.found = json.loads(args.out.read_text()) if args.out.exists() else dict(
            checkpoint=args.checkpoint.name, images=len(self.places))

    def keep(self, key: str, value: object) -> None:
        self.found[key] = value
        cli.write_json(self.found, self.args.out)

    def predict(self) -> None:
        if 'predicted' not in self.found:
            rows = predict_all(self.model, self.places, self.candidates, 'magnitude', True, 2,
                               self.args.seed, progress=True)
            self.keep('predicted', {
                name: dict(zip(map(str, self.candidates[name][1:]), row[1:], strict=True))
                for name, row in rows.items()})

    def allocations(self) -> None:
        """Every way to spend each budget."""
        predicted = {name: [0., *row.values()] for name, row in self.found['predicted'].items()}
        found = {}
        for label, (budget, pattern) in BUDGETS.items():
            plans = {'plan': make_plan('macs', self.candidates, self.costs, predicted,
                                       budget).patterns,
                     'uniform': uniform(self.candidates, pattern),
                     'uniform, predictors dense': uniform(self.candidates, pattern, False),
                     'magnitude': by_magnitude(self.model, self.candidates, self.costs, budget),
                     'ERK': by_erk(self.model, self.candidates, self.costs, budget)}
            found[label] = {name: dict(
                share=share(patterns, self.candidates, self.costs), patterns=patterns,
                predicted=sum(self.found['predicted'][layer][p]
                              for layer, p in patterns.items() if p))
                for name, patterns in plans.items()}
        self.keep('allocations', found)

    @torch.no_grad()
    def distortions(self) -> None:
        """(a), layer by layer."""
        rows = self.found.setdefault('true', {})
        waiting = [name for name in self.candidates if name not in rows]
        if not waiting:
            return
        held_out = self._held_out()
        spread = spreads(held_out)
        moments = collect_moments(self.model, self.places, waiting, self.args.seed)
        for name in bar('true distortion')(waiting):
            weight = self.model.get_submodule(name).weight
            dense, rows[name] = weight.clone(), {}
            for pattern in self.candidates[name][1:]:
                weight.copy_(one_shot(dense, pattern, moments.get(name)))
                rows[name][str(pattern)] = measure(self.model, held_out, spread)
            weight.copy_(dense)
            self.keep('true', rows)

    def _held_out(self) -> list:
        if not hasattr(self, '_looked'):
            data = WholeCheckpointRunner.build_dataloader(self.cfg.val_dataloader, seed=0).dataset
            step = -(-len(data) // HELD_OUT)
            self._looked = look(self.model, [data[i] for i in range(0, len(data), step)])
        return self._looked

    def prune(self) -> None:
        """(b), and the distortion of whole networks."""
        spread = spreads(self._held_out())
        scores = self.found.get('one_shot', {})
        if 'dense' not in scores:
            scores['dense'] = dict(scores=evaluate(self.model, self.cfg), share=1.)
            self.keep('one_shot', scores)
        for label, ways in self.found['allocations'].items():
            for way, entry in ways.items():
                key = f'{label} | {way}'
                if key in scores:
                    continue
                model = self._pruned(entry['patterns'])
                scores[key] = dict(share=entry['share'], predicted=entry['predicted'],
                                   true=measure(model, self._held_out(), spread),
                                   scores=evaluate(model, self.cfg))
                print(key, scores[key], flush=True)
                self.keep('one_shot', scores)

    def _pruned(self, patterns: Patterns) -> nn.Module:
        model = copy.deepcopy(self.model)
        wanted = {name: next(p for p in self.candidates[name] if str(p) == text)
                  for name, text in patterns.items() if text}
        with torch.no_grad():
            prune_at(model, self.places, wanted, 'magnitude', True, True, self.args.seed,
                     bar('pruning'))
        return model


@torch.no_grad()
def evaluate(model: nn.Module, cfg: Config) -> dict[str, float]:
    """Scores on the validation set, in [0, 1]."""
    loader = WholeCheckpointRunner.build_dataloader(cfg.val_dataloader, seed=0)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in bar('validation')(loader):
        evaluator.process(model.test_step(batch), batch)
    found = evaluator.evaluate(len(loader.dataset))
    return {name: found[f'coco/{name}'] for name in ('bbox_mAP', 'segm_mAP')}


def main() -> None:
    study = Study(parse_args())
    study.predict()
    study.allocations()
    if study.args.only == 'plans':
        return
    if study.args.only != 'mAP':
        study.distortions()
    if study.args.only != 'distortion':
        study.prune()


if __name__ == '__main__':
    cli.run(main)
