"""MaxQ against its baselines on the nuclei; all start from the dense detector of their seed.

The baselines are MaxQHook's settings, as in the COCO configs. 'dense' trains on without any
sparsity, for as many iterations as the others.
"""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

plain = dict(axes=(), ramp=None)  # a hard mask from the first iteration
methods = {
    'dense': None,
    'ASP': dict(plain, decay=0., fixed=True),
    'STE': dict(plain, decay=0.),
    'SR-STE': plain,
    'MaxQ': dict(),
}
seeds = [0, 1, 2]
runs = [
    dict(methods=['dense', 'SR-STE', 'MaxQ', 'ASP', 'STE'], patterns=['1:16'], seeds=seeds),
    dict(methods=['SR-STE', 'MaxQ', 'ASP', 'STE'], patterns=['2:4'], seeds=seeds),
]
