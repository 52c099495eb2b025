"""Each method at each learning rate of a grid, with AdamW and SGD: fair.py takes the best ones.

All layers but the predicting ones are sparse. Seed 0 chooses; fair.py reports other seeds. In order
of worth; a method whose best rate is at an edge of its grid needs another rate beyond it. "Pruned
first" starts from what tools/prune.py makes of the dense detector, so without a ramp.
"""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

everywhere = dict(include=())
plain = dict(everywhere, axes=(), ramp=None)
changes = {
    'SR-STE': plain,
    'MaxQ': everywhere,
    'filter query': dict(everywhere, axes=('filter', )),
    'fading': dict(everywhere, axes=(), ramp=dict(
        type='cubic', begin=0, end=5, by_epoch=True, fade=True)),
    'STE': dict(plain, decay=0.),
    'dense': None,
}
pruned_first = {
    'SR-STE, pruned first': plain,
    'MaxQ, pruned first': dict(everywhere, ramp=None),
}
adamw = 1e-3, 2e-3, 5e-4, 4e-3, 2.5e-4  # grids, what is likely first
few = 1e-3, 2e-3, 4e-3
sgd = 0.02, 0.04, 0.01, 0.08, 0.005, 0.0025
low = 0.00125, 6.25e-4, 3.125e-4  # dense training with SGD goes on from there
optimizers = dict(
    AdamW=dict(type='AdamW', weight_decay=1e-2),
    SGD=dict(type='SGD', momentum=0.9, weight_decay=1e-4))
methods, runs = {}, []
for optimizer, pattern, group, rates, images in (  # images: to prune the start with
        ('AdamW', '1:16', changes, adamw, None),
        ('AdamW', '1:16', pruned_first, few, 16),
        ('AdamW', '1:8', changes, adamw, None),
        ('SGD', '1:16', changes, sgd, None),
        ('SGD', '1:8', changes, sgd, None),
        ('SGD', '1:8', dict(dense=None), low, None)):
    for rate in rates:
        options = {f'optim_wrapper.optimizer.{key}': value
                   for key, value in dict(optimizers[optimizer], lr=rate).items()}
        names = [f'{method}, {optimizer}, lr {rate:g}' for method in group]
        methods.update(zip(names, group.values(), strict=True))
        runs.append(dict(methods=names, patterns=[pattern], seeds=[0], options=options,
                         pruned=images))
del changes, pruned_first, adamw, few, sgd, low, optimizers, optimizer, pattern, group, rates
del images, rate, options, names
