"""The comparison of sweep.py with neck and heads sparse, too: 1:16 leaves little of them.

Layers that M does not divide stay dense, as the start of each log says.
"""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

everywhere = dict(include=(), predictors=True)
plain = dict(everywhere, axes=(), ramp=None)
methods = {
    'dense': None,
    'ASP, all layers': dict(plain, decay=0., fixed=True),
    'STE, all layers': dict(plain, decay=0.),
    'SR-STE, all layers': plain,
    'MaxQ, all layers': everywhere,
}
runs = [dict(methods=list(methods), patterns=['1:16'], seeds=[0, 1, 2])]
