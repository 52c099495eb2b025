"""The comparison of sweep_all_layers.py over 16 epochs in place of 8, at two learning rates."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18_16e.py'

everywhere = dict(include=())
plain = dict(everywhere, axes=(), ramp=None)
methods = {
    'dense, 16 epochs': None,
    'SR-STE, 16 epochs': plain,
    'MaxQ, 16 epochs': everywhere,
    'dense, 16 epochs, lr 1e-3': None,
    'SR-STE, 16 epochs, lr 1e-3': plain,
    'MaxQ, 16 epochs, lr 1e-3': everywhere,
}
seeds = dict(patterns=['1:16'], seeds=[0, 1, 2])
runs = [
    dict(seeds, methods=['dense, 16 epochs', 'SR-STE, 16 epochs', 'MaxQ, 16 epochs']),
    dict(seeds, methods=['SR-STE, 16 epochs, lr 1e-3', 'MaxQ, 16 epochs, lr 1e-3',
                         'dense, 16 epochs, lr 1e-3'],
         options={'optim_wrapper.optimizer.lr': 1e-3}),
]
