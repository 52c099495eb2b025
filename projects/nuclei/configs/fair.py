"""Methods against each other, each at its own best learning rate, over five seeds.

Takes what sweep_rates.py has chosen from the runs of fair_rates.py; a method for which it found no
best rate yet is left out. Seed by seed, so that each comparison is paired as early as can be.
"""
import json
from pathlib import Path

start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

file = Path('{{ fileDirname }}').parent / 'results/nuclei_fair_rates/rates.json'
found = json.loads(file.read_text()) if file.is_file() else []
methods = {best['method']: best['changes'] for best in found}
runs = [dict(methods=[best['method']], patterns=[best['pattern'] or pattern], seeds=[seed],
             options=best['options'], pruned=best['pruned'])
        for optimizer in ('AdamW', 'SGD') for pattern in ('1:16', '1:8')
        for seed in (1, 2, 3, 4, 5) for best in found
        if best['method'].endswith(optimizer) and best['pattern'] in (None, pattern)]
del Path, json, file, found
