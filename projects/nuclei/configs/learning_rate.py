"""The comparison of sweep_all_layers.py at two and four times its learning rate."""
_base_ = './sweep_all_layers.py'

everywhere = _base_.everywhere
plain = _base_.plain
methods = {  # beside those at its own rate
    'dense, lr 1e-3': None,
    'SR-STE, lr 1e-3': plain,
    'MaxQ, lr 1e-3': everywhere,
    'MaxQ, no ramp, lr 1e-3': dict(everywhere, ramp=None),
    'MaxQ, no kernel query, lr 1e-3': dict(everywhere, axes=('filter', )),
    'MaxQ, temperature 0.1, lr 1e-3': dict(everywhere, temperature=0.1),
    'MaxQ, no query, lr 1e-3': dict(everywhere, axes=()),
    'SR-STE, lr 2e-3': plain,
    'MaxQ, lr 2e-3': everywhere,
}
seeds = dict(patterns=['1:16'], seeds=[0, 1, 2])
runs = [
    dict(seeds, methods=['dense', 'SR-STE, all layers', 'MaxQ, all layers']),
    dict(seeds, methods=['SR-STE, lr 1e-3', 'MaxQ, lr 1e-3', 'dense, lr 1e-3'],
         options={'optim_wrapper.optimizer.lr': 1e-3}),
    dict(seeds, methods=['SR-STE, lr 2e-3', 'MaxQ, lr 2e-3'],
         options={'optim_wrapper.optimizer.lr': 2e-3}),
    dict(seeds, methods=['MaxQ, no ramp, lr 1e-3', 'MaxQ, no kernel query, lr 1e-3',
                         'MaxQ, temperature 0.1, lr 1e-3', 'MaxQ, no query, lr 1e-3'],
         options={'optim_wrapper.optimizer.lr': 1e-3}),
    dict(methods=['SR-STE, lr 1e-3', 'MaxQ, lr 1e-3', 'MaxQ, no kernel query, lr 1e-3',
                  'MaxQ, temperature 0.1, lr 1e-3'], patterns=['1:16'], seeds=[3, 4],
         options={'optim_wrapper.optimizer.lr': 1e-3}),
]
