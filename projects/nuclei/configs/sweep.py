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
    'MaxQ, no ramp': dict(ramp=None),
    'MaxQ, no query': dict(axes=()),
}
runs = [
    dict(methods=['dense', 'SR-STE', 'MaxQ', 'ASP', 'STE'], patterns=['1:16', '2:4'],
         seeds=[0, 1, 2]),
    dict(methods=['MaxQ, no ramp', 'MaxQ, no query'], patterns=['1:16'], seeds=[0, 1, 2]),
    dict(methods=['SR-STE', 'MaxQ'], patterns=['1:4', '1:8'], seeds=[0, 1, 2]),
    dict(methods=['ASP', 'STE'], patterns=['1:4', '1:8'], seeds=[0]),
]
