"""Plans against one pattern for all layers, trained with MaxQ at the same kept MACs.

Needs the plan of each seed's dense detector: allocation_starts.py trains these, and
projects/nuclei/allocation_evidence.py writes their plans to results/nuclei_allocation/seed-N.json.
A seed without such a file is left out. 1:4 and 1:8 stand for a quarter and an eighth of the MACs.
"Pruned first" starts from what tools/prune.py makes of the dense detector by the same patterns.
"""
import json
from pathlib import Path

from maxq_mm.allocation.plan import overrides

start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

everywhere = dict(include=(), predictors=True)
methods = {
    'dense, lr 1e-3': None,
    'plan': everywhere,
    'plan, pruned first': dict(everywhere, ramp=None),
    'plan, pruned first, no queries': dict(everywhere, axes=(), ramp=None),
    'plan, fading': dict(everywhere, axes=(), ramp=dict(
        type='cubic', begin=0, end=5, by_epoch=True, fade=True)),
    'uniform, predictors dense': dict(include=()),
    'uniform, pruned first': dict(include=(), ramp=None),
}
found = Path('{{ fileDirname }}').parent / 'results/nuclei_allocation'
runs = []
rate = {'optim_wrapper.optimizer.lr': 1e-3}
for seed in range(6):
    file = found / f'seed-{seed}.json'
    if not file.is_file():
        continue
    plans = json.loads(file.read_text())['allocations']
    for budget, pattern in (('1/4', '1:4'), ('1/8', '1:8')):
        planned_for = overrides(plans[budget]['plan']['patterns'])
        common = dict(patterns=[pattern], seeds=[seed])
        planned = dict(common, options={**rate, 'custom_hooks.0.overrides': planned_for})
        runs += [
            dict(planned, methods=['plan']),
            dict(planned, methods=['plan, pruned first', 'plan, pruned first, no queries'],
                 pruned=16),
            dict(planned, methods=['plan, fading']),
            dict(common, methods=['uniform, predictors dense'], options=rate),
            dict(common, methods=['uniform, pruned first'], options=rate, pruned=16)]
    runs.append(dict(patterns=[], seeds=[seed], methods=['dense, lr 1e-3'], options=rate))
del Path, found, file, plans, rate, common, planned, planned_for, overrides, budget, pattern, seed
